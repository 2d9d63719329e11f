#!/bin/bash
# Whether the service on a port of this container is ready, and if not, why: its answer is printed.
# In the shell itself: a Python started every few seconds for each service would cost an idle
# platform more than the services do.
#
#   deploy/image/probe.sh PORT
set -eu
exec 3<>"/dev/tcp/127.0.0.1/$1"
printf 'GET /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' >&3
read -r -t 2 _ status _ <&3
timeout 2 cat <&3
[[ $status == 200 ]]
