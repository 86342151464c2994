#!/bin/sh
# Makes the app that was asked for the first to be found: its programs, its libraries, its variables.

if [ -n "${SINGULARITY_APPNAME:-}" ]; then
    if [ ! -d "/scif/apps/$SINGULARITY_APPNAME" ]; then
        echo "The image has no app $SINGULARITY_APPNAME" >&2
        exit 1
    fi
    SCIF_APPS=/scif/apps
    SCIF_APPROOT="$SCIF_APPS/$SINGULARITY_APPNAME"
    PATH="$SCIF_APPROOT:$PATH"
    if [ -d "$SCIF_APPROOT/bin" ]; then
        PATH="$SCIF_APPROOT/bin:$PATH"
    fi
    if [ -d "$SCIF_APPROOT/lib" ]; then
        LD_LIBRARY_PATH="$SCIF_APPROOT/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
        export LD_LIBRARY_PATH
    fi
    if [ -f "/scif/apps/$SINGULARITY_APPNAME/scif/env/01-base.sh" ]; then
        . "/scif/apps/$SINGULARITY_APPNAME/scif/env/01-base.sh"
    fi
    if [ -f "/scif/apps/$SINGULARITY_APPNAME/scif/env/90-environment.sh" ]; then
        . "/scif/apps/$SINGULARITY_APPNAME/scif/env/90-environment.sh"
    fi
    export SINGULARITY_APPNAME SCIF_APPS SCIF_APPROOT PATH
fi
