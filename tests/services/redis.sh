# shellcheck shell=bash
# shellcheck disable=SC2034 # The addresses are read where this file is sourced.
# A single Redis, a cluster of three nodes, and a master with a replica behind three sentinels. Sets
# TEST_REDIS_URL, TEST_REDIS_CLUSTER_URL and TEST_REDIS_SENTINEL_URL.

# start_redis_node NAME PORT OPTION…
start_redis_node() {
    local name=$1 port=$2 dir=$STATE/data/$1
    shift 2
    mkdir -p "$dir"
    launch "$name" redis-server --bind 127.0.0.1 --port "$port" --dir "$dir" \
        --appendonly yes --appendfsync everysec --save '' "$@"
}

is_redis_ready() { [[ $(redis-cli -h 127.0.0.1 -p "$1" ping) == PONG ]]; }

start_redis() {
    local port
    port=$(free_port)
    start_redis_node redis "$port"
    wait_for 20 Redis is_redis_ready "$port"
    TEST_REDIS_URL=redis://127.0.0.1:$port
}

is_cluster_ready() {
    local port info
    for port in "$@"; do
        info=$(redis-cli -h 127.0.0.1 -p "$port" cluster info) || return 1
        [[ $info == *cluster_state:ok* && $info == *cluster_known_nodes:3* ]] || return 1
    done
}

start_redis_cluster() {
    local ports=() port i
    for i in 1 2 3; do
        port=$(free_port)
        start_redis_node "redis-cluster-$i" "$port" --cluster-enabled yes --cluster-node-timeout 3000
        wait_for 20 'a node of the Redis cluster' is_redis_ready "$port"
        ports+=("$port")
    done
    redis-cli --cluster create "${ports[@]/#/127.0.0.1:}" --cluster-yes \
        >>"$STATE/redis-cluster-1.log" 2>&1
    wait_for 30 'the Redis cluster' is_cluster_ready "${ports[@]}"
    TEST_REDIS_CLUSTER_URL="redis-cluster://127.0.0.1:${ports[0]}?node=127.0.0.1:${ports[1]}&node=127.0.0.1:${ports[2]}"
}

is_sentinel_ready() {
    local quorum replicas
    quorum=$(redis-cli -h 127.0.0.1 -p "$1" sentinel ckquorum chatmesh) &&
        replicas=$(redis-cli -h 127.0.0.1 -p "$1" sentinel replicas chatmesh) &&
        [[ $quorum == 'OK 3 usable'* && $replicas == *role-reported* ]]
}

start_redis_sentinel() {
    local master replica sentinels=() port i
    master=$(free_port)
    start_redis_node redis-master "$master"
    wait_for 20 "the sentinels' master" is_redis_ready "$master"
    replica=$(free_port)
    start_redis_node redis-replica "$replica" --replicaof 127.0.0.1 "$master" --repl-diskless-sync-delay 0
    wait_for 20 "the sentinels' replica" is_redis_ready "$replica"
    for i in 1 2 3; do
        port=$(free_port)
        mkdir -p "$STATE/data/sentinel-$i"
        # A sentinel stores what it learns in its configuration, so each has a file of its own.
        cat >"$STATE/data/sentinel-$i/sentinel.conf" <<CONF
port $port
bind 127.0.0.1
dir $STATE/data/sentinel-$i
sentinel monitor chatmesh 127.0.0.1 $master 2
sentinel down-after-milliseconds chatmesh 1500
sentinel failover-timeout chatmesh 5000
CONF
        launch "sentinel-$i" redis-server "$STATE/data/sentinel-$i/sentinel.conf" --sentinel
        wait_for 20 'a sentinel' is_redis_ready "$port"
        sentinels+=("$port")
    done
    for port in "${sentinels[@]}"; do
        wait_for 30 'the sentinels' is_sentinel_ready "$port"
    done
    TEST_REDIS_SENTINEL_URL="redis-sentinel://127.0.0.1:${sentinels[0]}/0?sentinelServiceName=chatmesh&node=127.0.0.1:${sentinels[1]}&node=127.0.0.1:${sentinels[2]}"
}
