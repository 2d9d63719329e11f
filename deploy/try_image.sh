#!/usr/bin/env bash
# Builds what the image would hold, without Docker, and starts a node from it as a container would:
# as an unprivileged user who can write nothing but its data.
#
# The files that the build stage of the Dockerfile copies go into a temporary folder, and the
# commands that it runs run there; only what it installs by apt-get has to be here already.
#
#   deploy/try_image.sh [PYTHON]
set -euo pipefail
cd "$(dirname "$0")/.."
# The system's own first: another may lie in somebody's home, where no unprivileged user gets to.
python=${1:-$(PATH=/usr/bin:$PATH type -P python3)}
folder=$(mktemp -d)
node=
trap '[[ -z $node ]] || kill "$node"; chmod -R u+w "$folder"; rm -rf "$folder"' EXIT
chmod 755 "$folder"

stage() { awk '/^FROM/ { in_stage = / AS build$/ } in_stage && $1 == "'"$1"'"' Dockerfile; }

app=$folder/app
mkdir "$app"
while read -r _ line; do
    read -ra names <<<"$line"
    for name in "${names[@]::${#names[@]}-1}"; do
        # As .dockerignore has it: caches and what was compiled here are no sources.
        git ls-files -z -- "$name" | xargs -0 cp --parents -t "$app"
    done
done < <(stage COPY)
while read -r _ command; do
    [[ $command == apt-get* ]] && continue
    echo "Running $command ..."
    (cd "$app" && env -i PATH="$PATH" HOME="$folder" $command "$python")
done < <(stage RUN)

for tool in mypy pip setuptools pytest; do
    [[ ! -e $app/.venv/lib/python3*/site-packages/$tool ]] || { echo "$tool is in it" >&2; exit 1; }
done
chmod -R a-w "$app"
mkdir "$folder/data" "$folder/secrets"

# As an unprivileged user, if we may choose.
run=(env -i PATH="$app/.venv/bin:/usr/bin:/bin" PYTHONDONTWRITEBYTECODE=1)
if ((EUID == 0)); then
    chown 10001:10001 "$folder/data" "$folder/secrets"
    run=(setpriv --reuid 10001 --regid 10001 --clear-groups --no-new-privs "${run[@]}")
fi
cd "$app"
"${run[@]}" ydht --version
for service in gateway usermanager dhtnode replicator keygen; do
    "${run[@]}" python -m "services.$service" --help >/dev/null
done
"${run[@]}" python deploy/image/make_secrets.py "$folder/secrets"

port=$("$python" -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
"${run[@]}" DHTNODE_PORT="$port" NODES_DIR="$folder/data" BIND_HOST=0.0.0.0 DISK_RESERVE=1MiB \
    CLUSTER_SECRET_FILE="$folder/secrets/cluster_secret" LOG_FORMAT=json \
    deploy/image/entry.sh python -m services.dhtnode >"$folder/log" 2>&1 &
node=$!
for _ in $(seq 100); do
    ready=$(deploy/image/probe.sh "$port" 2>/dev/null) && break
    sleep 0.1
done
[[ -n ${ready:-} ]] || { cat "$folder/log" >&2; exit 1; }
grep -q '"compiled": *true' "$folder/log" || { echo "it does not run compiled" >&2; exit 1; }
kill "$node"
wait "$node"
node=
[[ -e $folder/data/1/store ]]
echo "The image is well: $(du -sh "$app" | cut -f 1), and a node starts from it, compiled."
