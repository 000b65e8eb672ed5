//! The validated settings of each part of the program, as plain types. Fields name the variable that
//! sets them; `docs/settings.md` has the defaults.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use secrecy::SecretString;

use crate::config::bounds::Bounds;

/// Settings of the Kafka client: connection, topics and producer.
#[derive(Debug, Clone)]
pub struct KafkaSettings {
    /// `KAFKA_BOOTSTRAP_SERVERS`: `host:port`, separated by commas.
    pub bootstrap_servers: String,
    /// `KAFKA_TOPIC_PARTITIONS`, for topics that chatmesh creates.
    pub topic_partitions: i32,
    /// `KAFKA_REPLICATION_FACTOR`, for topics that chatmesh creates.
    pub replication_factor: i16,
    /// `KAFKA_LINGER_MS`.
    pub linger: Duration,
    /// `PRODUCE_TIMEOUT_MS`: limit for the acknowledgement of a record.
    pub produce_timeout: Duration,
    /// `INTEROP`: consumers use the assignor `range`, the only one that services of the original system
    /// in the same group know.
    pub interop: bool,
    /// `KAFKA_PROPERTIES`: librdkafka properties that override all others. Values may be secrets.
    pub properties: BTreeMap<String, SecretString>,
    /// The property `client.id`: the process's `SERVER_ID`.
    pub client_id: String,
}

/// Settings of the Redis client.
#[derive(Debug, Clone)]
pub struct RedisSettings {
    /// `REDIS_URL`, or built from `REDIS_HOST` and the related settings. May contain a password.
    pub url: SecretString,
    /// `REDIS_COMMAND_TIMEOUT_MS`: then a command fails as unavailable.
    pub command_timeout: Duration,
    /// Bounds of the stored data.
    pub bounds: Bounds,
}

/// Settings of the embedded log and fan-out.
#[derive(Debug, Clone)]
pub struct EmbeddedSettings {
    /// `DATA_DIR`. `None` with `EPHEMERAL`: all data stays in memory.
    pub data_dir: Option<PathBuf>,
    /// `EMBEDDED_PARTITIONS`: partitions of each topic.
    pub partitions: i32,
    /// `LOG_RETENTION`: how long a record is stored after every group has consumed it.
    pub retention: Duration,
    /// `MIN_FREE_DISK` in bytes: with less free space, new messages are rejected.
    pub min_free_disk: u64,
    /// Bounds of the data that the fan-out stores.
    pub bounds: Bounds,
}

/// `AUTH_MODE`: how tokens are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthMode {
    /// Compared with the token in the fan-out, as in the original system.
    Stored,
    /// Signed tokens (JWT).
    Jwt,
    /// Every token that is not empty is valid.
    Open,
}

/// The keys that verify signed tokens.
#[derive(Debug, Clone)]
pub enum JwtKeys {
    /// `JWT_SECRET`, for HS256. chatmesh can issue tokens with it, too.
    Secret(SecretString),
    /// `JWT_PUBLIC_KEY_FILE`: a public key in PEM: RSA (RS256), P-256 (ES256) or Ed25519 (EdDSA).
    PublicKeyFile(PathBuf),
    /// `JWT_JWKS` as a file, which is reloaded regularly.
    JwksFile(PathBuf),
    /// `JWT_JWKS` as a URL.
    JwksUrl(url::Url),
}

/// How signed tokens are verified.
#[derive(Debug, Clone)]
pub struct JwtSettings {
    /// The keys.
    pub keys: JwtKeys,
    /// `JWT_AUDIENCE`: `aud` must contain one of them. If empty, `aud` is not checked.
    pub audience: Vec<String>,
    /// `JWT_ISSUER`: `iss` must be one of them. If empty, `iss` is not checked.
    pub issuer: Vec<String>,
}

impl JwtSettings {
    /// Whether chatmesh can issue tokens with these keys.
    pub fn can_sign(&self) -> bool {
        matches!(self.keys, JwtKeys::Secret(_))
    }
}

/// `TOKEN_ENDPOINT`: who may call `POST /token`.
#[derive(Debug, Clone)]
pub enum TokenEndpoint {
    /// The endpoint is disabled, and the route answers 404.
    Off,
    /// Callers with this admin key.
    Admin(SecretString),
    /// Any caller gets a token for any user. Only for demonstrations.
    Open,
}

/// A network in CIDR notation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

impl Network {
    /// Whether the network contains the address. An IPv4-mapped IPv6 address counts as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        let has_same_prefix = |a: u128, b: u128, width: u32| {
            let host_bits = width - u32::from(self.bits);
            host_bits >= 128 || (a ^ b) >> host_bits == 0
        };
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                has_same_prefix(u32::from(a).into(), u32::from(b).into(), 32)
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => has_same_prefix(a.into(), b.into(), 128),
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = ();

    /// Parses `10.0.0.0/8`, `::1/128`, or a single address.
    fn from_str(text: &str) -> Result<Self, ()> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.trim().parse().map_err(|_| ())?;
        let max_bits = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(max_bits), |bits| bits.trim().parse().map_err(|_| ()))?;
        (bits <= max_bits)
            .then_some(Self { address, bits })
            .ok_or(())
    }
}

/// Limits of connections to one gateway. 0 disables a limit.
#[derive(Debug, Clone, Default)]
pub struct ConnectionLimits {
    /// `USER_MAX_CONNECTIONS`: WebSockets of one user.
    pub per_user: usize,
    /// `ADDRESS_MAX_CONNECTIONS`: WebSockets from one IPv4 address, or from one IPv6 /64 network.
    pub per_address: usize,
    /// `MAX_CONNECTIONS`: all WebSockets.
    pub per_process: usize,
    /// `MAX_HTTP_CONNECTIONS`: connections that are not, or not yet, WebSockets.
    pub http: usize,
    /// `MAX_NEW_CONNECTIONS`: new WebSockets per second.
    pub per_second: u32,
    /// `TRUSTED_PROXIES`: peers whose `X-Forwarded-For` header is trusted.
    pub trusted_proxies: Vec<Network>,
}

/// Settings of the gateway.
#[derive(Debug, Clone)]
pub struct GatewaySettings {
    /// The address on which the gateway listens (`HOST`, `PORT`).
    pub listen: SocketAddr,
    /// `SERVER_ID`: the gateway's name in records, metrics and `welcome`.
    pub server_id: String,
    /// `MESSAGES_TOPIC`.
    pub messages_topic: String,
    /// `AUTH_MODE`.
    pub auth: AuthMode,
    /// How signed tokens are verified. `None` unless `AUTH_MODE=jwt`.
    pub jwt: Option<JwtSettings>,
    /// `TOKEN_ENDPOINT`.
    pub token_endpoint: TokenEndpoint,
    /// `ADMIN_KEY`.
    pub admin_key: Option<SecretString>,
    /// Limits of connections.
    pub limits: ConnectionLimits,
    /// `USER_RATE_LIMIT_WINDOW_SECONDS`. After 100 rejections within it, a connection is closed.
    pub rate_window: Duration,
    /// `RATE_LIMIT_FAIL=open`: while the fan-out is unavailable, messages are accepted without counting.
    pub rate_fail_open: bool,
    /// `USER_MAX_PENDING`, for `welcome`. 0 disables the limit.
    pub max_pending: usize,
    /// `TOKEN_TTL`: lifetime of issued tokens.
    pub token_ttl: Duration,
    /// `CHAT_PAGE`: whether the chat page and the browser client are served.
    pub chat_page: bool,
    /// `ALLOW_ORIGINS`. `*` allows every origin.
    pub allow_origins: Vec<String>,
    /// `ALLOW_CREDENTIALS` for CORS. Always false while every origin is allowed.
    pub allow_credentials: bool,
    /// `MAX_CONTENT_CHARS`.
    pub max_content_chars: usize,
    /// `MAX_FRAME_BYTES`: largest frame from a client.
    pub max_frame_bytes: usize,
    /// `OUTBOUND_QUEUE_BYTES` of one connection.
    pub outbound_queue_bytes: usize,
    /// `PRODUCE_TIMEOUT_MS`: how long a message may wait to be accepted.
    pub produce_timeout: Duration,
    /// `DRAIN_TIMEOUT_MS`: time to finish after SIGTERM.
    pub drain_timeout: Duration,
    /// `HEAD_TIMEOUT_MS`: time within which a client must send the head of its request.
    pub head_timeout: Duration,
    /// `PING_INTERVAL_MS`: time without a frame from the client after which a ping is sent.
    pub ping_interval: Duration,
    /// `PING_TIMEOUT_MS`: without an answer to a ping by then, the connection is closed with 4408.
    pub ping_timeout: Duration,
    /// `OPEN_CHECK_MS`: interval at which the mailboxes of users with pending answers are read.
    pub open_check: Duration,
    /// `INTEROP`: services of the original system are part of the deployment.
    pub interop: bool,
}

/// Settings of the record pipeline, in the worker and in the relay.
#[derive(Debug, Clone)]
pub struct PipelineSettings {
    /// The consumed topic: `MESSAGES_TOPIC` in the worker, `RESPONSES_TOPIC` in the relay.
    pub topic: String,
    /// The dead-letter topic: the consumed topic's name, followed by `.dlq`.
    pub dead_letter_topic: String,
    /// The consumer group.
    pub group: String,
    /// Records processed at the same time: `MAX_WORKERS`, or in the relay `RELAY_MAX_IN_FLIGHT`.
    pub max_workers: usize,
    /// `MAX_DELIVERIES`: deliveries after which a record that keeps failing becomes a dead letter.
    pub max_deliveries: u32,
    /// `READ_AHEAD_BYTES`: size of buffered records at which the consumer is paused.
    pub read_ahead_bytes: usize,
    /// `DRAIN_TIMEOUT_MS`: time to finish after SIGTERM.
    pub drain_timeout: Duration,
}

/// Settings of the worker.
#[derive(Debug, Clone)]
pub struct WorkerSettings {
    /// The consumer of the log.
    pub pipeline: PipelineSettings,
    /// `RESPONSES_TOPIC`.
    pub responses_topic: String,
    /// The model's API. `None` for the built-in demo model.
    pub model: Option<ModelApiSettings>,
    /// Content and options of requests to the model.
    pub prompt: PromptSettings,
    /// `MESSAGE_MAX_AGE`: older messages end with `expired`.
    pub message_max_age: Duration,
    /// `MESSAGE_DEADLINE_MS`, for one message with all its attempts.
    pub message_deadline: Duration,
    /// `MAX_ANSWER_BYTES`, counted as JSON.
    pub max_answer_bytes: usize,
    /// `STREAM_FLUSH_MS`: time for which text is collected into one delta.
    pub stream_flush: Duration,
    /// `STREAM_FLUSH_BYTES`: collected text at which a delta is published at once.
    pub stream_flush_bytes: usize,
    /// Address of health and metrics (`METRICS_HOST`, `METRICS_PORT`).
    pub admin_listen: SocketAddr,
}

/// Settings of the model's API.
#[derive(Debug, Clone)]
pub struct ModelApiSettings {
    /// `OPENAI_BASE_URL`.
    pub base_url: url::Url,
    /// `OPENAI_API_KEY`. Local servers need none.
    pub api_key: Option<SecretString>,
    /// `OPENAI_TIMEOUT_MS`: time until the first token.
    pub first_token_timeout: Duration,
    /// `OPENAI_IDLE_TIMEOUT_MS`: time between two tokens.
    pub idle_timeout: Duration,
    /// `OPENAI_MAX_ATTEMPTS`: calls for one message.
    pub max_attempts: u32,
}

/// Content and options of requests to the model.
#[derive(Debug, Clone)]
pub struct PromptSettings {
    /// `OPENAI_MODEL`.
    pub model: String,
    /// `SYSTEM_PROMPT`. Empty for none.
    pub system_prompt: String,
    /// `OPENAI_MAX_TOKENS`: longest answer.
    pub max_tokens: u32,
    /// `OPENAI_TEMPERATURE`.
    pub temperature: f64,
    /// `OPENAI_CONTEXT_TOKENS`: prompt and answer together, estimated.
    pub context_tokens: usize,
    /// `KEEP_HISTORY`: whether the prompt contains earlier turns.
    pub keep_history: bool,
    /// `CHAT_HISTORY_MAX_MESSAGES`: a question and its answer count as two.
    pub history_max_messages: usize,
    /// `CHAT_HISTORY_TTL`: time since the last turn after which earlier turns are left out.
    pub history_ttl: Duration,
}

/// Settings of the relay.
#[derive(Debug, Clone)]
pub struct RelaySettings {
    /// The consumer of the log.
    pub pipeline: PipelineSettings,
    /// `RELAY_REWIND_SECONDS`: how far a partition is rewound after a failover.
    pub rewind: Duration,
    /// `RELAY_REBUILD_SECONDS`: how far a partition is rewound after a loss of data.
    pub rebuild: Duration,
    /// `LOG_EPOCH`: part of every position. Operators change it when `responses` is recreated.
    pub log_epoch: String,
    /// Address of health and metrics (`METRICS_HOST`, `METRICS_PORT`).
    pub admin_listen: SocketAddr,
}

/// Settings of logs.
#[derive(Debug, Clone)]
pub struct LoggingSettings {
    /// `APP_NAME`, in every line.
    pub app_name: String,
    /// `LOG_LEVEL`: a level or a filter of `tracing`.
    pub level: String,
    /// `LOG_FORMAT`.
    pub format: LogFormat,
    /// `LOG_FOLDER`: directory of daily files, in addition to standard output.
    pub folder: Option<PathBuf>,
    /// `LOG_FILES`: number of daily files that are retained.
    pub max_files: usize,
}

/// Settings of traces, set by OpenTelemetry's variables.
#[derive(Debug, Clone)]
pub struct TraceSettings {
    /// `OTEL_EXPORTER_OTLP_ENDPOINT`: the collector. `None`: no traces are recorded.
    pub endpoint: Option<url::Url>,
    /// `OTEL_EXPORTER_OTLP_HEADERS`. Values may be secrets.
    pub headers: BTreeMap<String, SecretString>,
    /// `OTEL_EXPORTER_OTLP_TIMEOUT`, for one request.
    pub timeout: Duration,
    /// `OTEL_SERVICE_NAME`.
    pub service_name: Option<String>,
    /// The service name if neither `OTEL_SERVICE_NAME` nor a resource attribute sets one.
    pub role_name: String,
    /// `SERVER_ID`.
    pub instance: String,
    /// `OTEL_RESOURCE_ATTRIBUTES`.
    pub resource: BTreeMap<String, String>,
    /// `OTEL_TRACES_SAMPLER`.
    pub sampler: TraceSampler,
    /// `OTEL_TRACES_SAMPLER_ARG`: fraction of traces that a ratio sampler records, 0 to 1.
    pub sampler_arg: f64,
}

/// `OTEL_TRACES_SAMPLER`: which traces are recorded. The parent-based samplers follow the caller's
/// decision, and differ for traces that begin in chatmesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TraceSampler {
    /// Records all traces.
    AlwaysOn,
    /// Records no traces.
    AlwaysOff,
    /// Records a fraction of all traces, chosen by trace id.
    Ratio,
    /// Records all traces that begin here.
    ParentBasedAlwaysOn,
    /// Records no traces that begin here.
    ParentBasedAlwaysOff,
    /// Records a fraction of the traces that begin here.
    ParentBasedRatio,
}

/// `LOG_FORMAT`: the format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object per line. The default without a terminal.
    Json,
    /// Text for people. The default in a terminal.
    Pretty,
}
