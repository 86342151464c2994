#!/bin/sh
# Loads the image's environment and runs the image's own tests, or those of an app.

for script in /.singularity.d/env/*.sh; do
    [ ! -f "$script" ] || . "$script"
done

if [ -n "${SINGULARITY_APPNAME:-}" ]; then
    if [ -x "/scif/apps/$SINGULARITY_APPNAME/scif/test" ]; then
        exec "/scif/apps/$SINGULARITY_APPNAME/scif/test" "$@"
    fi
    echo "The app $SINGULARITY_APPNAME has no tests" >&2
    exit 1
fi
if [ -x /.singularity.d/test ]; then
    exec /.singularity.d/test "$@"
fi
echo "The image has no tests" >&2
exit 0
