# What can be done with this checkout. Each target does its own set-up; the work is in setup/.
# Every recipe runs in the checkout, whatever its path: nothing here names it.

.POSIX:
.PHONY: help build static lint test conformance bench demo defs install fuzz clean

help:
	@echo 'make build        target/release/sifu and, beside it, the starter (static where this machine can)'
	@echo 'make static       the same, static or not at all'
	@echo 'make demo         build an image and run it, as an ordinary user'
	@echo 'make defs         build and test every definition file of defs/, as ordinary users (DEFS="debian apps" for some)'
	@echo 'make lint         formatting and clippy'
	@echo 'make test         lint, build, and every test (TESTS=name for some)'
	@echo 'make conformance  the cases of ../shared/conformance (CASES="--filter exec/*" for some)'
	@echo 'make bench        start-up, ranks, image I/O, packing and pulling, measured against what is installed'
	@echo 'make install      PREFIX=/usr/local DESTDIR= LINKS=no (yes: also apptainer, singularity, run-singularity, sifu-oci)'
	@echo 'make fuzz         each fuzz target for SECONDS_EACH=120 seconds'
	@echo 'make clean        remove what was built'

build:
	@sh setup/build

static:
	@sh setup/build static

lint:
	@sh setup/lint

test: lint build
	@sh setup/test $(TESTS)

conformance: build
	@sh setup/conformance $(CASES)

bench: build
	@sh setup/bench $(BENCHES)

demo:
	@sh setup/demo

defs:
	@sh setup/defs $(DEFS)

install:
	@PREFIX="$(PREFIX)" DESTDIR="$(DESTDIR)" SYSCONFDIR="$(SYSCONFDIR)" LINKS="$(LINKS)" sh setup/install

fuzz:
	@SECONDS_EACH="$(SECONDS_EACH)" sh setup/fuzz

clean:
	cargo clean
	rm -rf fuzz/target
