# shellcheck shell=bash
# Shared by the service scripts: messages, free ports, waiting, and the list of started processes.
#
# Each started process has a line in $STATE/processes: name, process id and start time. The start time
# (from the kernel) distinguishes it from a later process with the same id.

say() { printf '%s\n' "tests/run: $*" >&2; }

die() {
    say "$*"
    exit 1
}

# Prints a port that no socket uses, below the range that the kernel assigns to outgoing connections.
# No port is printed twice, because a server that is still starting has not bound its port yet.
free_port() {
    local port
    while :; do
        port=$((16000 + (RANDOM * 32768 + RANDOM) % 6000))
        # A node of a Redis cluster also listens 10,000 above its port.
        if ! grep -qx "$port" "$STATE/ports" 2>/dev/null &&
            ! is_port_used "$port" && ! is_port_used $((port + 10000)); then
            printf '%s\n' "$port" | tee -a "$STATE/ports"
            return
        fi
    done
}

# Whether any socket uses the port. Outgoing connections count, because they block a server as well.
is_port_used() {
    local hex
    printf -v hex '%04X' "$1"
    { cat /proc/net/tcp /proc/net/tcp6 2>/dev/null || true; } | awk -v end=":$hex" '
        substr($2, length($2) - 4) == end { used = 1 }
        END { exit !used }'
}

# wait_for SECONDS WHAT COMMAND…: repeats the command until it succeeds.
wait_for() {
    local deadline=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        if ((SECONDS >= deadline)); then
            say "$what was not ready in time"
            return 1
        fi
        sleep 0.2
    done
}

process_start_time() {
    local stat fields
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    # The second field, the command in parentheses, may contain spaces.
    read -ra fields <<<"${stat##*) }"
    printf '%s\n' "${fields[19]}"
}

# launch NAME COMMAND…: starts a service in a session of its own, so that Ctrl-C reaches only the
# tests, and without the descriptor of the lock, which the service would otherwise hold.
launch() {
    local name=$1 pid
    shift
    setsid "$@" >>"$STATE/$name.log" 2>&1 </dev/null 9>&- &
    pid=$!
    printf '%s %s %s\n' "$name" "$pid" "$(process_start_time "$pid")" >>"$STATE/processes"
}

is_alive() {
    local pid=$1 started=$2 now
    now=$(process_start_time "$pid") && [[ $now == "$started" ]]
}

# Whether all recorded processes run; false if none is recorded.
are_all_alive() {
    local name pid started
    [[ -s $STATE/processes ]] || return 1
    while read -r name pid started; do
        is_alive "$pid" "$started" || {
            say "$name is not running"
            return 1
        }
    done <"$STATE/processes"
}

# Stops all recorded processes, the last started first, and deletes their data.
stop_services() {
    local name pid started deadline
    if [[ -s $STATE/processes ]]; then
        while read -r name pid started; do
            # A paused process (SIGSTOP) handles SIGTERM only after SIGCONT.
            is_alive "$pid" "$started" && kill -TERM "$pid" && kill -CONT "$pid"
        done < <(tac "$STATE/processes") 2>/dev/null || true
        deadline=$((SECONDS + 15))
        while read -r name pid started; do
            while is_alive "$pid" "$started"; do
                if ((SECONDS >= deadline)); then
                    kill -KILL "$pid" 2>/dev/null || true
                fi
                sleep 0.1
            done
        done <"$STATE/processes"
    fi
    rm -rf "${STATE:?}/data" "$STATE/processes" "$STATE/ports" "$STATE/env"
}
