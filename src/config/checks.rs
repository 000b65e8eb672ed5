//! Checks across settings: finds contradictions, which are errors, and composes notices, which are
//! logged as warnings at the start.

use std::collections::BTreeMap;

use super::error::Problem;
use super::keys::{self, Key};
use super::settings::{AuthMode, Network, TokenEndpoint};
use super::{Config, Role};

/// librdkafka's default of `message.max.bytes`, the maximum size of a record in bytes.
const DEFAULT_MESSAGE_MAX_BYTES: u64 = 1_000_000;

/// Size in bytes that a terminal record may need for everything besides the answer: field names,
/// usage and identifiers.
const TERMINAL_RECORD_OVERHEAD_BYTES: u64 = 16 * 1024;

/// Minimum size of an HS256 key in bytes, which RFC 7518 demands.
const MIN_JWT_SECRET_BYTES: usize = 32;

/// librdkafka properties that `KAFKA_PROPERTIES` must not set, each with the reason: chatmesh's
/// guarantees depend on the property, or the property has a setting of its own.
const RESERVED_PROPERTIES: [(&str, &str); 5] = [
    ("bootstrap.servers", "set kafka.bootstrap_servers"),
    ("group.id", "the names of the groups are fixed"),
    (
        "enable.auto.offset.store",
        "offsets are stored when records are finished",
    ),
    ("enable.idempotence", "it must stay on"),
    (
        "partitioner",
        "messages must be partitioned as in the original system",
    ),
];

/// Finds the contradictions between the settings that the role uses, and collects them.
struct Contradictions<'a> {
    config: &'a Config,
    problems: Vec<Problem>,
}

/// Returns all contradictions between settings that the role uses.
pub(super) fn contradictions(config: &Config) -> Vec<Problem> {
    let mut found = Contradictions {
        config,
        problems: Vec::new(),
    };
    found.check_authentication();
    found.check_limits();
    found.check_times();
    found.check_model();
    found.check_kafka();
    found.check_interop();
    found.problems
}

impl Contradictions<'_> {
    fn int(&self, key: &Key) -> u64 {
        self.config.int(key)
    }

    /// Adds a contradiction between `keys`, if the role uses all of them.
    fn add(&mut self, keys: &[&Key], text: impl Into<String>) {
        let role = self.config.role();
        if keys.iter().any(|key| !key.roles.contains(&role)) {
            return;
        }
        let source = match keys {
            [key] => self.config.source(key).to_owned(),
            _ => self.explicit_sources(keys),
        };
        let names: Vec<&str> = keys.iter().map(|key| key.name).collect();
        self.problems.push(Problem {
            key: names.join(", "),
            source,
            text: text.into(),
        });
    }

    /// The sources of the `keys` that a file, variable or flag sets, as one text. If none of the
    /// keys is set, the text says so.
    fn explicit_sources(&self, keys: &[&Key]) -> String {
        let sources: Vec<String> = keys
            .iter()
            .filter(|key| self.config.is_explicit(key))
            .map(|key| format!("{}: {}", key.name, self.config.source(key)))
            .collect();
        if sources.is_empty() {
            return "all have their defaults".to_owned();
        }
        sources.join("; ")
    }

    fn check_authentication(&mut self) {
        let config = self.config;
        if config.text(&keys::TOKEN_ENDPOINT) == Some("admin")
            && config.text(&keys::ADMIN_KEY).is_none()
        {
            self.add(
                &[&keys::TOKEN_ENDPOINT, &keys::ADMIN_KEY],
                "admin needs an admin key; set auth.admin_key (ADMIN_KEY), or off or open",
            );
        }
        if config.text(&keys::AUTH_MODE) != Some("jwt") {
            return;
        }
        let key_settings = [
            &keys::JWT_SECRET,
            &keys::JWT_PUBLIC_KEY_FILE,
            &keys::JWT_JWKS,
        ];
        let given = key_settings.iter().filter(|key| config.text(key).is_some());
        if given.count() != 1 {
            let [secret, file, jwks] = key_settings;
            self.add(
                &[&keys::AUTH_MODE, secret, file, jwks],
                "jwt needs exactly one of auth.jwt_secret (JWT_SECRET), \
                 auth.jwt_public_key_file and auth.jwt_jwks",
            );
        }
        let is_short = |secret: &str| secret.len() < MIN_JWT_SECRET_BYTES;
        if config.text(&keys::JWT_SECRET).is_some_and(is_short) {
            self.add(
                &[&keys::JWT_SECRET],
                format!(
                    "a key of HS256 has at least {MIN_JWT_SECRET_BYTES} bytes; use random ones, such \
                     as from `openssl rand -base64 32`"
                ),
            );
        }
    }

    fn check_limits(&mut self) {
        for network in self.config.list(&keys::TRUSTED_PROXIES) {
            if network.parse::<Network>().is_err() {
                self.add(
                    &[&keys::TRUSTED_PROXIES],
                    format!("{network:?} is no address or network, such as 10.0.0.1 or 10.0.0.0/8"),
                );
            }
        }
        let (frame, content) = (&keys::MAX_FRAME_BYTES, &keys::MAX_CONTENT_CHARS);
        if self.int(frame) < self.int(content) {
            let text = format!(
                "a message of {} characters does not fit a frame of {} bytes; lower \
                 gateway.max_content_chars or raise gateway.max_frame_bytes",
                self.int(content),
                self.int(frame)
            );
            self.add(&[frame, content], text);
        }
        let (mailbox, answer) = (&keys::MAILBOX_BYTES, &keys::MAX_ANSWER_BYTES);
        if self.int(mailbox) < self.int(answer) {
            self.add(
                &[mailbox, answer],
                "a mailbox must have room for at least one answer; raise keep.mailbox_bytes or \
                 lower worker.max_answer_bytes",
            );
        }
    }

    fn check_times(&mut self) {
        let (rewind, rebuild) = (&keys::RELAY_REWIND_SECONDS, &keys::RELAY_REBUILD_SECONDS);
        if self.int(rebuild) < self.int(rewind) {
            let text = format!(
                "the {} s after a loss of data must not be less than the {} s after every \
                 failover",
                self.int(rebuild),
                self.int(rewind)
            );
            self.add(&[rebuild, rewind], text);
        }
        let (dedup, age) = (&keys::DEDUP_TTL, &keys::MESSAGE_MAX_AGE);
        if self.int(dedup) < self.int(age) {
            let text = format!(
                "a message may wait {} s but its outcome is stored for {} s only, so it could be \
                 answered twice: keep.dedup_ttl must not be smaller",
                self.int(age),
                self.int(dedup)
            );
            self.add(&[dedup, age], text);
        }
    }

    fn check_model(&mut self) {
        let (context, answer) = (&keys::OPENAI_CONTEXT_TOKENS, &keys::OPENAI_MAX_TOKENS);
        if self.int(context) <= self.int(answer) {
            let text = format!(
                "a context of {} tokens has no room for a prompt beside an answer of {}: it must \
                 be larger",
                self.int(context),
                self.int(answer)
            );
            self.add(&[context, answer], text);
        }
        let deadline = &keys::MESSAGE_DEADLINE_MS;
        for timeout in [&keys::OPENAI_TIMEOUT_MS, &keys::OPENAI_IDLE_TIMEOUT_MS] {
            if self.int(timeout) > self.int(deadline) {
                let text = format!(
                    "{} ms is more than the {} ms for the whole message; lower it or raise \
                     worker.message_deadline_ms",
                    self.int(timeout),
                    self.int(deadline)
                );
                self.add(&[timeout, deadline], text);
            }
        }
    }

    fn check_kafka(&mut self) {
        let config = self.config;
        let (messages, responses) = (&keys::MESSAGES_TOPIC, &keys::RESPONSES_TOPIC);
        if config.text(messages).is_some() && config.text(messages) == config.text(responses) {
            self.add(
                &[messages, responses],
                "messages and answers must have different topics; change one of the two",
            );
        }
        let properties = config.map(&keys::KAFKA_PROPERTIES);
        for (name, reason) in RESERVED_PROPERTIES {
            if properties.contains_key(name) {
                self.add(
                    &[&keys::KAFKA_PROPERTIES],
                    format!("{name} can't be set here: {reason}; remove it"),
                );
            }
        }
        let max_record = properties
            .get("message.max.bytes")
            .map_or(Some(DEFAULT_MESSAGE_MAX_BYTES), |text| {
                text.trim().parse().ok()
            });
        let Some(max_record) = max_record else {
            let text = "message.max.bytes must be a whole number";
            self.add(&[&keys::KAFKA_PROPERTIES], text);
            return;
        };
        let max_answer = self.int(&keys::MAX_ANSWER_BYTES);
        if config.role() == Role::AiWorker
            && max_answer.saturating_add(TERMINAL_RECORD_OVERHEAD_BYTES) > max_record
        {
            let text = format!(
                "an answer of {max_answer} bytes does not fit a Kafka record of {max_record} bytes \
                 (message.max.bytes)"
            );
            self.add(&[&keys::MAX_ANSWER_BYTES, &keys::KAFKA_PROPERTIES], text);
        }
    }

    fn check_interop(&mut self) {
        let url = self.config.text(&keys::REDIS_URL).unwrap_or_default();
        let scheme = url.split("://").next().unwrap_or_default();
        if self.config.bool(&keys::INTEROP) && scheme.contains("-cluster") {
            self.add(
                &[&keys::INTEROP, &keys::REDIS_URL],
                "services of the original system need a single Redis server, not a cluster",
            );
        }
    }
}

/// Returns warnings for the operator. `variables` contains the variables of `.env` and the
/// environment: the value and its source, by name.
pub(super) fn notices(
    config: &Config,
    variables: &BTreeMap<String, (String, String)>,
) -> Vec<String> {
    let role = config.role();
    let mut notices = Vec::new();
    if matches!(role, Role::Gateway | Role::AllInOne) {
        notices.extend(authentication_notices(config));
    }
    if role == Role::AllInOne {
        for name in ["PRODUCE_TOPIC", "CONSUME_TOPIC"] {
            if variables.contains_key(name) {
                notices.push(format!(
                    "{name} is not used: all-in-one has the embedded log; unset it"
                ));
            }
        }
    } else {
        notices.extend(backend_notices(config));
    }
    for (name, reason, roles) in keys::IGNORED_VARIABLES {
        let value = variables.get(*name).map(|(value, _)| value.as_str());
        if value.is_some_and(|value| !value.contains('*')) && roles.contains(&role) {
            notices.push(format!("{name} is not used: {reason}"));
        }
    }
    notices
}

fn authentication_notices(config: &Config) -> Vec<String> {
    let mut notices = Vec::new();
    let mode = config.auth_mode();
    if mode == AuthMode::Open && !config.listen().ip().is_loopback() {
        notices.push(format!(
            "AUTH_MODE=open on {}: every client can act as any user; set AUTH_MODE=stored or jwt",
            config.listen()
        ));
    }
    if config.bool(&keys::ALLOW_CREDENTIALS) && config.allows_any_origin() {
        notices.push(
            "ALLOW_CREDENTIALS counts as false: with ALLOW_ORIGINS=* any page could act as its \
             visitor; name the origins"
                .into(),
        );
    }
    let jwks = config.text(&keys::JWT_JWKS).unwrap_or_default();
    if mode == AuthMode::Jwt && jwks.starts_with("http://") {
        notices.push(
            "JWT_JWKS is fetched over http: whoever can change the response can be any user; use \
             https"
                .into(),
        );
    }
    match config.token_endpoint() {
        TokenEndpoint::Open => notices.push(
            "TOKEN_ENDPOINT=open: any caller gets any user's token; set it to admin or off".into(),
        ),
        TokenEndpoint::Off if config.role() == Role::AllInOne && mode == AuthMode::Stored => {
            notices.push(
                "clients need tokens, but no endpoint issues them: set ADMIN_KEY, TOKEN_ENDPOINT \
                 or AUTH_MODE"
                    .into(),
            );
        }
        TokenEndpoint::Off | TokenEndpoint::Admin(_) => {}
    }
    notices
}

fn backend_notices(config: &Config) -> Vec<String> {
    let mut notices = Vec::new();
    if config.bool(&keys::INTEROP) {
        notices.push(
            "INTEROP=true: beside services of the original system, only that system's guarantees \
             hold"
                .into(),
        );
    }
    if config.is_explicit(&keys::REDIS_URL) {
        let replaced = [
            &keys::REDIS_HOST,
            &keys::REDIS_PORT,
            &keys::REDIS_PASSWORD,
            &keys::REDIS_DB,
        ];
        for key in replaced.into_iter().filter(|key| config.is_explicit(key)) {
            let Key { variable, name, .. } = key;
            notices.push(format!("{variable} ({name}) is not used: REDIS_URL is set"));
        }
    }
    notices
}
