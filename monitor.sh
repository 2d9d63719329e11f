#!/usr/bin/env bash
# How all services are, a line for each, every 10 seconds: needs curl and jq.
#
#   ./monitor.sh              until Ctrl-C
#   ./monitor.sh --once       once; exit code 1 if a service is away
#   ./monitor.sh --every 2
#
# Services are those of the `ydht up` that runs on DATA_DIR (./data), by its up.json; without it,
# those of one terminal per service, at HOST (127.0.0.1) and the ports that README names. SERVICES
# names others: SERVICES='gateway=http://10.0.0.1:8080 node-1=http://10.0.0.2:8082' ./monitor.sh
set -euo pipefail

every_s=10
answer_s_max=2
once=no
host=${HOST:-127.0.0.1}
data_dir=${DATA_DIR:-./data}

usage() {
    sed -n 's/^# \{0,1\}//; 2,10p' "$0"
}

while (($#)); do
    case $1 in
        --once) once=yes ;;
        --every)
            every_s=${2:-}
            [[ $every_s =~ ^[1-9][0-9]{0,4}$ ]] || { echo "monitor.sh: --every takes whole seconds" >&2; exit 2; }
            shift
            ;;
        -h | --help) usage; exit 0 ;;
        *) echo "monitor.sh: there is no option $1; --help shows them" >&2; exit 2 ;;
    esac
    shift
done

for command in curl jq; do
    command -v "$command" >/dev/null || { echo "monitor.sh: $command is not installed" >&2; exit 2; }
done

trap 'exit 130' INT
trap 'exit 143' TERM

# NAME=URL, a line each.
services() {
    if [[ -n ${SERVICES:-} ]]; then
        tr -s ' ' '\n' <<<"$SERVICES"
    elif [[ -r $data_dir/up.json ]]; then
        jq -r '
            (to_entries[]
                | select(.value | strings | startswith("http"))
                | "\(.key)=\(.value)"),
            (.nodes // {} | to_entries[] | "\(.key)=\(.value.url)")' "$data_dir/up.json"
    else
        cat <<END
gateway=http://$host:${GATEWAY_PORT:-8080}
usermanager=http://$host:${USERMANAGER_PORT:-8081}
node-1=http://$host:8082
node-2=http://$host:8083
node-3=http://$host:8084
replicator=http://$host:${REPLICATOR_PORT:-8085}
keygen=http://$host:${KEYGEN_PORT:-8086}
END
    fi
}

# What there is to say of any service, and of each kind: by the figures that it has.
read -r -d '' line <<'END' || true
def mib: . / 1048576 | floor | "\(.) MiB";
def sum(prefix): [to_entries[] | select(.key | startswith(prefix)) | .value] | add // 0;
[
    (if has("key_count") then "keys \(.key_count)", "log \(.wal_size | mib)" else empty end),
    (if has("total_replications") then
        "replications \(.total_replications)", "failed \(.failed_replicas)",
        "queue \(.queue_size)", "hints \(sum("hints_waiting."))",
        "ack \(.average_ack_time_ms) ms", "lag \(.max_replication_lag_ms) ms"
    else empty end),
    (if has("keys_issued") then "ids \(.keys_issued)" else empty end),
    (if has("key_count") or has("total_replications") then empty else
        "requests \(sum("http_requests."))", "5xx \(sum("http_requests.5"))",
        "p50 \(.http_request_ms_p50) ms", "p99 \(.http_request_ms_p99) ms"
    end),
    "memory \(.process_resident_memory_bytes | mib)"
] | join("  ")
END

# One line about the service $1 at $2; fails if it is away.
look() {
    local answer words
    if ! answer=$(curl --silent --show-error --fail --noproxy '*' --max-time "$answer_s_max" \
        --header 'Accept: application/json' "$2/metrics" 2>&1); then
        printf '%-14s AWAY  %s: %s\n' "$1" "$2" "${answer##*$'\n'}"
        return 1
    fi
    if ! words=$(jq -er "$line" <<<"$answer" 2>/dev/null); then
        printf '%-14s AWAY  %s answers what no service of ours would\n' "$1" "$2"
        return 1
    fi
    printf '%-14s %s\n' "$1" "$words"
}

look_at_all() {
    local name url found=0 away=0
    date '+%Y-%m-%d %H:%M:%S'
    while IFS='=' read -r name url; do
        [[ -n $name ]] || continue
        found=$((found + 1))
        look "$name" "${url%/}" || away=$((away + 1))
    done < <(services)
    ((found)) || { echo "no services are named" >&2; return 1; }
    ((away == 0))
}

if [[ $once == yes ]]; then
    look_at_all
    exit
fi
while true; do
    look_at_all || true
    echo
    sleep "$every_s"
done
