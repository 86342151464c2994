#!/bin/sh
# Loads the image's environment and runs a command in it.

for script in /.singularity.d/env/*.sh; do
    [ ! -f "$script" ] || . "$script"
done

exec "$@"
