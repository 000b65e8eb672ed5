# shellcheck shell=bash
# What the service scripts share: messages, free ports, waiting, and the list of started processes.
#
# A started process is one line of $STATE/processes: name, process id, and the start time by the
# kernel's clock. The start time tells our process from a later one that was given the same id.

say() { printf '%s\n' "tests/run: $*" >&2; }

die() {
    say "$*"
    exit 1
}

# A port that no socket has, below the range that the kernel gives to outgoing connections. None is
# given twice: a server that is still starting has not taken its port yet.
free_port() {
    local port
    while :; do
        port=$((16000 + (RANDOM * 32768 + RANDOM) % 6000))
        # A Redis Cluster node also listens 10,000 above its port.
        if ! grep -qx "$port" "$STATE/ports" 2>/dev/null &&
            ! port_taken "$port" && ! port_taken $((port + 10000)); then
            printf '%s\n' "$port" | tee -a "$STATE/ports"
            return
        fi
    done
}

# Whether any socket has it, listening or not: an outgoing connection keeps a server from it too.
port_taken() {
    local hex
    printf -v hex '%04X' "$1"
    { cat /proc/net/tcp /proc/net/tcp6 2>/dev/null || true; } | awk -v end=":$hex" '
        substr($2, length($2) - 4) == end { taken = 1 }
        END { exit !taken }'
}

# wait_for SECONDS WHAT COMMAND…: until the command succeeds.
wait_for() {
    local deadline=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        if ((SECONDS >= deadline)); then
            say "$what did not get ready in time"
            return 1
        fi
        sleep 0.2
    done
}

start_time() {
    local stat fields
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    # The command's name (second field, in parentheses) may hold blanks.
    read -ra fields <<<"${stat##*) }"
    printf '%s\n' "${fields[19]}"
}

# launch NAME COMMAND…: in a session of its own, so that Ctrl-C reaches the tests and not the
# services, and without the lock's descriptor, which would outlive us.
launch() {
    local name=$1 pid
    shift
    setsid "$@" >>"$STATE/$name.log" 2>&1 </dev/null 9>&- &
    pid=$!
    printf '%s %s %s\n' "$name" "$pid" "$(start_time "$pid")" >>"$STATE/processes"
}

alive() {
    local pid=$1 started=$2 now
    now=$(start_time "$pid") && [[ $now == "$started" ]]
}

# Whether every recorded process still runs; false when none is recorded.
all_alive() {
    local name pid started
    [[ -s $STATE/processes ]] || return 1
    while read -r name pid started; do
        alive "$pid" "$started" || {
            say "$name is gone"
            return 1
        }
    done <"$STATE/processes"
}

# Ends what is recorded, the last started first, and forgets its data.
stop_services() {
    local name pid started deadline
    if [[ -s $STATE/processes ]]; then
        while read -r name pid started; do
            # A stopped process (SIGSTOP) would not see the signal.
            alive "$pid" "$started" && kill -TERM "$pid" && kill -CONT "$pid"
        done < <(tac "$STATE/processes") 2>/dev/null || true
        deadline=$((SECONDS + 15))
        while read -r name pid started; do
            while alive "$pid" "$started"; do
                if ((SECONDS >= deadline)); then
                    kill -KILL "$pid" 2>/dev/null || true
                fi
                sleep 0.1
            done
        done <"$STATE/processes"
    fi
    rm -rf "${STATE:?}/data" "$STATE/processes" "$STATE/ports" "$STATE/env"
}
