# shellcheck shell=bash
# shellcheck disable=SC2034 # The addresses are read where this file is sourced.
# One Redis; a cluster of three; one with a replica behind three sentinels. Sets TEST_REDIS_URL,
# TEST_REDIS_CLUSTER_URL and TEST_REDIS_SENTINEL_URL.

# redis_node NAME PORT OPTION…
redis_node() {
    local name=$1 port=$2 dir=$STATE/data/$1
    shift 2
    mkdir -p "$dir"
    launch "$name" redis-server --bind 127.0.0.1 --port "$port" --dir "$dir" \
        --appendonly yes --appendfsync everysec --save '' "$@"
}

redis_answers() { [[ $(redis-cli -h 127.0.0.1 -p "$1" ping) == PONG ]]; }

redis_start() {
    local port
    port=$(free_port)
    redis_node redis "$port"
    wait_for 20 Redis redis_answers "$port"
    TEST_REDIS_URL=redis://127.0.0.1:$port
}

cluster_ok() {
    local port info
    for port in "$@"; do
        info=$(redis-cli -h 127.0.0.1 -p "$port" cluster info) || return 1
        [[ $info == *cluster_state:ok* && $info == *cluster_known_nodes:3* ]] || return 1
    done
}

redis_cluster_start() {
    local ports=() port i
    for i in 1 2 3; do
        port=$(free_port)
        redis_node "redis-cluster-$i" "$port" --cluster-enabled yes --cluster-node-timeout 3000
        wait_for 20 'a node of the Redis cluster' redis_answers "$port"
        ports+=("$port")
    done
    redis-cli --cluster create "${ports[@]/#/127.0.0.1:}" --cluster-yes \
        >>"$STATE/redis-cluster-1.log" 2>&1
    wait_for 30 'the Redis cluster' cluster_ok "${ports[@]}"
    TEST_REDIS_CLUSTER_URL="redis-cluster://127.0.0.1:${ports[0]}?node=127.0.0.1:${ports[1]}&node=127.0.0.1:${ports[2]}"
}

sentinel_ok() {
    local quorum replicas
    quorum=$(redis-cli -h 127.0.0.1 -p "$1" sentinel ckquorum chatmesh) &&
        replicas=$(redis-cli -h 127.0.0.1 -p "$1" sentinel replicas chatmesh) &&
        [[ $quorum == 'OK 3 usable'* && $replicas == *role-reported* ]]
}

redis_sentinel_start() {
    local master replica sentinels=() port i
    master=$(free_port)
    redis_node redis-master "$master"
    wait_for 20 "the sentinels' master" redis_answers "$master"
    replica=$(free_port)
    redis_node redis-replica "$replica" --replicaof 127.0.0.1 "$master" --repl-diskless-sync-delay 0
    wait_for 20 "the sentinels' replica" redis_answers "$replica"
    for i in 1 2 3; do
        port=$(free_port)
        mkdir -p "$STATE/data/sentinel-$i"
        # A sentinel writes what it learns into its configuration, so each has a file of its own.
        cat >"$STATE/data/sentinel-$i/sentinel.conf" <<CONF
port $port
bind 127.0.0.1
dir $STATE/data/sentinel-$i
sentinel monitor chatmesh 127.0.0.1 $master 2
sentinel down-after-milliseconds chatmesh 1500
sentinel failover-timeout chatmesh 5000
CONF
        launch "sentinel-$i" redis-server "$STATE/data/sentinel-$i/sentinel.conf" --sentinel
        wait_for 20 'a sentinel' redis_answers "$port"
        sentinels+=("$port")
    done
    for port in "${sentinels[@]}"; do
        wait_for 30 'the sentinels' sentinel_ok "$port"
    done
    TEST_REDIS_SENTINEL_URL="redis-sentinel://127.0.0.1:${sentinels[0]}/0?sentinelServiceName=chatmesh&node=127.0.0.1:${sentinels[1]}&node=127.0.0.1:${sentinels[2]}"
}
