# shellcheck shell=bash
# shellcheck disable=SC2034 # The addresses are read where this file is sourced.
# One Kafka node (KRaft) on the loopback interface; sets TEST_KAFKA.

kafka_start() {
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

# Ready means that a client gets metadata, not that a port is open.
kafka_answers() { kcat -b "$TEST_KAFKA" -L -m 2 >/dev/null 2>&1; }

kafka_wait() { wait_for 60 Kafka kafka_answers; }

kafka_has_ended() {
    local name pid started
    read -r name pid started < <(grep '^kafka ' "$STATE/processes") && ! alive "$pid" "$started"
}

kafka_answers_or_has_ended() { kafka_answers || kafka_has_ended; }

# The same of one that was just started. Kafka takes its ports seconds after they were chosen; where
# somebody else on this machine was faster, it is started on others, once.
kafka_started() {
    wait_for 60 Kafka kafka_answers_or_has_ended || return
    kafka_answers && return
    grep -q 'Address already in use' "$STATE/kafka.log" || return
    say "a port of Kafka's was taken meanwhile; starting it on others"
    mv "$STATE/kafka.log" "$STATE/kafka-first.log"
    sed -i '/^kafka /d' "$STATE/processes"
    rm -rf "$STATE/data/kafka"
    kafka_start
    kafka_wait
}
