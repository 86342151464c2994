#!/bin/sh
# Loads the image's environment and runs the shell that was asked for, bash, or sh.

for script in /.singularity.d/env/*.sh; do
    [ ! -f "$script" ] || . "$script"
done

if [ -n "${SINGULARITY_SHELL:-}" ] && [ -x "$SINGULARITY_SHELL" ]; then
    exec $SINGULARITY_SHELL "$@"
fi
if [ -x /bin/bash ]; then
    SHELL=/bin/bash
    PS1="Apptainer ${APPTAINER_NAME:-}:\\w> "
    export SHELL PS1
    exec /bin/bash --norc "$@"
fi
if [ -x /bin/sh ]; then
    SHELL=/bin/sh
    export SHELL
    exec /bin/sh "$@"
fi
echo "The image has no /bin/sh" >&2
exit 1
