# shellcheck shell=bash
# shellcheck disable=SC2034 # The addresses are read where this file is sourced.
# One Kafka node (KRaft) on the loopback interface; sets TEST_KAFKA.

start_kafka() {
    local port controller dir=$STATE/data/kafka id
    port=$(free_port)
    controller=$(free_port)
    mkdir -p "$dir"
    cat >"$dir/server.properties" <<CONF
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$controller
listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$controller
advertised.listeners=PLAINTEXT://127.0.0.1:$port
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
log.dirs=$dir/data
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
num.partitions=12
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
CONF
    id=$(java -cp "$KAFKA_JARS/*" kafka.tools.StorageTool random-uuid 2>/dev/null)
    java -cp "$KAFKA_JARS/*" kafka.tools.StorageTool format -t "$id" \
        -c "$dir/server.properties" >>"$STATE/kafka.log" 2>&1
    launch kafka java -Xmx768m -cp "$KAFKA_JARS/*" kafka.Kafka "$dir/server.properties"
    TEST_KAFKA=127.0.0.1:$port
}

# Kafka is ready when a client gets metadata; an open port is not enough.
is_kafka_ready() { kcat -b "$TEST_KAFKA" -L -m 2 >/dev/null 2>&1; }

wait_for_kafka() { wait_for 60 Kafka is_kafka_ready; }

has_kafka_exited() {
    local name pid started
    read -r name pid started < <(grep '^kafka ' "$STATE/processes") && ! is_alive "$pid" "$started"
}

is_kafka_ready_or_exited() { is_kafka_ready || has_kafka_exited; }

# Waits for a Kafka that was just started. Kafka binds its ports seconds after they were chosen. If
# another process has bound one of them by then, Kafka is started once more on other ports.
finish_kafka_start() {
    wait_for 60 Kafka is_kafka_ready_or_exited || return
    is_kafka_ready && return
    grep -q 'Address already in use' "$STATE/kafka.log" || return
    say "another process uses a port of Kafka; starting Kafka on other ports"
    mv "$STATE/kafka.log" "$STATE/kafka-first.log"
    sed -i '/^kafka /d' "$STATE/processes"
    rm -rf "$STATE/data/kafka"
    start_kafka
    wait_for_kafka
}
