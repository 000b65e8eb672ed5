//! The table of settings: for each setting its key in the file, its environment variable, default,
//! kind, roles and description. Parsing, the detection of unknown keys, `config show`, the
//! commented default file and `docs/settings.md` all use this table.

use self::DefaultValue::{Derived, Fixed, PerRole};
use super::Role;
use super::kind::{Kind, Unit};

/// The value of a setting that no source sets.
#[derive(Debug, Clone, Copy)]
pub(super) enum DefaultValue {
    /// The same default for all roles, as a text that is parsed like a variable's value.
    Fixed(&'static str),
    /// A default for each role, as a text that is parsed like a variable's value.
    PerRole(&'static [(Role, &'static str)]),
    /// No value, or a value that is derived from other settings. The text describes the default for
    /// people.
    Derived(&'static str),
}

/// A setting: one row of the table.
#[derive(Debug)]
pub(super) struct Key {
    /// The key in the file, with the section: `section.name`.
    pub(super) name: &'static str,
    /// The environment variable that sets the key for every role.
    pub(super) variable: &'static str,
    /// Additional variables that set the key, each for one role only.
    pub(super) role_variables: &'static [(Role, &'static str)],
    pub(super) default: DefaultValue,
    pub(super) kind: Kind,
    /// Whether the value is hidden wherever settings are printed.
    pub(super) secret: bool,
    /// The roles that use the setting. Other roles accept the setting and ignore its value.
    pub(super) roles: &'static [Role],
    pub(super) description: &'static str,
}

impl Key {
    /// The text of the default for `role`. `None` if the default is derived, or the role has none.
    pub(super) fn default_text(&self, role: Role) -> Option<&'static str> {
        match self.default {
            Fixed(text) => Some(text),
            PerRole(texts) => texts
                .iter()
                .find(|(named, _)| *named == role)
                .map(|(_, text)| *text),
            Derived(_) => None,
        }
    }

    /// The variables that set this key for `role`, in descending precedence.
    pub(super) fn variables(&self, role: Role) -> impl Iterator<Item = &'static str> {
        let of_role = self
            .role_variables
            .iter()
            .filter(move |(named, _)| *named == role);
        std::iter::once(self.variable).chain(of_role.map(|(_, variable)| *variable))
    }
}

/// A group of settings.
#[derive(Debug)]
pub(super) struct Section {
    /// The part before the dot in the keys of the group.
    pub(super) name: &'static str,
    /// Heading in `docs/settings.md`.
    pub(super) title: &'static str,
}

/// The sections in the order of the table.
pub(super) const SECTIONS: &[Section] = &[
    section("server", "Process"),
    section("log", "Logs"),
    section("metrics", "Health and metrics"),
    section("traces", "Traces"),
    section("kafka", "Kafka"),
    section("redis", "Redis"),
    section("auth", "Authentication"),
    section("gateway", "Gateway"),
    section("limits", "Limits"),
    section("worker", "AI worker"),
    section("pipeline", "Record processing in worker and relay"),
    section("model", "Model"),
    section("history", "Earlier turns in the prompt"),
    section("relay", "Relay"),
    section("keep", "Retention in the fan-out"),
    section("embedded", "Storage of all-in-one"),
    section("interop", "Interoperation with the original system"),
];

const fn section(name: &'static str, title: &'static str) -> Section {
    Section { name, title }
}

const GATEWAY: &[Role] = &[Role::Gateway, Role::AllInOne];
const WORKER: &[Role] = &[Role::AiWorker, Role::AllInOne];
const RELAY: &[Role] = &[Role::Relay, Role::AllInOne];
const CONSUMERS: &[Role] = &[Role::AiWorker, Role::Relay, Role::AllInOne];
const WORKER_AND_RELAY: &[Role] = &[Role::AiWorker, Role::Relay];
const DISTRIBUTED: &[Role] = &[Role::Gateway, Role::AiWorker, Role::Relay];
const ALL_IN_ONE: &[Role] = &[Role::AllInOne];
const ALL: &[Role] = &Role::ALL;

macro_rules! keys {
    ($( $variable:ident $name:literal $kind:expr, $default:expr, $roles:expr,
        $(secret: $secret:literal,)? $(role_variables: $role_variables:expr,)? $description:literal; )*) => {
        $(
            #[doc = $description]
            pub(super) const $variable: Key = Key {
                name: $name,
                variable: stringify!($variable),
                role_variables: keys!(@role_variables $($role_variables)?),
                default: $default,
                kind: $kind,
                secret: keys!(@secret $($secret)?),
                roles: $roles,
                description: $description,
            };
        )*
        /// All settings, in the order in which documents list them.
        pub(super) const TABLE: &[&Key] = &[$(&$variable),*];
    };
    (@secret) => { false };
    (@secret $secret:literal) => { $secret };
    (@role_variables) => { &[] };
    (@role_variables $role_variables:expr) => { $role_variables };
}

/// A positive number of milliseconds, at most one day.
const POSITIVE_MS: Kind = milliseconds(1, 86_400_000);
/// A positive number of seconds, at most one year.
const POSITIVE_SECONDS: Kind = seconds(1, 366 * 86_400);

const fn count(min: u64, max: u64) -> Kind {
    integer(min, max, Unit::None)
}

const fn bytes(min: u64, max: u64) -> Kind {
    integer(min, max, Unit::Bytes)
}

const fn characters(min: u64, max: u64) -> Kind {
    integer(min, max, Unit::Characters)
}

const fn tokens(min: u64, max: u64) -> Kind {
    integer(min, max, Unit::Tokens)
}

const fn milliseconds(min: u64, max: u64) -> Kind {
    integer(min, max, Unit::Milliseconds)
}

const fn seconds(min: u64, max: u64) -> Kind {
    integer(min, max, Unit::Seconds)
}

const fn integer(min: u64, max: u64, unit: Unit) -> Kind {
    Kind::Int { min, max, unit }
}

keys! {
    SERVER_ID "server.id" Kind::Name, Derived("derived from the host name, the role and the process id"), ALL,
        "Name of this process in records, metrics, health responses and logs. Every gateway needs \
         a name of its own.";
    HOST "server.host" Kind::Host, PerRole(&[(Role::Gateway, "0.0.0.0"), (Role::AllInOne, "127.0.0.1")]),
        GATEWAY,
        "Address on which the gateway accepts connections.";
    PORT "server.port" count(0, 65535), Fixed("8000"), GATEWAY,
        "Port on which the gateway accepts connections. 0 chooses a free port.";
    DRAIN_TIMEOUT_MS "server.drain_timeout_ms" POSITIVE_MS, Fixed("25000"), ALL,
        "Time after SIGTERM within which the process finishes the messages in progress.";

    APP_NAME "log.app_name" Kind::Text, Derived("the role's name"), ALL,
        "Service name in every log line.";
    LOG_LEVEL "log.level" Kind::LogLevel, Fixed("info"), ALL,
        "Lowest level of chatmesh's log lines; libraries log from info. Accepts Python's level \
         names too, or a filter such as info,chatmesh=debug.";
    LOG_FORMAT "log.format" Kind::Choice(&["auto", "json", "pretty"]), Fixed("auto"), ALL,
        "Format of log lines. json writes one JSON object per line, pretty is for people, and \
         auto chooses pretty in a terminal.";
    LOG_FOLDER "log.folder" Kind::Text, Derived("none"), ALL,
        "Directory for daily log files, written in addition to standard output.";
    LOG_FILES "log.files" count(1, 3650), Fixed("14"), ALL,
        "Number of daily log files that are retained for each service.";
    METRICS_HOST "metrics.host" Kind::Host, Fixed("0.0.0.0"), WORKER_AND_RELAY,
        "Address on which a worker or relay serves health and metrics.";
    METRICS_PORT "metrics.port" count(0, 65535),
        PerRole(&[(Role::AiWorker, "8002"), (Role::Relay, "8001")]), WORKER_AND_RELAY,
        "Port on which a worker or relay serves health and metrics. A gateway serves them on its \
         own port.";

    OTEL_EXPORTER_OTLP_ENDPOINT "traces.url" Kind::HttpUrl, Derived("none: traces are propagated, but not recorded"), ALL,
        "OTLP/HTTP collector that receives the traces, such as http://localhost:4318. /v1/traces \
         is appended.";
    OTEL_EXPORTER_OTLP_HEADERS "traces.headers" Kind::Map, Fixed(""), ALL, secret: true,
        "Headers of requests to the collector, as key=value,key=value. Values may be \
         percent-encoded.";
    OTEL_EXPORTER_OTLP_PROTOCOL "traces.protocol" Kind::Choice(&["http/protobuf"]), Fixed("http/protobuf"), ALL,
        "Protocol of the collector. gRPC is not supported; collectors accept HTTP on port 4318.";
    OTEL_EXPORTER_OTLP_TIMEOUT "traces.timeout_ms" POSITIVE_MS, Fixed("10000"), ALL,
        "Time after which a request to the collector fails. Its spans are lost then.";
    OTEL_SERVICE_NAME "traces.service_name" Kind::Text, Derived("chatmesh-, followed by the role's name"), ALL,
        "Service name in traces.";
    OTEL_RESOURCE_ATTRIBUTES "traces.resource_attributes" Kind::Map, Fixed(""), ALL,
        "Additional resource attributes in traces, as key=value,key=value. Values may be \
         percent-encoded.";
    OTEL_TRACES_SAMPLER "traces.sampler" Kind::Choice(&["always_on", "always_off", "traceidratio",
            "parentbased_always_on", "parentbased_always_off", "parentbased_traceidratio"]),
        Fixed("parentbased_always_on"), ALL,
        "Which traces are recorded. The parentbased samplers follow the sampled flag of the \
         client's traceparent; for traces that begin in chatmesh they behave like the \
         sampler that the remaining part of their name denotes.";
    OTEL_TRACES_SAMPLER_ARG "traces.sampler_arg" Kind::Float { min: 0.0, max: 1.0 }, Fixed("1"), ALL,
        "Fraction of traces that a traceidratio sampler records.";

    KAFKA_BOOTSTRAP_SERVERS "kafka.bootstrap_servers" Kind::List, Fixed("localhost:9092"), DISTRIBUTED,
        "Brokers to connect to first, each as host:port.";
    MESSAGES_TOPIC "kafka.messages_topic" Kind::Topic, Fixed("incoming_messages"), DISTRIBUTED,
        role_variables: &[(Role::Gateway, "PRODUCE_TOPIC"), (Role::AiWorker, "CONSUME_TOPIC")],
        "Topic of the users' messages. A gateway also accepts it as PRODUCE_TOPIC, a worker as \
         CONSUME_TOPIC.";
    RESPONSES_TOPIC "kafka.responses_topic" Kind::Topic, Fixed("responses"), DISTRIBUTED,
        role_variables: &[(Role::AiWorker, "PRODUCE_TOPIC"), (Role::Relay, "CONSUME_TOPIC")],
        "Topic of the terminal records, one per message. A worker also accepts it as \
         PRODUCE_TOPIC, a relay as CONSUME_TOPIC.";
    KAFKA_TOPIC_PARTITIONS "kafka.topic_partitions" count(1, 10_000), Fixed("12"), DISTRIBUTED,
        "Number of partitions of each topic that chatmesh creates because it does not exist.";
    KAFKA_REPLICATION_FACTOR "kafka.replication_factor" count(1, 100), Fixed("1"), DISTRIBUTED,
        "Number of replicas of each topic that chatmesh creates. A warning is logged if an \
         existing topic has fewer replicas.";
    KAFKA_LINGER_MS "kafka.linger_ms" milliseconds(0, 60_000), Fixed("1"), DISTRIBUTED,
        "Time for which the producer collects records into a batch. 10 ms, the value of the \
         original system, adds about 20 ms of latency per message and does not increase \
         throughput.";
    PRODUCE_TIMEOUT_MS "kafka.produce_timeout_ms" POSITIVE_MS, Fixed("10000"), ALL,
        "Time limit for the log's acknowledgement of a record, and so for accepting a message.";
    KAFKA_PROPERTIES "kafka.properties" Kind::Map, Fixed(""), DISTRIBUTED,
        "Further librdkafka properties, as key=value,key=value or as a table in the file. They \
         take precedence over the properties that chatmesh sets. A comma in a value is written as \
         \\,.";

    REDIS_URL "redis.url" Kind::RedisUrl, Derived("built from redis.host, redis.port, redis.password and redis.db"), DISTRIBUTED, secret: true,
        "Redis server, cluster or sentinel: a URL with the scheme redis, redis-cluster or \
         redis-sentinel, or with TLS rediss, rediss-cluster or rediss-sentinel. A sentinel's URL \
         names the master: redis-sentinel://HOST:26379/0?sentinelServiceName=NAME. Takes \
         precedence over the four settings below.";
    REDIS_HOST "redis.host" Kind::Text, Fixed("localhost"), DISTRIBUTED,
        "Host of the Redis server.";
    REDIS_PORT "redis.port" count(1, 65535), Fixed("6379"), DISTRIBUTED,
        "Port of the Redis server.";
    REDIS_PASSWORD "redis.password" Kind::Text, Derived("none"), DISTRIBUTED, secret: true,
        "Password of the Redis server.";
    REDIS_DB "redis.db" count(0, 1023), Fixed("0"), DISTRIBUTED,
        "Number of the database on the Redis server.";
    REDIS_COMMAND_TIMEOUT_MS "redis.command_timeout_ms" POSITIVE_MS, Fixed("2000"), DISTRIBUTED,
        "Time after which a Redis command counts as failed.";

    AUTH_MODE "auth.mode" Kind::Choice(&["stored", "jwt", "open"]),
        Derived("stored; open in all-in-one on a loopback address"), GATEWAY,
        "How tokens are checked. stored compares with the token in Redis, as the original system \
         does; jwt verifies a signature; open accepts every token that is not empty.";
    JWT_SECRET "auth.jwt_secret" Kind::Text, Derived("none"), GATEWAY, secret: true,
        "Key of tokens that are signed with HS256: at least 32 bytes, used as they are. \
         AUTH_MODE=jwt requires exactly one of this setting and the next two.";
    JWT_PUBLIC_KEY_FILE "auth.jwt_public_key_file" Kind::Text, Derived("none"), GATEWAY,
        "File with the public key (PEM) of signed tokens: RSA for RS256, P-256 for ES256, or \
         Ed25519 for EdDSA.";
    JWT_JWKS "auth.jwt_jwks" Kind::Text, Derived("none"), GATEWAY,
        "JSON Web Key Set of signed tokens, as a file or an http(s) URL. It is reloaded when keys \
         change.";
    JWT_AUDIENCE "auth.jwt_audience" Kind::List, Derived("none: not checked"), GATEWAY,
        "Accepted audiences. A signed token must name one of them in aud.";
    JWT_ISSUER "auth.jwt_issuer" Kind::List, Derived("none: not checked"), GATEWAY,
        "Accepted issuers. A signed token must name one of them in iss.";
    TOKEN_ENDPOINT "auth.token_endpoint" Kind::Choice(&["off", "admin", "open"]),
        Derived("admin if an admin key is set, otherwise off"), GATEWAY,
        "Who may call POST /token. off: no caller. admin: callers with the admin key. open: \
         any caller, for any user, as in the original system; for demonstrations only.";
    ADMIN_KEY "auth.admin_key" Kind::Text, Derived("none"), GATEWAY, secret: true,
        "Key of administrative HTTP calls, which send it as Authorization: Bearer.";
    TOKEN_TTL "auth.token_ttl" POSITIVE_SECONDS, Fixed("3600"), GATEWAY,
        "Lifetime of the tokens that chatmesh issues.";

    CHAT_PAGE "gateway.chat_page" Kind::Choice(&["on", "off"]), Fixed("on"), GATEWAY,
        "Whether the gateway serves the chat page and chatmesh.js.";
    ALLOW_ORIGINS "gateway.allow_origins" Kind::List, Fixed("*"), GATEWAY,
        "Origins of web pages that may connect. * allows every origin.";
    ALLOW_CREDENTIALS "gateway.allow_credentials" Kind::Bool, Fixed("false"), GATEWAY,
        "Whether cross-origin requests may carry credentials (CORS). Counts as false while every \
         origin is allowed.";
    MAX_CONTENT_CHARS "gateway.max_content_chars" characters(1, 200_000), Fixed("8000"), GATEWAY,
        "Maximum length of a message's content.";
    MAX_FRAME_BYTES "gateway.max_frame_bytes" bytes(256, 900_000), Fixed("65536"), GATEWAY,
        "Maximum size of a frame that a client may send.";
    OUTBOUND_QUEUE_BYTES "gateway.outbound_queue_bytes" bytes(65_536, 1 << 30), Fixed("1048576"), GATEWAY,
        "Maximum size of one connection's outbound queue. When a slow client has filled it, the \
         gateway first drops deltas (chatmesh.v1 only) and then closes the connection.";
    HEAD_TIMEOUT_MS "gateway.head_timeout_ms" POSITIVE_MS, Fixed("10000"), GATEWAY,
        "Time within which a client must send the head of its HTTP request.";
    PING_INTERVAL_MS "gateway.ping_interval_ms" POSITIVE_MS, Fixed("25000"), GATEWAY,
        "Time without a frame from the client after which the gateway sends a ping.";
    PING_TIMEOUT_MS "gateway.ping_timeout_ms" POSITIVE_MS, Fixed("10000"), GATEWAY,
        "Time within which a client must answer a ping. Otherwise the connection is closed.";
    OPEN_CHECK_MS "gateway.open_check_ms" milliseconds(100, 600_000), Fixed("5000"), GATEWAY,
        "Interval at which the gateway reads the mailboxes of users with pending messages, in case \
         a published terminal frame was lost.";

    USER_RATE_LIMIT_MAX_REQUESTS "limits.user_requests" count(0, 1_000_000), Fixed("10"), ALL,
        "Maximum number of messages that one user may send within the window, over all gateways. 0 \
         disables the limit.";
    USER_RATE_LIMIT_WINDOW_SECONDS "limits.user_window" seconds(1, 86_400), Fixed("60"), ALL,
        "Window of the message rate. All messages of a window may be sent at once; after that, \
         one message is allowed each time that the window divided by their number has passed.";
    RATE_LIMIT_FAIL "limits.fail" Kind::Choice(&["closed", "open"]), Fixed("closed"), GATEWAY,
        "Treatment of messages while Redis is unavailable. closed rejects them, open accepts them \
         without counting.";
    USER_DAILY_TOKENS "limits.user_daily_tokens" tokens(0, 1_000_000_000_000), Fixed("0"), ALL,
        "Maximum number of model tokens that one user may use per day (UTC), as reported by the \
         provider. 0 disables the limit.";
    USER_MAX_CONVERSATIONS "limits.user_conversations" count(0, 1_000_000), Fixed("200"), ALL,
        "Maximum number of conversations of one user. 0 disables the limit.";
    USER_MAX_PENDING "limits.user_pending" count(0, 10_000), Fixed("32"), ALL,
        "Maximum number of messages of one user that may wait for their answers. 0 disables the \
         limit.";
    USER_MAX_CONNECTIONS "limits.user_connections" count(0, 1_000_000), Fixed("20"), GATEWAY,
        "Maximum number of WebSocket connections of one user to one gateway. 0 disables the limit.";
    ADDRESS_MAX_CONNECTIONS "limits.address_connections" count(0, 10_000_000), Fixed("0"), GATEWAY,
        "Maximum number of WebSocket connections from one address to one gateway, and of other \
         HTTP connections. 0 disables the limit.";
    MAX_CONNECTIONS "limits.connections" count(0, 10_000_000), Fixed("0"), GATEWAY,
        "Maximum number of WebSocket connections to one gateway. 0 disables the limit.";
    MAX_HTTP_CONNECTIONS "limits.http_connections" count(0, 10_000_000), Fixed("1024"), GATEWAY,
        "Maximum number of connections to one gateway that are not, or not yet, WebSockets. At the \
         limit, the connection that has been silent for longest is closed. 0 disables the limit.";
    MAX_NEW_CONNECTIONS "limits.new_connections" count(0, 1_000_000), Fixed("0"), GATEWAY,
        "Maximum number of new WebSocket connections to one gateway per second. 0 disables the \
         limit.";
    TRUSTED_PROXIES "limits.trusted_proxies" Kind::List, Derived("none"), GATEWAY,
        "Addresses and networks, such as 10.0.0.0/8, of proxies whose X-Forwarded-For header is \
         trusted.";

    MAX_WORKERS "worker.max_workers" count(1, 10_000), Fixed("50"), WORKER,
        "Maximum number of messages that one process answers at the same time.";
    MESSAGE_MAX_AGE "worker.message_max_age" POSITIVE_SECONDS, Fixed("43200"), ALL,
        "Age above which a message that still waits is no longer answered; it fails with the \
         error expired.";
    MESSAGE_DEADLINE_MS "worker.message_deadline_ms" POSITIVE_MS, Fixed("300000"), WORKER,
        "Time limit for the answer to one message, including all attempts.";
    MAX_ANSWER_BYTES "worker.max_answer_bytes" bytes(1024, 64 << 20), Fixed("262144"), WORKER,
        "Maximum size of an answer with all its parts, counted as JSON. A longer answer is cut off \
         at this size.";
    REASONING "worker.reasoning" Kind::Choice(&["show", "keep", "drop"]), Fixed("show"), WORKER,
        "What clients receive of a model's reasoning. show: the text before the terminal frame, \
         which has only its length. keep: the text also in the terminal frame and in the history. \
         drop: nothing. Reasoning is never part of a later prompt.";
    STREAM_FLUSH_MS "worker.stream_flush_ms" milliseconds(0, 10_000), Fixed("30"), WORKER,
        "Time for which the text of an answer is collected into one delta.";
    STREAM_FLUSH_BYTES "worker.stream_flush_bytes" bytes(1, 1 << 20), Fixed("1024"), WORKER,
        "Length of the collected text at which a delta is published at once.";
    MAX_DELIVERIES "pipeline.max_deliveries" count(1, 1000), Fixed("5"), CONSUMERS,
        "Maximum number of times that one process tries a record that fails, and that workers \
         begin one message. Beyond that, the record becomes a dead letter.";
    READ_AHEAD_BYTES "pipeline.read_ahead_bytes" bytes(65_536, 4 << 30), Fixed("8388608"), CONSUMERS,
        "Size of the records in memory at which the consumer is paused.";

    OPENAI_API_KEY "model.api_key" Kind::Text, Derived("none; without model.base_url too, the demo model answers"), WORKER, secret: true,
        "Key of the model's API.";
    OPENAI_BASE_URL "model.base_url" Kind::HttpUrl, Derived("https://api.openai.com/v1 if an API key is set"), WORKER,
        "Base URL of an OpenAI-compatible API. Local servers need no key.";
    OPENAI_MODEL "model.name" Kind::Text, Fixed("gpt-3.5-turbo"), WORKER,
        "Name of the model.";
    SYSTEM_PROMPT "model.system_prompt" Kind::TextOrEmpty, Fixed("You are a helpful assistant."), WORKER,
        "Instructions at the start of every prompt. An empty text in a file or flag disables them.";
    OPENAI_MAX_TOKENS "model.max_tokens" tokens(1, 1_000_000), Fixed("500"), WORKER,
        "Maximum length of the answer that is requested from the model.";
    OPENAI_TEMPERATURE "model.temperature" Kind::Float { min: 0.0, max: 2.0 }, Fixed("0.7"), WORKER,
        "Sampling temperature.";
    OPENAI_CONTEXT_TOKENS "model.context_tokens" tokens(2, 100_000_000), Fixed("16385"), WORKER,
        "Length of the model's context window, which prompt and answer share.";
    OPENAI_TIMEOUT_MS "model.timeout_ms" POSITIVE_MS, Fixed("2000"), WORKER,
        "Time within which the model must send its first token. Local models that load at the \
         first request, and reasoning models, need more.";
    OPENAI_IDLE_TIMEOUT_MS "model.idle_timeout_ms" POSITIVE_MS, Fixed("10000"), WORKER,
        "Time after a token within which the model must send the next token.";
    OPENAI_MAX_ATTEMPTS "model.max_attempts" count(1, 100), Fixed("3"), WORKER,
        "Maximum number of calls to the model for one message. After that, the message fails.";
    KEEP_HISTORY "history.keep" Kind::Bool, Fixed("true"), WORKER,
        "Whether the prompt contains earlier turns of the conversation.";
    CHAT_HISTORY_MAX_MESSAGES "history.max_messages" count(0, 2000), Fixed("20"), WORKER,
        "Maximum number of earlier messages in the prompt. A question and its answer count as two.";
    CHAT_HISTORY_TTL "history.ttl" POSITIVE_SECONDS, Fixed("3600"), WORKER,
        "Time since a conversation's last turn after which the prompt contains no earlier turns.";

    RELAY_MAX_IN_FLIGHT "relay.max_in_flight" count(1, 100_000), Fixed("512"), RELAY,
        "Maximum number of terminal records that one relay delivers at the same time.";
    RELAY_REWIND_SECONDS "relay.rewind_seconds" POSITIVE_SECONDS, Fixed("60"), RELAY,
        "How far back the relay rewinds after an assignment or a failover of Redis. Must exceed \
         the lag of the Redis replicas.";
    RELAY_REBUILD_SECONDS "relay.rebuild_seconds" POSITIVE_SECONDS, Fixed("600"), RELAY,
        "How far back the relay rewinds when Redis has lost its data.";
    LOG_EPOCH "relay.log_epoch" Kind::Name, Fixed("0"), RELAY,
        "Part of every position. Change it when the responses topic is recreated, because the \
         topic's offsets then start again at 0.";

    DEDUP_TTL "keep.dedup_ttl" POSITIVE_SECONDS, Fixed("86400"), ALL,
        "How long the outcome of a message is stored, so that the same message is never answered \
         twice.";
    MAILBOX_TTL "keep.mailbox_ttl" POSITIVE_SECONDS, Fixed("86400"), ALL,
        "How long terminal frames are stored for clients that reconnect.";
    MAILBOX_FRAMES "keep.mailbox_frames" count(1, 100_000), Fixed("200"), ALL,
        "Maximum number of terminal frames that are stored for one user.";
    MAILBOX_BYTES "keep.mailbox_bytes" bytes(65_536, 1 << 30), Fixed("4194304"), ALL,
        "Maximum size of all terminal frames that are stored for one user.";
    HISTORY_TURNS "keep.history_turns" count(1, 100_000), Fixed("1000"), ALL,
        "Maximum number of turns that are stored for one conversation.";
    HISTORY_RETENTION "keep.history_retention" POSITIVE_SECONDS, Fixed("2592000"), ALL,
        "How long the turns of a conversation are stored.";

    DATA_DIR "embedded.data_dir" Kind::Text, Fixed("./chatmesh-data"), ALL_IN_ONE,
        "Directory in which all-in-one stores its data.";
    EPHEMERAL "embedded.ephemeral" Kind::Bool, Fixed("false"), ALL_IN_ONE,
        "Whether all data is kept in memory only and lost when the process exits.";
    EMBEDDED_PARTITIONS "embedded.partitions" count(1, 1024), Fixed("4"), ALL_IN_ONE,
        "Number of partitions of each topic of the embedded log.";
    LOG_RETENTION "embedded.log_retention" POSITIVE_SECONDS, Fixed("86400"), ALL_IN_ONE,
        "Age above which a record is removed from the embedded log, once every consumer group has \
         finished it.";
    MIN_FREE_DISK "embedded.min_free_disk" bytes(0, i64::MAX as u64), Fixed("268435456"), ALL_IN_ONE,
        "Free disk space below which new messages are rejected.";

    INTEROP "interop.enabled" Kind::Bool, Fixed("false"), DISTRIBUTED,
        "Whether a service of the original system is part of the deployment.";
}

/// Variables that `chatmesh chat` reads. They begin with `CHATMESH_` and set no key of the table,
/// but are not reported as unknown.
pub(super) const CHAT_VARIABLES: [&str; 3] = ["CHATMESH_URL", "CHATMESH_USER", "CHATMESH_TOKEN"];

/// Variables of the original system that chatmesh ignores, each with the reason and the roles that
/// warn about it. A value that contains `*`, as usual in the original system, causes no warning.
pub(super) const IGNORED_VARIABLES: &[(&str, &str, &[Role])] = &[
    (
        "ALLOW_METHODS",
        "the methods of every route are fixed, and cross-origin responses list them",
        GATEWAY,
    ),
    (
        "ALLOW_HEADERS",
        "the headers that requests may carry are fixed",
        GATEWAY,
    ),
];

/// The setting whose key or variable is `name`. `None` if there is no such setting.
pub(super) fn find(name: &str) -> Option<&'static Key> {
    TABLE
        .iter()
        .find(|key| key.name == name || key.variable == name)
        .copied()
}
