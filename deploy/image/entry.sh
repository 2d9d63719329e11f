#!/bin/sh
# What every container of the image begins with. Services that others call back have to say where
# they are: by default at the name of the container, which no other will ever have.
set -eu
if [ -z "${ADVERTISE_HOST:-}" ]; then
    ADVERTISE_HOST=$(hostname)
    case $ADVERTISE_HOST in
    *[!0-9]*) ;;
    # One in 300 is named by digits alone, which no host name may be.
    *) ADVERTISE_HOST=$(hostname -i | cut -d ' ' -f 1) ;;
    esac
    export ADVERTISE_HOST
fi
exec "$@"
