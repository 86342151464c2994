#!/bin/sh
# Loads the image's environment and runs the image's own program, or that of an app.

for script in /.singularity.d/env/*.sh; do
    [ ! -f "$script" ] || . "$script"
done

if [ -n "${SINGULARITY_APPNAME:-}" ]; then
    if [ -x "/scif/apps/$SINGULARITY_APPNAME/scif/runscript" ]; then
        exec "/scif/apps/$SINGULARITY_APPNAME/scif/runscript" "$@"
    fi
    echo "The app $SINGULARITY_APPNAME has no runscript" >&2
    exit 1
fi
if [ -x /.singularity.d/runscript ]; then
    exec /.singularity.d/runscript "$@"
fi
echo "The image has no runscript: this is /bin/sh" >&2
exec /bin/sh "$@"
