//! From merged layers to checked settings.

use std::collections::BTreeMap;
use std::fmt;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::error::{ConfigErrors, Problem};
use super::keys::{self, Key};
use super::kind::{Kind, Value};
use super::layers::{self, DEFAULT, Sources};
use super::settings::{
    AuthMode, ConnectionLimits, EmbeddedSettings, GatewaySettings, JwtKeys, JwtSettings,
    KafkaSettings, LogFormat, LoggingSettings, ModelApiSettings, PipelineSettings, PromptSettings,
    RedisSettings, RelaySettings, TokenEndpoint, TraceSampler, TraceSettings, WorkerSettings,
};
use super::{Role, checks};
use crate::config::bounds::{Bounds, UserLimits};
use config::ValueKind;

/// What holds for one key.
#[derive(Clone)]
pub(super) struct Setting {
    pub(super) value: Value,
    pub(super) source: String,
    /// Of a map: each name's own source.
    pub(super) sources: BTreeMap<String, String>,
}

/// A configuration that was checked as a whole.
#[derive(Clone)]
pub struct Config {
    pub(super) role: Role,
    pub(super) settings: BTreeMap<&'static str, Setting>,
    pub(super) notices: Vec<String>,
}

// By hand: the settings hold secrets.
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}

impl Config {
    /// Reads the sources for a role and checks everything that the role uses. Keys that it does
    /// not use only have to exist.
    ///
    /// # Errors
    /// Everything that is wrong, at once.
    pub fn load(role: Role, sources: &Sources) -> Result<Self, ConfigErrors> {
        let merged = layers::merge(role, sources);
        let mut problems = merged.problems;
        let mut settings = BTreeMap::new();
        for key in keys::TABLE {
            let Some(raw) = merged.values.get(key.name) else {
                continue;
            };
            let source = raw.origin().unwrap_or(DEFAULT).to_owned();
            if let Some(value) = key.kind.read(&raw.kind) {
                let sources = sources_of_names(&raw.kind);
                let setting = Setting {
                    value,
                    source: joined(&sources).unwrap_or(source),
                    sources,
                };
                settings.insert(key.name, setting);
                continue;
            }
            if key.roles.contains(&role) {
                problems.push(not_allowed(key, &raw.kind, source));
            }
            let default = key.default_text(role).map(ValueKind::from);
            if let Some(value) = default.and_then(|text| key.kind.read(&text)) {
                let setting = Setting {
                    value,
                    source: DEFAULT.into(),
                    sources: BTreeMap::new(),
                };
                settings.insert(key.name, setting);
            }
        }
        let mut config = Self {
            role,
            settings,
            notices: Vec::new(),
        };
        checks::contradictions(&config, &mut problems);
        if !problems.is_empty() {
            return Err(ConfigErrors { problems });
        }
        config.notices = checks::notices(&config, &merged.variables);
        Ok(config)
    }

    /// The role that it was read for.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Sentences for the operator, to be logged as warnings at the start. No secrets.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// `SERVER_ID`, or the host's name, or role and process id.
    pub fn server_id(&self) -> String {
        if let Some(id) = self.text(&keys::SERVER_ID) {
            return id.to_owned();
        }
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let usable = |name: &str| Kind::Name.read(&name.into()).is_some();
        match host.trim() {
            // Two processes of a role on one machine must not share a name, and a developer's
            // machine is where that happens; in a container the host's name is unique.
            host if usable(host) && std::process::id() == 1 => host.to_owned(),
            host if usable(host) && host.len() < 100 => {
                format!("{host}-{}-{}", self.role, std::process::id())
            }
            _ => format!("{}-{}", self.role, std::process::id()),
        }
    }

    fn bounds(&self) -> Bounds {
        Bounds {
            dedup_ttl: self.duration(&keys::DEDUP_TTL),
            mailbox_ttl: self.duration(&keys::MAILBOX_TTL),
            mailbox_frames: self.size(&keys::MAILBOX_FRAMES),
            mailbox_bytes: self.size(&keys::MAILBOX_BYTES),
            history_turns: self.size(&keys::HISTORY_TURNS),
            history_ttl: self.duration(&keys::HISTORY_RETENTION),
            pending_ttl: self.duration(&keys::MESSAGE_MAX_AGE),
            limits: self.user_limits(),
        }
    }

    fn user_limits(&self) -> UserLimits {
        UserLimits {
            requests: self.narrow(&keys::USER_RATE_LIMIT_MAX_REQUESTS),
            window: self.duration(&keys::USER_RATE_LIMIT_WINDOW_SECONDS),
            daily_tokens: self.int(&keys::USER_DAILY_TOKENS),
            conversations: self.narrow(&keys::USER_MAX_CONVERSATIONS),
            // An original relay leaves messages pending until a gateway sees their answers.
            max_pending: if self.interop() {
                0
            } else {
                self.narrow(&keys::USER_MAX_PENDING)
            },
        }
    }

    /// How to reach Kafka.
    pub fn kafka(&self) -> KafkaSettings {
        let properties = self.map(&keys::KAFKA_PROPERTIES).into_iter();
        KafkaSettings {
            bootstrap_servers: self.list(&keys::KAFKA_BOOTSTRAP_SERVERS).join(","),
            topic_partitions: self.narrow(&keys::KAFKA_TOPIC_PARTITIONS),
            replication_factor: self.narrow(&keys::KAFKA_REPLICATION_FACTOR),
            linger: self.duration(&keys::KAFKA_LINGER_MS),
            produce_timeout: self.duration(&keys::PRODUCE_TIMEOUT_MS),
            interop: self.interop(),
            properties: properties.map(|(k, v)| (k, v.into())).collect(),
            client_id: self.server_id(),
        }
    }

    /// How to reach Redis.
    pub fn redis(&self) -> RedisSettings {
        RedisSettings {
            url: self.redis_url().into(),
            command_timeout: self.duration(&keys::REDIS_COMMAND_TIMEOUT_MS),
            bounds: self.bounds(),
        }
    }

    fn redis_url(&self) -> String {
        if let Some(url) = self.text(&keys::REDIS_URL) {
            return url.to_owned();
        }
        let host = self.text(&keys::REDIS_HOST).unwrap_or("localhost");
        let host = if host.contains(':') && !host.starts_with('[') {
            format!("[{host}]")
        } else {
            host.to_owned()
        };
        let port = self.int(&keys::REDIS_PORT);
        let db = self.int(&keys::REDIS_DB);
        let plain = format!("redis://{host}:{port}/{db}");
        let Some(password) = self.text(&keys::REDIS_PASSWORD) else {
            return plain;
        };
        let Ok(mut url) = url::Url::parse(&plain) else {
            return plain;
        };
        // A percent sign is the one thing that `set_password` does not encode.
        match url.set_password(Some(&password.replace('%', "%25"))) {
            Ok(()) => url.into(),
            Err(()) => plain,
        }
    }

    /// Where Redis is, for logs: no password.
    pub fn redis_place(&self) -> String {
        match url::Url::parse(&self.redis_url()) {
            Ok(url) => {
                let host = url.host_str().unwrap_or_default();
                url.port()
                    .map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
            }
            Err(_) => "the address in REDIS_URL".to_owned(),
        }
    }

    /// The embedded log and fan-out.
    pub fn embedded(&self) -> EmbeddedSettings {
        let data_dir = PathBuf::from(self.owned(&keys::DATA_DIR));
        EmbeddedSettings {
            data_dir: (!self.bool(&keys::EPHEMERAL)).then_some(data_dir),
            partitions: self.narrow(&keys::EMBEDDED_PARTITIONS),
            retention: self.duration(&keys::LOG_RETENTION),
            min_free_disk: self.int(&keys::MIN_FREE_DISK),
            bounds: self.bounds(),
        }
    }

    pub(super) fn auth_mode(&self) -> AuthMode {
        match self.text(&keys::AUTH_MODE) {
            Some("open") => AuthMode::Open,
            Some("jwt") => AuthMode::Jwt,
            None if self.role == Role::AllInOne && self.listen().ip().is_loopback() => {
                AuthMode::Open
            }
            _ => AuthMode::Stored,
        }
    }

    /// Signed tokens; `None` in other modes.
    fn jwt(&self) -> Option<JwtSettings> {
        if self.auth_mode() != AuthMode::Jwt {
            return None;
        }
        let keys = if let Some(secret) = self.secret(&keys::JWT_SECRET) {
            JwtKeys::Secret(secret)
        } else if let Some(path) = self.text(&keys::JWT_PUBLIC_KEY_FILE) {
            JwtKeys::PublicKeyFile(path.into())
        } else {
            let place = self.text(&keys::JWT_JWKS)?;
            match url::Url::parse(place) {
                Ok(url) if matches!(url.scheme(), "http" | "https") => JwtKeys::JwksUrl(url),
                _ => JwtKeys::JwksFile(place.into()),
            }
        };
        Some(JwtSettings {
            keys,
            audience: self.list(&keys::JWT_AUDIENCE),
            issuer: self.list(&keys::JWT_ISSUER),
        })
    }

    pub(super) fn token_endpoint(&self) -> TokenEndpoint {
        let key = self.secret(&keys::ADMIN_KEY);
        match (self.text(&keys::TOKEN_ENDPOINT), key) {
            (Some("open"), _) => TokenEndpoint::Open,
            (Some("admin") | None, Some(key)) => TokenEndpoint::Admin(key),
            _ => TokenEndpoint::Off,
        }
    }

    pub(super) fn listen(&self) -> SocketAddr {
        self.address(&keys::HOST, &keys::PORT)
    }

    fn admin_listen(&self) -> SocketAddr {
        self.address(&keys::METRICS_HOST, &keys::METRICS_PORT)
    }

    /// Where this role's `/health` is: the gateway's own port, or the metrics port.
    pub fn health_listen(&self) -> SocketAddr {
        match self.role {
            Role::Gateway | Role::AllInOne => self.listen(),
            Role::AiWorker | Role::Relay => self.admin_listen(),
        }
    }

    /// The gateway.
    pub fn gateway(&self) -> GatewaySettings {
        GatewaySettings {
            listen: self.listen(),
            server_id: self.server_id(),
            messages_topic: self.messages_topic(),
            auth: self.auth_mode(),
            jwt: self.jwt(),
            token_endpoint: self.token_endpoint(),
            admin_key: self.secret(&keys::ADMIN_KEY),
            limits: ConnectionLimits {
                per_user: self.size(&keys::USER_MAX_CONNECTIONS),
                per_address: self.size(&keys::ADDRESS_MAX_CONNECTIONS),
                per_process: self.size(&keys::MAX_CONNECTIONS),
                http: self.size(&keys::MAX_HTTP_CONNECTIONS),
                per_second: self.narrow(&keys::MAX_NEW_CONNECTIONS),
                trusted_proxies: self
                    .list(&keys::TRUSTED_PROXIES)
                    .iter()
                    .filter_map(|net| net.parse().ok())
                    .collect(),
            },
            rate_window: self.duration(&keys::USER_RATE_LIMIT_WINDOW_SECONDS),
            rate_fail_open: self.text(&keys::RATE_LIMIT_FAIL) == Some("open"),
            max_pending: self.user_limits().max_pending as usize,
            token_ttl: self.duration(&keys::TOKEN_TTL),
            chat_page: self.text(&keys::CHAT_PAGE) != Some("off"),
            allow_origins: self.list(&keys::ALLOW_ORIGINS),
            allow_credentials: self.bool(&keys::ALLOW_CREDENTIALS) && !self.any_origin(),
            max_content_chars: self.size(&keys::MAX_CONTENT_CHARS),
            max_frame_bytes: self.size(&keys::MAX_FRAME_BYTES),
            outbound_queue_bytes: self.size(&keys::OUTBOUND_QUEUE_BYTES),
            produce_timeout: self.duration(&keys::PRODUCE_TIMEOUT_MS),
            drain_timeout: self.duration(&keys::DRAIN_TIMEOUT_MS),
            head_timeout: self.duration(&keys::HEAD_TIMEOUT_MS),
            ping_interval: self.duration(&keys::PING_INTERVAL_MS),
            ping_timeout: self.duration(&keys::PING_TIMEOUT_MS),
            open_check: self.duration(&keys::OPEN_CHECK_MS),
            interop: self.interop(),
        }
    }

    /// Whether pages of every origin may connect.
    pub(super) fn any_origin(&self) -> bool {
        self.list(&keys::ALLOW_ORIGINS).iter().any(|o| o == "*")
    }

    fn interop(&self) -> bool {
        self.role != Role::AllInOne && self.bool(&keys::INTEROP)
    }

    /// `all-in-one` has a log of its own, so nobody else's topic names concern it.
    fn messages_topic(&self) -> String {
        match self.role {
            Role::AllInOne => "incoming_messages".to_owned(),
            _ => self.owned(&keys::MESSAGES_TOPIC),
        }
    }

    fn responses_topic(&self) -> String {
        match self.role {
            Role::AllInOne => "responses".to_owned(),
            _ => self.owned(&keys::RESPONSES_TOPIC),
        }
    }

    /// Where the dead letters of the worker and of the relay are.
    pub fn dead_letter_topics(&self) -> [String; 2] {
        [self.messages_topic(), self.responses_topic()].map(|topic| format!("{topic}.dlq"))
    }

    /// Whether somebody said where Kafka or Redis is: a deployment on servers is meant.
    pub fn names_servers(&self) -> bool {
        self.said(&[&keys::KAFKA_BOOTSTRAP_SERVERS]) || self.names_redis()
    }

    /// Whether somebody said where Redis is.
    pub fn names_redis(&self) -> bool {
        self.said(&[&keys::REDIS_URL, &keys::REDIS_HOST])
    }

    fn said(&self, keys: &[&Key]) -> bool {
        keys.iter().any(|key| {
            let setting = self.settings.get(key.name);
            setting.is_some_and(|setting| setting.source != DEFAULT)
        })
    }

    fn pipeline(&self, topic: String, group: &str, max_workers: &Key) -> PipelineSettings {
        PipelineSettings {
            dead_letter_topic: format!("{topic}.dlq"),
            topic,
            group: group.to_owned(),
            max_workers: self.size(max_workers),
            max_deliveries: self.narrow(&keys::MAX_DELIVERIES),
            read_ahead_bytes: self.size(&keys::READ_AHEAD_BYTES),
            drain_timeout: self.duration(&keys::DRAIN_TIMEOUT_MS),
        }
    }

    /// The worker.
    pub fn worker(&self) -> WorkerSettings {
        WorkerSettings {
            pipeline: self.pipeline(
                self.messages_topic(),
                "ai-consumer-group",
                &keys::MAX_WORKERS,
            ),
            responses_topic: self.responses_topic(),
            model: self.model_api(),
            prompt: PromptSettings {
                model: self.owned(&keys::OPENAI_MODEL),
                system_prompt: self.owned(&keys::SYSTEM_PROMPT),
                max_tokens: self.narrow(&keys::OPENAI_MAX_TOKENS),
                temperature: self.float(&keys::OPENAI_TEMPERATURE),
                context_tokens: self.size(&keys::OPENAI_CONTEXT_TOKENS),
                keep_history: self.bool(&keys::KEEP_HISTORY),
                history_max_messages: self.size(&keys::CHAT_HISTORY_MAX_MESSAGES),
                history_ttl: self.duration(&keys::CHAT_HISTORY_TTL),
            },
            message_max_age: self.duration(&keys::MESSAGE_MAX_AGE),
            message_deadline: self.duration(&keys::MESSAGE_DEADLINE_MS),
            max_answer_bytes: self.size(&keys::MAX_ANSWER_BYTES),
            stream_flush: self.duration(&keys::STREAM_FLUSH_MS),
            stream_flush_bytes: self.size(&keys::STREAM_FLUSH_BYTES),
            admin_listen: self.admin_listen(),
        }
    }

    /// `None`: neither a key nor an address, so the demo model answers.
    fn model_api(&self) -> Option<ModelApiSettings> {
        let api_key = self.secret(&keys::OPENAI_API_KEY);
        let base_url = match (self.text(&keys::OPENAI_BASE_URL), &api_key) {
            (Some(url), _) => url,
            (None, Some(_)) => "https://api.openai.com/v1",
            (None, None) => return None,
        };
        Some(ModelApiSettings {
            base_url: url::Url::parse(base_url).ok()?,
            api_key,
            first_token_timeout: self.duration(&keys::OPENAI_TIMEOUT_MS),
            idle_timeout: self.duration(&keys::OPENAI_IDLE_TIMEOUT_MS),
            max_attempts: self.narrow(&keys::OPENAI_MAX_ATTEMPTS),
        })
    }

    /// The relay.
    pub fn relay(&self) -> RelaySettings {
        RelaySettings {
            pipeline: self.pipeline(
                self.responses_topic(),
                "message-relay-group",
                &keys::RELAY_MAX_IN_FLIGHT,
            ),
            rewind: self.duration(&keys::RELAY_REWIND_SECONDS),
            rebuild: self.duration(&keys::RELAY_REBUILD_SECONDS),
            log_epoch: self.owned(&keys::LOG_EPOCH),
            admin_listen: self.admin_listen(),
        }
    }

    /// Traces.
    pub fn traces(&self) -> TraceSettings {
        let endpoint = self.text(&keys::OTEL_EXPORTER_OTLP_ENDPOINT);
        let headers = self.map(&keys::OTEL_EXPORTER_OTLP_HEADERS).into_iter();
        let resource = self.map(&keys::OTEL_RESOURCE_ATTRIBUTES).into_iter();
        TraceSettings {
            endpoint: endpoint.and_then(|url| url::Url::parse(url).ok()),
            headers: headers
                .map(|(name, value)| (name, percent_decoded(&value).into()))
                .collect(),
            timeout: self.duration(&keys::OTEL_EXPORTER_OTLP_TIMEOUT),
            service_name: self.text(&keys::OTEL_SERVICE_NAME).map(str::to_owned),
            role_name: format!("chatmesh-{}", self.role.as_str()),
            instance: self.server_id(),
            resource: resource
                .map(|(name, value)| (name, percent_decoded(&value)))
                .collect(),
            sampler: match self.text(&keys::OTEL_TRACES_SAMPLER) {
                Some("always_on") => TraceSampler::AlwaysOn,
                Some("always_off") => TraceSampler::AlwaysOff,
                Some("traceidratio") => TraceSampler::Ratio,
                Some("parentbased_always_off") => TraceSampler::ParentOrOff,
                Some("parentbased_traceidratio") => TraceSampler::ParentOrRatio,
                _ => TraceSampler::ParentOrOn,
            },
            sampler_arg: self.float(&keys::OTEL_TRACES_SAMPLER_ARG),
        }
    }

    /// Logs.
    pub fn logging(&self) -> LoggingSettings {
        let app_name = self.text(&keys::APP_NAME).unwrap_or(self.role.as_str());
        LoggingSettings {
            app_name: app_name.to_owned(),
            level: self.owned(&keys::LOG_LEVEL),
            format: match self.text(&keys::LOG_FORMAT) {
                Some("json") => LogFormat::Json,
                Some("pretty") => LogFormat::Pretty,
                _ if std::io::stdout().is_terminal() => LogFormat::Pretty,
                _ => LogFormat::Json,
            },
            folder: self.text(&keys::LOG_FOLDER).map(PathBuf::from),
            max_files: self.size(&keys::LOG_FILES),
        }
    }
}

/// As the variables of OpenTelemetry have it; what is no encoding stays as it is.
fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let code = after
            .get(..2)
            .and_then(|code| std::str::from_utf8(code).ok());
        let code = code.filter(|code| code.bytes().all(|b| b.is_ascii_hexdigit()));
        let byte = code.and_then(|code| u8::from_str_radix(code, 16).ok());
        if let (b'%', Some(byte)) = (first, byte) {
            bytes.push(byte);
            rest = &after[2..];
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    String::from_utf8(bytes).unwrap_or_else(|_| text.to_owned())
}

/// Of a table: which name came from where.
fn sources_of_names(raw: &ValueKind) -> BTreeMap<String, String> {
    let ValueKind::Table(table) = raw else {
        return BTreeMap::new();
    };
    table
        .iter()
        .map(|(name, value)| (name.clone(), value.origin().unwrap_or(DEFAULT).to_owned()))
        .collect()
}

fn joined(sources: &BTreeMap<String, String>) -> Option<String> {
    let mut distinct: Vec<&str> = sources.values().map(String::as_str).collect();
    distinct.sort_unstable();
    distinct.dedup();
    (!distinct.is_empty()).then(|| distinct.join(", "))
}

fn not_allowed(key: &Key, raw: &ValueKind, source: String) -> Problem {
    let value = match raw {
        _ if key.secret => "the value (hidden)".to_owned(),
        // The address may hold a user's name and password.
        ValueKind::String(text) if key.name.ends_with("url") && text.contains('@') => {
            "the value (hidden)".to_owned()
        }
        ValueKind::String(text) => format!("{text:?}"),
        other => other.to_string(),
    };
    Problem {
        key: key.name.into(),
        source,
        text: format!("{value} is not allowed; allowed: {}", key.kind.allowed()),
    }
}
