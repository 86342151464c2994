# Shared by the scripts beside it: where things are, what the machine has, how to become an ordinary user.
# Sourced with the current directory at the top of the checkout.
# shellcheck shell=sh

set -eu
umask 022
export LC_ALL=C

PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin:/usr/sbin:/sbin
export PATH

target_dir=${CARGO_TARGET_DIR:-target}
built=$target_dir/release
musl_triple=$(uname -m)-unknown-linux-musl

# The two ordinary users that tests run as: one with subordinate ids, one without.
test_user=sifu-test
plain_user=sifu-plain

say() { printf '%s\n' "== $*"; }
note() { printf '%s\n' "   $*"; }
die() {
  printf '%s\n' "$0: $*" >&2
  exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }
is_root() { [ "$(id -u)" = 0 ]; }

# installs PACKAGE...: from Debian's archive, as root; true if all of them are there at the end.
installs() {
  is_root && have apt-get || return 1
  note "installing $*"
  export DEBIAN_FRONTEND=noninteractive
  apt-get install -y -q --no-install-recommends "$@" </dev/null >/dev/null 2>&1 && return 0
  apt-get update -q </dev/null >/dev/null 2>&1 || true
  apt-get install -y -q --no-install-recommends "$@" </dev/null >/dev/null
}

# wants PROGRAM PACKAGES WHY: installs the packages if the program is missing; says so if that is not possible.
wants() {
  # shellcheck disable=SC2086  # each word is a package
  have "$1" || installs $2 || true
  have "$1" && return 0
  note "$1 is missing ($3): install $2"
  return 1
}

needs_rust() {
  have cargo || die "cargo is missing: install Rust (rustup) first"
  have cc || installs gcc libc6-dev || true
  have cc || die "no C compiler: install the packages gcc and libc6-dev"
}

# Whether a static build is possible here; installs what it needs where that is allowed.
static_is_possible() {
  libraries=$(rustc --print sysroot)/lib/rustlib/$musl_triple
  if [ ! -d "$libraries" ] && have rustup; then
    note "adding the Rust target $musl_triple"
    rustup target add "$musl_triple" </dev/null >/dev/null 2>&1 || true
  fi
  wants musl-gcc musl-tools "the static build compiles C with it" || return 1
  [ -d "$libraries" ] && return 0
  note "Rust's library for $musl_triple is missing: rustup target add $musl_triple"
  return 1
}

# user_exists NAME
user_exists() { id -u "$1" >/dev/null 2>&1; }

# Makes the two users. The first gets a range of subordinate ids, the second loses what useradd may have given it.
make_users() {
  is_root || return 0
  for user in "$test_user" "$plain_user"; do
    user_exists "$user" || useradd --create-home --shell /bin/bash "$user"
  done
  touch /etc/subuid /etc/subgid
  for table in uid gid; do
    grep -q "^$test_user:" "/etc/sub$table" || {
      first=$(awk -F: '$2 + $3 > end { end = $2 + $3 } END { print (end > 300000 ? end : 300000) }' "/etc/sub$table")
      usermod "--add-sub${table}s" "$first-$((first + 65535))" "$test_user"
    }
    sed -i "/^$plain_user:/d" "/etc/sub$table"
  done
}

# as_user USER COMMAND...: with the environment of a fresh login, plus the SIFU_TEST_* and SIFU_SHARED variables and the
# proxies by which the net is reached.
as_user() {
  user=$1
  shift
  home=$(getent passwd "$user" | cut -d: -f6)
  setpriv --reuid="$user" --regid="$(id -g "$user")" --init-groups --inh-caps=-all -- \
    env -i HOME="$home" USER="$user" LOGNAME="$user" LANG=C TERM=dumb \
    PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin \
    ${SIFU_TEST_BIN:+SIFU_TEST_BIN="$SIFU_TEST_BIN"} ${SIFU_TEST_ROOT:+SIFU_TEST_ROOT="$SIFU_TEST_ROOT"} \
    ${SIFU_TEST_REQUIRE:+SIFU_TEST_REQUIRE="$SIFU_TEST_REQUIRE"} ${SIFU_SHARED:+SIFU_SHARED="$SIFU_SHARED"} \
    ${SIFU_TEST_SLURM:+SIFU_TEST_SLURM="$SIFU_TEST_SLURM"} \
    ${http_proxy:+http_proxy="$http_proxy"} ${https_proxy:+https_proxy="$https_proxy"} \
    ${no_proxy:+no_proxy="$no_proxy"} \
    "$@"
}

# What the device node of a fresh container or virtual machine often lacks: everybody's leave to open it.
open_fuse() {
  is_root || return 0
  if [ ! -e /dev/fuse ]; then
    mknod /dev/fuse c 10 229 2>/dev/null || note "/dev/fuse is missing and can't be made here"
  fi
  [ ! -e /dev/fuse ] || chmod 0666 /dev/fuse 2>/dev/null || note "/dev/fuse can't be opened to everybody here"
}

# stage: a directory that every user can read, with the built programs in it. Sets $stage; removed on exit.
# The checkout itself may lie where only its owner can go.
stage() {
  stage=$(mktemp -d /var/tmp/sifu-stage-XXXXXX)
  trap 'stop_cluster; rm -rf "$stage"' EXIT
  trap 'exit 130' INT TERM HUP
  chmod 0755 "$stage"
  mkdir "$stage/bin"
  cp "$built/sifu" "$built/starter" "$stage/bin/"
}

# start_cluster: a Slurm of this machine alone, in the stage, until the script ends. Sets $SIFU_TEST_SLURM.
start_cluster() {
  sh setup/slurm start "$stage/slurm" || return 1
  SIFU_TEST_SLURM=$stage/slurm/slurm.conf
  export SIFU_TEST_SLURM
}
stop_cluster() {
  [ ! -d "$stage/slurm" ] || sh setup/slurm stop "$stage/slurm" || note "the cluster in $stage/slurm could not be stopped"
}
