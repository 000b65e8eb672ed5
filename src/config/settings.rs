//! The validated settings of each part of the program, as plain types. The comment of each field
//! names the variable that sets it; `docs/settings.md` has the defaults.

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
    /// `KAFKA_BOOTSTRAP_SERVERS`: brokers to connect to first, as `host:port`, separated by commas.
    pub bootstrap_servers: String,
    /// `KAFKA_TOPIC_PARTITIONS`: number of partitions of each topic that chatmesh creates.
    pub topic_partitions: i32,
    /// `KAFKA_REPLICATION_FACTOR`: number of replicas of each topic that chatmesh creates.
    pub replication_factor: i16,
    /// `KAFKA_LINGER_MS`: time for which the producer collects records into a batch.
    pub linger: Duration,
    /// `PRODUCE_TIMEOUT_MS`: time limit for the acknowledgement of a record.
    pub produce_timeout: Duration,
    /// `INTEROP`: whether consumers use the assignor `range`, the only assignor that services of
    /// the original system in the same group support.
    pub interop: bool,
    /// `KAFKA_PROPERTIES`: librdkafka properties, which override the properties that chatmesh sets.
    /// Values may be secrets.
    pub properties: BTreeMap<String, SecretString>,
    /// The property `client.id`: the process's `SERVER_ID`.
    pub client_id: String,
}

/// Settings of the Redis client.
#[derive(Debug, Clone)]
pub struct RedisSettings {
    /// `REDIS_URL`, or a URL built from `REDIS_HOST`, `REDIS_PORT`, `REDIS_PASSWORD` and
    /// `REDIS_DB`. May contain a password.
    pub url: SecretString,
    /// `REDIS_COMMAND_TIMEOUT_MS`: time after which a command fails as unavailable.
    pub command_timeout: Duration,
    /// Retention of the data in the fan-out, and limits of one user.
    pub bounds: Bounds,
}

/// Settings of the embedded log and fan-out.
#[derive(Debug, Clone)]
pub struct EmbeddedSettings {
    /// `DATA_DIR`: directory of the data. `None` if `EPHEMERAL` is set: all data stays in memory.
    pub data_dir: Option<PathBuf>,
    /// `EMBEDDED_PARTITIONS`: number of partitions of each topic.
    pub partitions: i32,
    /// `LOG_RETENTION`: age after which a record is removed, once every consumer group has finished
    /// it.
    pub retention: Duration,
    /// `MIN_FREE_DISK`: free disk space in bytes below which new messages are rejected.
    pub min_free_disk: u64,
    /// Retention of the data in the fan-out, and limits of one user.
    pub bounds: Bounds,
}

/// `AUTH_MODE`: how tokens are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthMode {
    /// A token must equal the user's token in the fan-out, as in the original system.
    Stored,
    /// A token is signed (JWT), and its signature is verified.
    Jwt,
    /// Every token that is not empty is valid.
    Open,
}

/// The keys that verify signed tokens.
#[derive(Debug, Clone)]
pub enum JwtKeys {
    /// `JWT_SECRET`: a key for HS256. chatmesh can issue tokens with this key, too.
    Secret(SecretString),
    /// `JWT_PUBLIC_KEY_FILE`: path of a public key in PEM: RSA (RS256), P-256 (ES256) or Ed25519
    /// (EdDSA).
    PublicKeyFile(PathBuf),
    /// `JWT_JWKS`: path of a key set, which is reloaded regularly.
    JwksFile(PathBuf),
    /// `JWT_JWKS`: URL of a key set, which is reloaded regularly.
    JwksUrl(url::Url),
}

/// How signed tokens are verified.
#[derive(Debug, Clone)]
pub struct JwtSettings {
    /// The keys with which a token may be signed.
    pub keys: JwtKeys,
    /// `JWT_AUDIENCE`: accepted audiences. The claim `aud` of a token must contain one of these
    /// texts. If empty, `aud` is not checked.
    pub audience: Vec<String>,
    /// `JWT_ISSUER`: accepted issuers. The claim `iss` of a token must be one of these texts. If
    /// empty, `iss` is not checked.
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

/// An IP network: all addresses that begin with the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    /// Number of leading bits in which an address of the network equals `address`.
    prefix_bits: u8,
}

impl Network {
    /// Whether the network contains the address. An IPv4-mapped IPv6 address counts as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        let has_same_prefix = |a: u128, b: u128, width: u32| {
            let host_bits = width - u32::from(self.prefix_bits);
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
        let (address, prefix_bits) = match text.split_once('/') {
            Some((address, prefix_bits)) => (address, Some(prefix_bits)),
            None => (text, None),
        };
        let address: IpAddr = address.trim().parse().map_err(|_| ())?;
        let max_bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix_bits =
            prefix_bits.map_or(Ok(max_bits), |bits| bits.trim().parse().map_err(|_| ()))?;
        (prefix_bits <= max_bits)
            .then_some(Self {
                address,
                prefix_bits,
            })
            .ok_or(())
    }
}

/// Limits on the connections to one gateway. 0 disables a limit.
#[derive(Debug, Clone, Default)]
pub struct ConnectionLimits {
    /// `USER_MAX_CONNECTIONS`: maximum number of WebSockets of one user.
    pub per_user: usize,
    /// `ADDRESS_MAX_CONNECTIONS`: maximum number of WebSockets from one IPv4 address, or from one
    /// IPv6 /64 network, and of other HTTP connections from there.
    pub per_address: usize,
    /// `MAX_CONNECTIONS`: maximum number of all WebSockets.
    pub per_process: usize,
    /// `MAX_HTTP_CONNECTIONS`: maximum number of connections that are not, or not yet, WebSockets.
    pub http: usize,
    /// `MAX_NEW_CONNECTIONS`: maximum number of new WebSockets per second.
    pub per_second: u32,
    /// `TRUSTED_PROXIES`: networks of the proxies whose `X-Forwarded-For` header is trusted.
    pub trusted_proxies: Vec<Network>,
}

/// Settings of the gateway.
#[derive(Debug, Clone)]
pub struct GatewaySettings {
    /// The address on which the gateway listens (`HOST`, `PORT`).
    pub listen: SocketAddr,
    /// `SERVER_ID`: the gateway's name in records, metrics and `welcome`.
    pub server_id: String,
    /// `MESSAGES_TOPIC`: topic to which messages are appended.
    pub messages_topic: String,
    /// `AUTH_MODE`: how tokens are checked.
    pub auth: AuthMode,
    /// Keys and claims for the verification of signed tokens. `None` unless `AUTH_MODE=jwt`.
    pub jwt: Option<JwtSettings>,
    /// `TOKEN_ENDPOINT`: who may call `POST /token`.
    pub token_endpoint: TokenEndpoint,
    /// `ADMIN_KEY`: key of administrative HTTP calls. `None`: no such call is allowed.
    pub admin_key: Option<SecretString>,
    /// Limits on connections.
    pub limits: ConnectionLimits,
    /// `USER_RATE_LIMIT_WINDOW_SECONDS`: window of the message rate. After 100 rejections within a
    /// window, a connection is closed.
    pub rate_window: Duration,
    /// `RATE_LIMIT_FAIL=open`: whether messages are accepted without counting while the fan-out is
    /// unavailable.
    pub rate_fail_open: bool,
    /// `USER_MAX_PENDING`, which `welcome` tells the client: maximum number of messages of one user
    /// that may wait for their answers. 0 disables the limit.
    pub max_pending: usize,
    /// `TOKEN_TTL`: lifetime of the tokens that chatmesh issues.
    pub token_ttl: Duration,
    /// `CHAT_PAGE`: whether the chat page and the browser client are served.
    pub chat_page: bool,
    /// `ALLOW_ORIGINS`: origins of web pages that may connect. `*` allows every origin.
    pub allow_origins: Vec<String>,
    /// `ALLOW_CREDENTIALS`: whether cross-origin requests may carry credentials (CORS). Always
    /// false while every origin is allowed.
    pub allow_credentials: bool,
    /// `MAX_CONTENT_CHARS`: maximum length of a message's content, in characters.
    pub max_content_chars: usize,
    /// `MAX_FRAME_BYTES`: maximum size of a frame from a client, in bytes.
    pub max_frame_bytes: usize,
    /// `OUTBOUND_QUEUE_BYTES`: maximum size of one connection's outbound queue, in bytes.
    pub outbound_queue_bytes: usize,
    /// `PRODUCE_TIMEOUT_MS`: time within which a message must be accepted.
    pub produce_timeout: Duration,
    /// `DRAIN_TIMEOUT_MS`: time for the drain after SIGTERM.
    pub drain_timeout: Duration,
    /// `HEAD_TIMEOUT_MS`: time within which a client must send the head of its HTTP request.
    pub head_timeout: Duration,
    /// `PING_INTERVAL_MS`: time without a frame from the client after which a ping is sent.
    pub ping_interval: Duration,
    /// `PING_TIMEOUT_MS`: time within which a client must answer a ping. Otherwise the connection
    /// is closed with 4408.
    pub ping_timeout: Duration,
    /// `OPEN_CHECK_MS`: interval at which the gateway reads the mailboxes of users with pending
    /// messages, in case a published terminal frame was lost.
    pub open_check_interval: Duration,
    /// `INTEROP`: whether services of the original system are part of the deployment.
    pub interop: bool,
}

/// Settings of the record pipeline, in the worker and in the relay.
#[derive(Debug, Clone)]
pub struct PipelineSettings {
    /// The consumed topic: `MESSAGES_TOPIC` in the worker, `RESPONSES_TOPIC` in the relay.
    pub topic: String,
    /// The dead-letter topic: the consumed topic's name, followed by `.dlq`.
    pub dead_letter_topic: String,
    /// The name of the consumer group.
    pub group: String,
    /// Maximum number of records that are processed at the same time: `MAX_WORKERS`, or in the
    /// relay `RELAY_MAX_IN_FLIGHT`.
    pub max_workers: usize,
    /// `MAX_DELIVERIES`: maximum number of times that one process tries a record whose processing
    /// fails, and maximum number of owners that may begin one message. Above either, the record
    /// becomes a dead letter.
    pub max_deliveries: u32,
    /// `READ_AHEAD_BYTES`: size of the records in memory, in bytes, at which the consumer is
    /// paused.
    pub read_ahead_bytes: usize,
    /// `DRAIN_TIMEOUT_MS`: time for the drain after SIGTERM.
    pub drain_timeout: Duration,
}

/// Settings of the worker.
#[derive(Debug, Clone)]
pub struct WorkerSettings {
    /// Settings of the record pipeline.
    pub pipeline: PipelineSettings,
    /// `RESPONSES_TOPIC`: topic to which terminal records are appended.
    pub responses_topic: String,
    /// Settings of the model's API. `None` if the built-in demo model answers.
    pub model: Option<ModelApiSettings>,
    /// Content and options of requests to the model.
    pub prompt: PromptSettings,
    /// `MESSAGE_MAX_AGE`: age above which a message is not answered; it fails with `expired`.
    pub message_max_age: Duration,
    /// `MESSAGE_DEADLINE_MS`: time limit for the answer to one message, including all attempts.
    pub message_deadline: Duration,
    /// `MAX_ANSWER_BYTES`: maximum size of an answer with all its parts as JSON, in bytes.
    pub max_answer_bytes: usize,
    /// `REASONING`: what clients receive of a model's reasoning.
    pub reasoning: Reasoning,
    /// `STREAM_FLUSH_MS`: time for which text is collected into one delta.
    pub stream_flush: Duration,
    /// `STREAM_FLUSH_BYTES`: size of the collected text, in bytes, at which a delta is published at
    /// once.
    pub stream_flush_bytes: usize,
    /// Address on which the worker serves health and metrics (`METRICS_HOST`, `METRICS_PORT`).
    pub admin_listen: SocketAddr,
}

/// `REASONING`: what clients receive of a model's reasoning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Reasoning {
    /// The text while the model writes it. Terminal frame and history have only its length.
    #[default]
    Show,
    /// The text while the model writes it, and in terminal frame and history.
    Keep,
    /// Nothing: the worker discards it.
    Drop,
}

/// Settings of the model's API.
#[derive(Debug, Clone)]
pub struct ModelApiSettings {
    /// `OPENAI_BASE_URL`: base URL of an OpenAI-compatible API.
    pub base_url: url::Url,
    /// `OPENAI_API_KEY`: key of the API. `None` for a local server, which needs no key.
    pub api_key: Option<SecretString>,
    /// `OPENAI_TIMEOUT_MS`: time within which the model must send the first token.
    pub first_token_timeout: Duration,
    /// `OPENAI_IDLE_TIMEOUT_MS`: time after a token within which the model must send the next
    /// token.
    pub idle_timeout: Duration,
    /// `OPENAI_MAX_ATTEMPTS`: maximum number of calls for one message.
    pub max_attempts: u32,
}

/// Content and options of requests to the model.
#[derive(Debug, Clone)]
pub struct PromptSettings {
    /// `OPENAI_MODEL`: name of the model.
    pub model: String,
    /// `SYSTEM_PROMPT`: instructions at the start of every prompt. Empty for no instructions.
    pub system_prompt: String,
    /// `OPENAI_MAX_TOKENS`: maximum length of an answer, in tokens.
    pub max_tokens: u32,
    /// `OPENAI_TEMPERATURE`: sampling temperature, 0 to 2.
    pub temperature: f64,
    /// `OPENAI_CONTEXT_TOKENS`: maximum length of prompt and answer together, in estimated tokens.
    pub context_window_tokens: usize,
    /// `KEEP_HISTORY`: whether the prompt contains earlier turns.
    pub keep_history: bool,
    /// `CHAT_HISTORY_MAX_MESSAGES`: maximum number of earlier messages in the prompt. A question
    /// and its answer count as two.
    pub history_max_messages: usize,
    /// `CHAT_HISTORY_TTL`: time since a conversation's last turn after which the prompt contains no
    /// earlier turns.
    pub max_newest_turn_age: Duration,
}

/// Settings of the relay.
#[derive(Debug, Clone)]
pub struct RelaySettings {
    /// Settings of the record pipeline.
    pub pipeline: PipelineSettings,
    /// `RELAY_REWIND_SECONDS`: how far back a partition is rewound after an assignment, a reconnect
    /// or a failover.
    pub rewind_window: Duration,
    /// `RELAY_REBUILD_SECONDS`: how far back a partition is rewound after Redis has lost its data.
    pub rebuild_window: Duration,
    /// `LOG_EPOCH`: part of every position. Operators change it when the topic `responses` is
    /// recreated.
    pub log_epoch: String,
    /// Address on which the relay serves health and metrics (`METRICS_HOST`, `METRICS_PORT`).
    pub admin_listen: SocketAddr,
}

/// Settings of logs.
#[derive(Debug, Clone)]
pub struct LoggingSettings {
    /// `APP_NAME`: service name in every log line.
    pub app_name: String,
    /// `LOG_LEVEL`: a level or a filter of `tracing`.
    pub level: String,
    /// `LOG_FORMAT`: format of the log lines.
    pub format: LogFormat,
    /// `LOG_FOLDER`: directory of daily log files, in addition to standard output. `None`: log
    /// lines are written to standard output only.
    pub folder: Option<PathBuf>,
    /// `LOG_FILES`: number of daily log files that are retained.
    pub max_files: usize,
}

/// Settings of traces, set by OpenTelemetry's variables.
#[derive(Debug, Clone)]
pub struct TraceSettings {
    /// `OTEL_EXPORTER_OTLP_ENDPOINT`: URL of the collector. `None`: no traces are recorded.
    pub endpoint: Option<url::Url>,
    /// `OTEL_EXPORTER_OTLP_HEADERS`: headers of requests to the collector. Values may be secrets.
    pub headers: BTreeMap<String, SecretString>,
    /// `OTEL_EXPORTER_OTLP_TIMEOUT`: time limit of one request to the collector.
    pub timeout: Duration,
    /// `OTEL_SERVICE_NAME`: service name in traces, if it is set.
    pub service_name: Option<String>,
    /// `chatmesh-` and the role's name: the service name if neither `OTEL_SERVICE_NAME` nor a
    /// resource attribute sets a service name.
    pub default_service_name: String,
    /// `SERVER_ID`: the process's name in traces.
    pub instance: String,
    /// `OTEL_RESOURCE_ATTRIBUTES`: additional resource attributes in traces.
    pub resource: BTreeMap<String, String>,
    /// `OTEL_TRACES_SAMPLER`: which traces are recorded.
    pub sampler: TraceSampler,
    /// `OTEL_TRACES_SAMPLER_ARG`: fraction of traces that a ratio sampler records, 0 to 1.
    pub sampler_arg: f64,
}

/// `OTEL_TRACES_SAMPLER`: which traces are recorded. The parent-based samplers follow the caller's
/// decision if the caller has begun the trace; their variants say which of the traces that begin in
/// chatmesh are recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TraceSampler {
    /// Records all traces.
    AlwaysOn,
    /// Records no traces.
    AlwaysOff,
    /// Records a fraction of all traces, chosen by trace id.
    Ratio,
    /// Parent-based: records all traces that begin in chatmesh.
    ParentBasedAlwaysOn,
    /// Parent-based: records no traces that begin in chatmesh.
    ParentBasedAlwaysOff,
    /// Parent-based: records a fraction of the traces that begin in chatmesh, chosen by trace id.
    ParentBasedRatio,
}

/// `LOG_FORMAT`: the format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object per line. The default if standard output is no terminal.
    Json,
    /// Text for people. The default if standard output is a terminal.
    Pretty,
}
