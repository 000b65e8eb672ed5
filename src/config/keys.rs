//! Every key of the configuration, once: its name in the file, its environment variable, default,
//! kind, who uses it, and a sentence. Parsing, unknown-key detection, `config show`, and the
//! commented default file all come from this table.

use self::Default::{By, Is, Worked};
use super::Role;
use super::kind::Kind;

/// What holds where nobody says anything.
#[derive(Debug, Clone, Copy)]
pub(super) enum Default {
    /// This text, parsed as a variable's would be.
    Is(&'static str),
    /// A text by role.
    By(&'static [(Role, &'static str)]),
    /// Nothing, or something worked out; the words for people.
    Worked(&'static str),
}

/// One key.
#[derive(Debug)]
pub(super) struct Key {
    /// `section.name`, as in the file.
    pub(super) name: &'static str,
    /// The environment variable.
    pub(super) var: &'static str,
    /// Other variables that mean it for one role only.
    pub(super) role_vars: &'static [(Role, &'static str)],
    pub(super) default: Default,
    pub(super) kind: Kind,
    /// Never shown.
    pub(super) secret: bool,
    pub(super) roles: &'static [Role],
    pub(super) help: &'static str,
}

impl Key {
    /// The text that holds for this role where nothing is set.
    pub(super) fn default_text(&self, role: Role) -> Option<&'static str> {
        match self.default {
            Is(text) => Some(text),
            By(by) => by.iter().find(|(r, _)| *r == role).map(|(_, text)| *text),
            Worked(_) => None,
        }
    }

    /// The variables that mean this key for this role, the one that wins first.
    pub(super) fn vars(&self, role: Role) -> impl Iterator<Item = &'static str> {
        let of_role = self.role_vars.iter().filter(move |(r, _)| *r == role);
        std::iter::once(self.var).chain(of_role.map(|(_, var)| *var))
    }
}

const GATEWAY: &[Role] = &[Role::Gateway, Role::AllInOne];
const WORKER: &[Role] = &[Role::AiWorker, Role::AllInOne];
const RELAY: &[Role] = &[Role::Relay, Role::AllInOne];
const CONSUMERS: &[Role] = &[Role::AiWorker, Role::Relay, Role::AllInOne];
const ADMIN: &[Role] = &[Role::AiWorker, Role::Relay];
const SCALED: &[Role] = &[Role::Gateway, Role::AiWorker, Role::Relay];
const EMBEDDED: &[Role] = &[Role::AllInOne];
const ALL: &[Role] = &Role::ALL;

macro_rules! keys {
    ($( $var:ident $name:literal $kind:expr, $default:expr, $roles:expr,
        $(secret: $secret:literal,)? $(role_vars: $role_vars:expr,)? $help:literal; )*) => {
        $(
            #[doc = $help]
            pub(super) const $var: Key = Key {
                name: $name,
                var: stringify!($var),
                role_vars: keys!(@role_vars $($role_vars)?),
                default: $default,
                kind: $kind,
                secret: keys!(@secret $($secret)?),
                roles: $roles,
                help: $help,
            };
        )*
        /// All of them, in the order in which people read them.
        pub(super) const TABLE: &[&Key] = &[$(&$var),*];
    };
    (@secret) => { false };
    (@secret $secret:literal) => { $secret };
    (@role_vars) => { &[] };
    (@role_vars $role_vars:expr) => { $role_vars };
}

const POSITIVE_MS: Kind = Kind::Millis {
    min: 1,
    max: 86_400_000,
};
const POSITIVE_S: Kind = Kind::Seconds {
    min: 1,
    max: 366 * 86_400,
};

keys! {
    SERVER_ID "server.id" Kind::Name, Worked("made of the host's name, the role and the process id"), ALL,
        "Name of this process in records, metrics, health and logs. Gateways need different ones.";
    HOST "server.host" Kind::Host, By(&[(Role::Gateway, "0.0.0.0"), (Role::AllInOne, "127.0.0.1")]),
        GATEWAY, "Address that clients connect to.";
    PORT "server.port" Kind::Int { min: 0, max: 65535 }, Is("8000"), GATEWAY,
        "Port that clients connect to; 0 takes a free one.";
    DRAIN_TIMEOUT_MS "server.drain_timeout_ms" POSITIVE_MS, Is("25000"), ALL,
        "How long a process that was told to stop finishes what it has begun.";

    APP_NAME "log.app_name" Kind::Text, Worked("the role's name"), ALL,
        "Name of this service in every log line.";
    LOG_LEVEL "log.level" Kind::Level, Is("info"), ALL,
        "Least level of chatmesh's lines (libraries: info); Python's names too, or a filter.";
    LOG_FORMAT "log.format" Kind::Choice(&["auto", "json", "pretty"]), Is("auto"), ALL,
        "One JSON object a line, or for people; auto is pretty in a terminal.";
    LOG_FOLDER "log.folder" Kind::Text, Worked("none"), ALL,
        "Folder for daily log files, besides the terminal.";
    LOG_FILES "log.files" Kind::Int { min: 1, max: 3650 }, Is("14"), ALL,
        "How many daily log files are kept for each service.";
    METRICS_HOST "metrics.host" Kind::Host, Is("0.0.0.0"), ADMIN,
        "Address of health and metrics.";
    METRICS_PORT "metrics.port" Kind::Int { min: 0, max: 65535 },
        By(&[(Role::AiWorker, "8002"), (Role::Relay, "8001")]), ADMIN,
        "Port of health and metrics; the gateway has them on its own port.";

    OTEL_EXPORTER_OTLP_ENDPOINT "traces.url" Kind::HttpUrl, Worked("none: traces are passed on, and not recorded"), ALL,
        "OTLP/HTTP collector that gets the traces, such as http://localhost:4318; /v1/traces is added.";
    OTEL_EXPORTER_OTLP_HEADERS "traces.headers" Kind::Map, Is(""), ALL, secret: true,
        "Headers for it, as key=value,key=value; values may be percent-encoded.";
    OTEL_EXPORTER_OTLP_PROTOCOL "traces.protocol" Kind::Choice(&["http/protobuf"]), Is("http/protobuf"), ALL,
        "How it is spoken to; gRPC is not built in, collectors listen for HTTP on port 4318.";
    OTEL_EXPORTER_OTLP_TIMEOUT "traces.timeout_ms" POSITIVE_MS, Is("10000"), ALL,
        "Milliseconds after which a request to it has failed; its spans are lost then.";
    OTEL_SERVICE_NAME "traces.service_name" Kind::Text, Worked("chatmesh- and the role's name"), ALL,
        "Name of this service in traces.";
    OTEL_RESOURCE_ATTRIBUTES "traces.resource_attributes" Kind::Map, Is(""), ALL,
        "More about this process in traces, as key=value,key=value; values may be percent-encoded.";
    OTEL_TRACES_SAMPLER "traces.sampler" Kind::Choice(&["always_on", "always_off", "traceidratio",
            "parentbased_always_on", "parentbased_always_off", "parentbased_traceidratio"]),
        Is("parentbased_always_on"), ALL,
        "Which traces are recorded; parentbased ones do as the client's traceparent says.";
    OTEL_TRACES_SAMPLER_ARG "traces.sampler_arg" Kind::Float { min: 0.0, max: 1.0 }, Is("1"), ALL,
        "The part that a traceidratio sampler takes, 0 to 1.";

    KAFKA_BOOTSTRAP_SERVERS "kafka.bootstrap_servers" Kind::List, Is("localhost:9092"), SCALED,
        "Brokers, host:port.";
    MESSAGES_TOPIC "kafka.messages_topic" Kind::Topic, Is("incoming_messages"), SCALED,
        role_vars: &[(Role::Gateway, "PRODUCE_TOPIC"), (Role::AiWorker, "CONSUME_TOPIC")],
        "Topic of the users' messages; PRODUCE_TOPIC of a gateway, CONSUME_TOPIC of a worker.";
    RESPONSES_TOPIC "kafka.responses_topic" Kind::Topic, Is("responses"), SCALED,
        role_vars: &[(Role::AiWorker, "PRODUCE_TOPIC"), (Role::Relay, "CONSUME_TOPIC")],
        "Topic of the answers; PRODUCE_TOPIC of a worker, CONSUME_TOPIC of a relay.";
    KAFKA_TOPIC_PARTITIONS "kafka.topic_partitions" Kind::Int { min: 1, max: 10_000 }, Is("12"), SCALED,
        "Partitions of topics that are made because they are missing.";
    KAFKA_REPLICATION_FACTOR "kafka.replication_factor" Kind::Int { min: 1, max: 100 }, Is("1"), SCALED,
        "Replicas of topics that are made; fewer on an existing one is warned about.";
    KAFKA_LINGER_MS "kafka.linger_ms" Kind::Millis { min: 0, max: 60_000 }, Is("1"), SCALED,
        "How long records are gathered. The original's 10 costs about 20 ms a message and buys nothing.";
    PRODUCE_TIMEOUT_MS "kafka.produce_timeout_ms" POSITIVE_MS, Is("10000"), ALL,
        "How long a record may wait for its acknowledgement, and a message to be accepted.";
    KAFKA_PROPERTIES "kafka.properties" Kind::Map, Is(""), SCALED,
        "Any librdkafka property, as key=value,key=value (a comma in a value is written \\,), or a table.";

    REDIS_URL "redis.url" Kind::RedisUrl, Worked("made of redis.host and the others"), SCALED, secret: true,
        "redis://, rediss://, redis-cluster:// or redis-sentinel:// URL; over the four below.";
    REDIS_HOST "redis.host" Kind::Text, Is("localhost"), SCALED,
        "Redis server.";
    REDIS_PORT "redis.port" Kind::Int { min: 1, max: 65535 }, Is("6379"), SCALED,
        "Its port.";
    REDIS_PASSWORD "redis.password" Kind::Text, Worked("none"), SCALED, secret: true,
        "Its password.";
    REDIS_DB "redis.db" Kind::Int { min: 0, max: 1023 }, Is("0"), SCALED,
        "Its database.";
    REDIS_COMMAND_TIMEOUT_MS "redis.command_timeout_ms" POSITIVE_MS, Is("2000"), SCALED,
        "After it a call to Redis counts as failed.";

    AUTH_MODE "auth.mode" Kind::Choice(&["stored", "jwt", "open"]),
        Worked("stored; open for all-in-one on a loopback address"), GATEWAY,
        "What a token is: stored in Redis as the original's, signed (jwt), or anything that is not empty (open).";
    JWT_SECRET "auth.jwt_secret" Kind::Text, Worked("none"), GATEWAY, secret: true,
        "HS256 key of signed tokens, at least 32 bytes, taken as they are; or one of the next two.";
    JWT_PUBLIC_KEY_FILE "auth.jwt_public_key_file" Kind::Text, Worked("none"), GATEWAY,
        "Public key (PEM) of signed tokens: RSA (RS256), P-256 (ES256) or Ed25519 (EdDSA).";
    JWT_JWKS "auth.jwt_jwks" Kind::Text, Worked("none"), GATEWAY,
        "JSON Web Key Set of signed tokens, a file or an http(s) URL; read again when keys change.";
    JWT_AUDIENCE "auth.jwt_audience" Kind::List, Worked("not looked at"), GATEWAY,
        "What a signed token must name in aud, one of these.";
    JWT_ISSUER "auth.jwt_issuer" Kind::List, Worked("not looked at"), GATEWAY,
        "Who must have issued a signed token (iss), one of these.";
    TOKEN_ENDPOINT "auth.token_endpoint" Kind::Choice(&["off", "admin", "open"]),
        Worked("admin where an admin key is set, else off"), GATEWAY,
        "Who may call POST /token; open gives anybody anybody's token, as the original did.";
    ADMIN_KEY "auth.admin_key" Kind::Text, Worked("none"), GATEWAY, secret: true,
        "Key of the operator's calls, as Authorization: Bearer.";
    TOKEN_TTL "auth.token_ttl" POSITIVE_S, Is("3600"), GATEWAY,
        "Seconds that a token made here is good for.";

    CHAT_PAGE "gateway.chat_page" Kind::Choice(&["on", "off"]), Is("on"), GATEWAY,
        "Whether the chat page and chatmesh.js are served.";
    ALLOW_ORIGINS "gateway.allow_origins" Kind::List, Is("*"), GATEWAY,
        "Origins of pages that may connect; * for every one.";
    ALLOW_CREDENTIALS "gateway.allow_credentials" Kind::Bool, Is("false"), GATEWAY,
        "Whether such pages may send credentials (CORS).";
    MAX_CONTENT_CHARS "gateway.max_content_chars" Kind::Int { min: 1, max: 200_000 }, Is("8000"), GATEWAY,
        "Longest message, in characters.";
    MAX_FRAME_BYTES "gateway.max_frame_bytes" Kind::Int { min: 256, max: 900_000 }, Is("65536"), GATEWAY,
        "Largest frame that a client may send.";
    OUTBOUND_QUEUE_BYTES "gateway.outbound_queue_bytes" Kind::Int { min: 65_536, max: 1 << 30 }, Is("1048576"), GATEWAY,
        "Frames that may wait for one slow client before it is closed.";
    HEAD_TIMEOUT_MS "gateway.head_timeout_ms" POSITIVE_MS, Is("10000"), GATEWAY,
        "How long a client may take to send its request's head.";
    PING_INTERVAL_MS "gateway.ping_interval_ms" POSITIVE_MS, Is("25000"), GATEWAY,
        "Time between pings to a silent client.";
    PING_TIMEOUT_MS "gateway.ping_timeout_ms" POSITIVE_MS, Is("10000"), GATEWAY,
        "A client that answers no ping within it is closed.";
    OPEN_CHECK_MS "gateway.open_check_ms" Kind::Millis { min: 100, max: 600_000 }, Is("5000"), GATEWAY,
        "How often users who wait for something are looked up, in case a last frame was lost.";

    USER_RATE_LIMIT_MAX_REQUESTS "limits.user_requests" Kind::Int { min: 0, max: 1_000_000 }, Is("10"), ALL,
        "Messages of one user in the window, over all gateways; 0 for any number.";
    USER_RATE_LIMIT_WINDOW_SECONDS "limits.user_window" Kind::Seconds { min: 1, max: 86_400 }, Is("60"), ALL,
        "That window. All of them may come at once; then one comes back after each window/number.";
    RATE_LIMIT_FAIL "limits.fail" Kind::Choice(&["closed", "open"]), Is("closed"), GATEWAY,
        "While Redis is away: refuse messages (closed), or take them without counting (open).";
    USER_DAILY_TOKENS "limits.user_daily_tokens" Kind::Int { min: 0, max: 1_000_000_000_000 }, Is("0"), ALL,
        "Model tokens of one user and day (UTC), by the provider's usage; 0 for any number.";
    USER_MAX_CONVERSATIONS "limits.user_conversations" Kind::Int { min: 0, max: 1_000_000 }, Is("200"), ALL,
        "Conversations that one user may have; 0 for any number.";
    USER_MAX_PENDING "limits.user_pending" Kind::Int { min: 0, max: 10_000 }, Is("32"), ALL,
        "Messages of one user that wait for their answers; 0 for any number.";
    USER_MAX_CONNECTIONS "limits.user_connections" Kind::Int { min: 0, max: 1_000_000 }, Is("20"), GATEWAY,
        "WebSockets of one user at one gateway; 0 for any number.";
    ADDRESS_MAX_CONNECTIONS "limits.address_connections" Kind::Int { min: 0, max: 10_000_000 }, Is("0"), GATEWAY,
        "WebSockets from one address at one gateway, and as many other connections; 0 for any number.";
    MAX_CONNECTIONS "limits.connections" Kind::Int { min: 0, max: 10_000_000 }, Is("0"), GATEWAY,
        "WebSockets of one gateway; 0 for any number.";
    MAX_HTTP_CONNECTIONS "limits.http_connections" Kind::Int { min: 0, max: 10_000_000 }, Is("1024"), GATEWAY,
        "Connections of one gateway that are no WebSocket, or not yet; at the bound the longest silent one goes.";
    MAX_NEW_CONNECTIONS "limits.new_connections" Kind::Int { min: 0, max: 1_000_000 }, Is("0"), GATEWAY,
        "New WebSockets of one gateway in a second; 0 for any number.";
    TRUSTED_PROXIES "limits.trusted_proxies" Kind::List, Worked("none"), GATEWAY,
        "Addresses and networks (10.0.0.0/8) of proxies whose X-Forwarded-For is believed.";

    MAX_WORKERS "worker.max_workers" Kind::Int { min: 1, max: 10_000 }, Is("50"), WORKER,
        "Messages answered at once.";
    MESSAGE_MAX_AGE "worker.message_max_age" POSITIVE_S, Is("43200"), ALL,
        "Seconds after which a message that still waits is not answered any more.";
    MESSAGE_DEADLINE_MS "worker.message_deadline_ms" POSITIVE_MS, Is("300000"), WORKER,
        "Time for one message with all its attempts.";
    MAX_ANSWER_BYTES "worker.max_answer_bytes" Kind::Int { min: 1024, max: 64 << 20 }, Is("262144"), WORKER,
        "Longest answer, counted as JSON; it ends there.";
    STREAM_FLUSH_MS "worker.stream_flush_ms" Kind::Millis { min: 0, max: 10_000 }, Is("30"), WORKER,
        "How long pieces of an answer are gathered.";
    STREAM_FLUSH_BYTES "worker.stream_flush_bytes" Kind::Int { min: 1, max: 1 << 20 }, Is("1024"), WORKER,
        "How much of an answer is gathered.";
    MAX_DELIVERIES "pipeline.max_deliveries" Kind::Int { min: 1, max: 1000 }, Is("5"), CONSUMERS,
        "Takings after which a record that keeps failing becomes a dead letter.";
    READ_AHEAD_BYTES "pipeline.read_ahead_bytes" Kind::Int { min: 65_536, max: 4 << 30 }, Is("8388608"), CONSUMERS,
        "Records that may wait in memory.";

    OPENAI_API_KEY "model.api_key" Kind::Text, Worked("none; without base_url too: the demo model"), WORKER, secret: true,
        "Key of the model's API.";
    OPENAI_BASE_URL "model.base_url" Kind::HttpUrl, Worked("https://api.openai.com/v1 where a key is set"), WORKER,
        "An OpenAI-compatible API; local servers need no key.";
    OPENAI_MODEL "model.name" Kind::Text, Is("gpt-3.5-turbo"), WORKER,
        "Which model.";
    SYSTEM_PROMPT "model.system_prompt" Kind::Prose, Is("You are a helpful assistant."), WORKER,
        "Instructions before every conversation; empty in a file or flag for none.";
    OPENAI_MAX_TOKENS "model.max_tokens" Kind::Int { min: 1, max: 1_000_000 }, Is("500"), WORKER,
        "Longest answer in tokens.";
    OPENAI_TEMPERATURE "model.temperature" Kind::Float { min: 0.0, max: 2.0 }, Is("0.7"), WORKER,
        "Sampling temperature.";
    OPENAI_CONTEXT_TOKENS "model.context_tokens" Kind::Int { min: 2, max: 100_000_000 }, Is("16385"), WORKER,
        "The model's context: prompt and answer together.";
    OPENAI_TIMEOUT_MS "model.timeout_ms" POSITIVE_MS, Is("2000"), WORKER,
        "Time to the first token; cold local models and reasoning models need more.";
    OPENAI_IDLE_TIMEOUT_MS "model.idle_timeout_ms" POSITIVE_MS, Is("10000"), WORKER,
        "Time between tokens.";
    OPENAI_MAX_ATTEMPTS "model.max_attempts" Kind::Int { min: 1, max: 100 }, Is("3"), WORKER,
        "Calls for one message before its user gets an error.";
    KEEP_HISTORY "history.keep" Kind::Bool, Is("true"), WORKER,
        "Whether earlier turns go into the prompt.";
    CHAT_HISTORY_MAX_MESSAGES "history.max_messages" Kind::Int { min: 0, max: 2000 }, Is("20"), WORKER,
        "How many, questions and answers counted apart.";
    CHAT_HISTORY_TTL "history.ttl" POSITIVE_S, Is("3600"), WORKER,
        "Seconds since a conversation's last turn after which the model starts afresh.";

    RELAY_MAX_IN_FLIGHT "relay.max_in_flight" Kind::Int { min: 1, max: 100_000 }, Is("512"), RELAY,
        "Answers delivered at once.";
    RELAY_REWIND_SECONDS "relay.rewind_seconds" POSITIVE_S, Is("60"), RELAY,
        "How far the relay goes back after a failover; more than the Redis replica's lag.";
    RELAY_REBUILD_SECONDS "relay.rebuild_seconds" POSITIVE_S, Is("600"), RELAY,
        "How far it goes back when Redis has lost its data.";
    LOG_EPOCH "relay.log_epoch" Kind::Name, Is("0"), RELAY,
        "Raise it when the answers' topic is made anew.";

    DEDUP_TTL "keep.dedup_ttl" POSITIVE_S, Is("86400"), ALL,
        "Seconds that the end of a message is remembered, so that it is never answered twice.";
    MAILBOX_TTL "keep.mailbox_ttl" POSITIVE_S, Is("86400"), ALL,
        "Seconds that answers are kept for clients that come back.";
    MAILBOX_FRAMES "keep.mailbox_frames" Kind::Int { min: 1, max: 100_000 }, Is("200"), ALL,
        "How many of them for one user.";
    MAILBOX_BYTES "keep.mailbox_bytes" Kind::Int { min: 65_536, max: 1 << 30 }, Is("4194304"), ALL,
        "How much of them for one user.";
    HISTORY_TURNS "keep.history_turns" Kind::Int { min: 1, max: 100_000 }, Is("1000"), ALL,
        "Turns of a conversation that are kept.";
    HISTORY_RETENTION "keep.history_retention" POSITIVE_S, Is("2592000"), ALL,
        "Seconds that they are kept.";

    DATA_DIR "embedded.data_dir" Kind::Text, Is("./chatmesh-data"), EMBEDDED,
        "Where all-in-one keeps its data.";
    EPHEMERAL "embedded.ephemeral" Kind::Bool, Is("false"), EMBEDDED,
        "Keep everything in memory only; it is gone with the process.";
    EMBEDDED_PARTITIONS "embedded.partitions" Kind::Int { min: 1, max: 1024 }, Is("4"), EMBEDDED,
        "Partitions of the embedded log.";
    LOG_RETENTION "embedded.log_retention" POSITIVE_S, Is("86400"), EMBEDDED,
        "Seconds that records stay in the embedded log after they were read.";
    MIN_FREE_DISK "embedded.min_free_disk" Kind::Int { min: 0, max: i64::MAX as u64 }, Is("268435456"), EMBEDDED,
        "Free bytes on the disk below which new messages are refused.";

    INTEROP "interop.enabled" Kind::Bool, Is("false"), SCALED,
        "True while a service of the original system is in the deployment.";
}

/// Variables of `chatmesh chat`, which is no role: known, so that they are no mistake.
pub(super) const OF_CHAT: [&str; 3] = ["CHATMESH_URL", "CHATMESH_USER", "CHATMESH_TOKEN"];

/// Variables of the original that chatmesh reads over, and what a person should know of it. Said
/// only where the value is not the original's usual one.
pub(super) const NOT_USED: &[(&str, &str, &[Role])] = &[
    (
        "ALLOW_METHODS",
        "the methods of every route are fixed, and cross-origin answers name those",
        GATEWAY,
    ),
    (
        "ALLOW_HEADERS",
        "the headers that requests may carry are fixed",
        GATEWAY,
    ),
];

/// The key of this name in the file, or of this variable.
pub(super) fn find(name: &str) -> Option<&'static Key> {
    TABLE
        .iter()
        .find(|key| key.name == name || key.var == name)
        .copied()
}
