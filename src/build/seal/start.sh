#!/bin/sh
# Loads the image's environment and runs what an instance starts.

# The first process of an instance waits for this signal.
kill -CONT 1

for script in /.singularity.d/env/*.sh; do
    [ ! -f "$script" ] || . "$script"
done

if [ -x /.singularity.d/startscript ]; then
    exec /.singularity.d/startscript "$@"
fi
