//! The settings of each part, checked and typed: what the rest of the program sees.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use secrecy::SecretString;

use crate::config::bounds::Bounds;

/// How to reach Kafka, and how records are produced.
#[derive(Debug, Clone)]
pub struct KafkaSettings {
    /// `KAFKA_BOOTSTRAP_SERVERS`, `host:port` with commas.
    pub bootstrap_servers: String,
    /// `KAFKA_TOPIC_PARTITIONS` of topics that are made (12).
    pub topic_partitions: i32,
    /// `KAFKA_REPLICATION_FACTOR` of topics that are made (1).
    pub replication_factor: i16,
    /// `KAFKA_LINGER_MS` (1).
    pub linger: Duration,
    /// `PRODUCE_TIMEOUT_MS` (10000).
    pub produce_timeout: Duration,
    /// `INTEROP`: `range` as the assignor, for groups that an original service is a member of.
    pub interop: bool,
    /// `KAFKA_PROPERTIES`: any librdkafka property, over everything else. Values may be secrets.
    pub properties: BTreeMap<String, SecretString>,
    /// `client.id`: the process's `SERVER_ID` or role.
    pub client_id: String,
}

/// How to reach Redis.
#[derive(Debug, Clone)]
pub struct RedisSettings {
    /// `REDIS_URL`, or made of `REDIS_HOST` and `REDIS_PORT`; may hold a password.
    pub url: SecretString,
    /// `REDIS_COMMAND_TIMEOUT_MS` (2000): after it a call fails as unavailable.
    pub command_timeout: Duration,
    /// Bounds of what is kept.
    pub bounds: Bounds,
}

/// The embedded log and fan-out.
#[derive(Debug, Clone)]
pub struct EmbeddedSettings {
    /// `--data-dir` (`./chatmesh-data`); `None` with `--ephemeral`: memory only.
    pub data_dir: Option<PathBuf>,
    /// `EMBEDDED_PARTITIONS` of each topic (4).
    pub partitions: i32,
    /// `LOG_RETENTION` of records that every group has consumed (24 h).
    pub retention: Duration,
    /// `MIN_FREE_DISK` in bytes (256 MiB): below it new messages are refused.
    pub min_free_disk: u64,
    /// Bounds of what the fan-out keeps.
    pub bounds: Bounds,
}

/// `AUTH_MODE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthMode {
    /// The original's tokens in Redis.
    Stored,
    /// Signed tokens (JWT).
    Jwt,
    /// Any non-empty token.
    Open,
}

/// By what signed tokens are checked.
#[derive(Debug, Clone)]
pub enum JwtKeys {
    /// `JWT_SECRET`: HS256, and `POST /token` can make them.
    Secret(SecretString),
    /// `JWT_PUBLIC_KEY_FILE`: one public key in PEM, of RSA (RS256), P-256 (ES256) or Ed25519.
    PublicKeyFile(PathBuf),
    /// `JWT_JWKS`, a file: read again now and then.
    JwksFile(PathBuf),
    /// `JWT_JWKS`, a URL.
    JwksUrl(url::Url),
}

/// Signed tokens.
#[derive(Debug, Clone)]
pub struct JwtSettings {
    /// By what they are checked.
    pub keys: JwtKeys,
    /// `JWT_AUDIENCE`: `aud` must name one of them; empty: any, or none.
    pub audience: Vec<String>,
    /// `JWT_ISSUER`: `iss` must be one of them; empty: any, or none.
    pub issuer: Vec<String>,
}

impl JwtSettings {
    /// Whether tokens can be made here too.
    pub fn signs(&self) -> bool {
        matches!(self.keys, JwtKeys::Secret(_))
    }
}

/// `TOKEN_ENDPOINT`: who may call `POST /token`.
#[derive(Debug, Clone)]
pub enum TokenEndpoint {
    /// Nobody: 404.
    Off,
    /// Who brings the admin key.
    Admin(SecretString),
    /// Anybody; for demonstrations.
    Open,
}

/// Addresses with the same first bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

impl Network {
    /// Whether an address belongs to it; an IPv4 one in IPv6's clothes is an IPv4 one.
    pub fn contains(&self, address: IpAddr) -> bool {
        let same = |one: u128, other: u128, width: u32| {
            let other_bits = width - u32::from(self.bits);
            let shifted = one ^ other;
            other_bits >= 128 || shifted >> other_bits == 0
        };
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(one), IpAddr::V4(other)) => {
                same(u32::from(one).into(), u32::from(other).into(), 32)
            }
            (IpAddr::V6(one), IpAddr::V6(other)) => same(one.into(), other.into(), 128),
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = ();

    /// `10.0.0.0/8`, `::1/128`, or an address alone.
    fn from_str(text: &str) -> Result<Self, ()> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.trim().parse().map_err(|_| ())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(most), |bits| bits.trim().parse().map_err(|_| ()))?;
        (bits <= most).then_some(Self { address, bits }).ok_or(())
    }
}

/// How many connections there may be; 0 is without a bound.
#[derive(Debug, Clone, Default)]
pub struct ConnectionLimits {
    /// `USER_MAX_CONNECTIONS` (20) of one user at this gateway.
    pub per_user: usize,
    /// `ADDRESS_MAX_CONNECTIONS` (off) from one address; an IPv6 client's is its /64.
    pub per_address: usize,
    /// `MAX_CONNECTIONS` (off) of this process.
    pub per_process: usize,
    /// `MAX_HTTP_CONNECTIONS` (1024) that are no WebSocket, or not yet.
    pub http: usize,
    /// `MAX_NEW_CONNECTIONS` (off) in a second.
    pub per_second: u32,
    /// `TRUSTED_PROXIES`: from these `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<Network>,
}

/// The gateway.
#[derive(Debug, Clone)]
pub struct GatewaySettings {
    /// Where it listens (`--host`, `--port`).
    pub listen: SocketAddr,
    /// `SERVER_ID`: this instance's name in records, metrics and `welcome`.
    pub server_id: String,
    /// `PRODUCE_TOPIC` of a gateway (`incoming_messages`).
    pub messages_topic: String,
    /// `AUTH_MODE`.
    pub auth: AuthMode,
    /// Signed tokens, in `AUTH_MODE=jwt`.
    pub jwt: Option<JwtSettings>,
    /// `TOKEN_ENDPOINT`.
    pub token_endpoint: TokenEndpoint,
    /// `ADMIN_KEY`.
    pub admin_key: Option<SecretString>,
    /// How many connections there may be.
    pub limits: ConnectionLimits,
    /// `USER_RATE_LIMIT_WINDOW_SECONDS` (60): 100 refusals in it are abuse.
    pub rate_window: Duration,
    /// `RATE_LIMIT_FAIL=open`: while the fan-out is away messages are taken without being counted.
    pub rate_fail_open: bool,
    /// `USER_MAX_PENDING` (32), for `welcome`; 0 is without a bound.
    pub max_pending: usize,
    /// `TOKEN_TTL` (3600 s).
    pub token_ttl: Duration,
    /// `CHAT_PAGE` (on): whether the chat page and the browser client are served.
    pub chat_page: bool,
    /// `ALLOW_ORIGINS`; `*` allows every origin.
    pub allow_origins: Vec<String>,
    /// `ALLOW_CREDENTIALS` for CORS (false).
    pub allow_credentials: bool,
    /// `MAX_CONTENT_CHARS` (8000).
    pub max_content_chars: usize,
    /// `MAX_FRAME_BYTES` (65536).
    pub max_frame_bytes: usize,
    /// `OUTBOUND_QUEUE_BYTES` of one socket (1 MiB).
    pub outbound_queue_bytes: usize,
    /// `PRODUCE_TIMEOUT_MS` (10000): how long a message may wait to be accepted.
    pub produce_timeout: Duration,
    /// `DRAIN_TIMEOUT_MS` (25000).
    pub drain_timeout: Duration,
    /// `HEAD_TIMEOUT_MS` (10000): how long a client may take to send its request's head.
    pub head_timeout: Duration,
    /// `PING_INTERVAL_MS` (25000) between protocol pings to a silent client.
    pub ping_interval: Duration,
    /// `PING_TIMEOUT_MS` (10000): a client that answers none by then is closed with 4408.
    pub ping_timeout: Duration,
    /// `OPEN_CHECK_MS` (5000): how often users with something open are read.
    pub open_check: Duration,
    /// `INTEROP`.
    pub interop: bool,
}

/// The pipeline core, in the worker and in the relay.
#[derive(Debug, Clone)]
pub struct PipelineSettings {
    /// `CONSUME_TOPIC`.
    pub topic: String,
    /// The dead-letter topic: the topic's name and `.dlq`.
    pub dead_letter_topic: String,
    /// Consumer group.
    pub group: String,
    /// `MAX_WORKERS` (50; the relay: `RELAY_MAX_IN_FLIGHT`, 512): records worked on at once.
    pub max_workers: usize,
    /// `MAX_DELIVERIES` (5): takings after which a record that keeps failing is a dead letter.
    pub max_deliveries: u32,
    /// `READ_AHEAD_BYTES` (8 MiB): records that wait to be worked on.
    pub read_ahead_bytes: usize,
    /// `DRAIN_TIMEOUT_MS` (25000).
    pub drain_timeout: Duration,
}

/// The worker.
#[derive(Debug, Clone)]
pub struct WorkerSettings {
    /// Its consumer.
    pub pipeline: PipelineSettings,
    /// `PRODUCE_TOPIC` of a worker (`responses`).
    pub responses_topic: String,
    /// The model's API; `None` for the built-in demo model.
    pub model: Option<ModelApiSettings>,
    /// What is asked of the model.
    pub prompt: PromptSettings,
    /// `MESSAGE_MAX_AGE` (12 h).
    pub message_max_age: Duration,
    /// `MESSAGE_DEADLINE_MS` (300000) for one message with all its attempts.
    pub message_deadline: Duration,
    /// `MAX_ANSWER_BYTES` (256 KiB), counted as JSON.
    pub max_answer_bytes: usize,
    /// `STREAM_FLUSH_MS` (30).
    pub stream_flush: Duration,
    /// `STREAM_FLUSH_BYTES` (1024).
    pub stream_flush_bytes: usize,
    /// Health and metrics address (`METRICS_PORT` 8002).
    pub admin_listen: SocketAddr,
}

/// The model's API and how it is called.
#[derive(Debug, Clone)]
pub struct ModelApiSettings {
    /// `OPENAI_BASE_URL` (<https://api.openai.com/v1>).
    pub base_url: url::Url,
    /// `OPENAI_API_KEY`; local servers need none.
    pub api_key: Option<SecretString>,
    /// `OPENAI_TIMEOUT_MS` (2000) until the first token.
    pub first_token_timeout: Duration,
    /// `OPENAI_IDLE_TIMEOUT_MS` (10000) between tokens.
    pub idle_timeout: Duration,
    /// `OPENAI_MAX_ATTEMPTS` (3).
    pub max_attempts: u32,
}

/// What is asked of the model.
#[derive(Debug, Clone)]
pub struct PromptSettings {
    /// `OPENAI_MODEL` (gpt-3.5-turbo).
    pub model: String,
    /// `SYSTEM_PROMPT`; empty for none.
    pub system_prompt: String,
    /// `OPENAI_MAX_TOKENS` (500).
    pub max_tokens: u32,
    /// `OPENAI_TEMPERATURE` (0.7).
    pub temperature: f64,
    /// `OPENAI_CONTEXT_TOKENS` (16385): prompt and answer together, estimated.
    pub context_tokens: usize,
    /// `KEEP_HISTORY` (true): earlier turns go into the prompt.
    pub keep_history: bool,
    /// `CHAT_HISTORY_MAX_MESSAGES` (20): questions and answers counted apart, as the original.
    pub history_max_messages: usize,
    /// `CHAT_HISTORY_TTL` (3600 s) since the conversation's last turn.
    pub history_ttl: Duration,
}

/// The relay.
#[derive(Debug, Clone)]
pub struct RelaySettings {
    /// Its consumer.
    pub pipeline: PipelineSettings,
    /// `RELAY_REWIND_SECONDS` (60).
    pub rewind: Duration,
    /// `RELAY_REBUILD_SECONDS` (600).
    pub rebuild: Duration,
    /// `LOG_EPOCH` (0): raised by who makes `responses` anew.
    pub log_epoch: String,
    /// Health and metrics address (`METRICS_PORT` 8001).
    pub admin_listen: SocketAddr,
}

/// Logs.
#[derive(Debug, Clone)]
pub struct LoggingSettings {
    /// `APP_NAME` (the role's name), in every line.
    pub app_name: String,
    /// `LOG_LEVEL` (info): a level of tracing or of Python, or a filter such as `info,chatmesh=debug`.
    pub level: String,
    /// `LOG_FORMAT`.
    pub format: LogFormat,
    /// `LOG_FOLDER`: rotating files besides the terminal.
    pub folder: Option<PathBuf>,
    /// `LOG_FILES` (14): how many daily files are kept.
    pub max_files: usize,
}

/// Traces, by the variables of OpenTelemetry.
#[derive(Debug, Clone)]
pub struct TraceSettings {
    /// `OTEL_EXPORTER_OTLP_ENDPOINT`: the collector; `None`: nothing is recorded.
    pub endpoint: Option<url::Url>,
    /// `OTEL_EXPORTER_OTLP_HEADERS`. Values may be secrets.
    pub headers: BTreeMap<String, SecretString>,
    /// `OTEL_EXPORTER_OTLP_TIMEOUT` (10000): for one request.
    pub timeout: Duration,
    /// `OTEL_SERVICE_NAME`.
    pub service_name: Option<String>,
    /// The service's name where nothing names it.
    pub role_name: String,
    /// `SERVER_ID`.
    pub instance: String,
    /// `OTEL_RESOURCE_ATTRIBUTES`.
    pub resource: BTreeMap<String, String>,
    /// `OTEL_TRACES_SAMPLER` (parentbased_always_on).
    pub sampler: TraceSampler,
    /// `OTEL_TRACES_SAMPLER_ARG` (1): the part that a ratio takes, 0 to 1.
    pub sampler_arg: f64,
}

/// `OTEL_TRACES_SAMPLER`: which traces are recorded. The first three don't ask who began one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TraceSampler {
    /// All.
    AlwaysOn,
    /// None.
    AlwaysOff,
    /// A part of them, chosen by their id.
    Ratio,
    /// As who began it says; all that begin here.
    ParentOrOn,
    /// As who began it says; none that begin here.
    ParentOrOff,
    /// As who began it says; a part of those that begin here.
    ParentOrRatio,
}

/// `LOG_FORMAT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line; the default where no terminal is.
    Json,
    /// For people; the default in a terminal.
    Pretty,
}
