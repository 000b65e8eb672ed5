//! Values that contradict each other, and what an operator should be told at the start.

use std::collections::BTreeMap;

use super::error::Problem;
use super::keys::{self, Key};
use super::settings::{AuthMode, Network, TokenEndpoint};
use super::{Config, Role};

/// librdkafka's default of `message.max.bytes`.
const MESSAGE_MAX_BYTES: u64 = 1_000_000;

/// What chatmesh's promises rest on, or what has a key of its own.
const OWN_PROPERTIES: [(&str, &str); 5] = [
    ("bootstrap.servers", "set kafka.bootstrap_servers"),
    ("group.id", "the groups' names are fixed"),
    (
        "enable.auto.offset.store",
        "offsets are stored when records are finished",
    ),
    ("enable.idempotence", "it must stay on"),
    (
        "partitioner",
        "messages must be placed as the original places them",
    ),
];

pub(super) fn contradictions(config: &Config, problems: &mut Vec<Problem>) {
    let role = config.role();
    let mut add = |concerned: &[&Key], text: String| {
        if concerned.iter().any(|key| !key.roles.contains(&role)) {
            return;
        }
        let sources: Vec<String> = concerned
            .iter()
            .map(|key| format!("{}: {}", key.name, config.source(key)))
            .collect();
        let names: Vec<&str> = concerned.iter().map(|key| key.name).collect();
        problems.push(Problem {
            key: names.join(", "),
            source: sources.join("; "),
            text,
        });
    };
    let int = |key: &Key| config.int(key);

    let (context, answer) = (&keys::OPENAI_CONTEXT_TOKENS, &keys::OPENAI_MAX_TOKENS);
    if int(context) <= int(answer) {
        let text = format!(
            "a context of {} tokens has no room for a prompt beside an answer of {}: it must be larger",
            int(context),
            int(answer)
        );
        add(&[context, answer], text);
    }
    for part in [&keys::OPENAI_TIMEOUT_MS, &keys::OPENAI_IDLE_TIMEOUT_MS] {
        if config.duration(part) > config.duration(&keys::MESSAGE_DEADLINE_MS) {
            let text = format!(
                "{} ms is more than the {} ms for the whole message",
                int(part),
                int(&keys::MESSAGE_DEADLINE_MS)
            );
            add(&[part, &keys::MESSAGE_DEADLINE_MS], text);
        }
    }
    if config.text(&keys::TOKEN_ENDPOINT) == Some("admin")
        && config.text(&keys::ADMIN_KEY).is_none()
    {
        let text = "admin needs an admin key; set auth.admin_key (ADMIN_KEY), or off or open";
        add(&[&keys::TOKEN_ENDPOINT, &keys::ADMIN_KEY], text.into());
    }
    let places = [
        &keys::JWT_SECRET,
        &keys::JWT_PUBLIC_KEY_FILE,
        &keys::JWT_JWKS,
    ];
    if config.text(&keys::AUTH_MODE) == Some("jwt") {
        let set = places.iter().filter(|key| config.text(key).is_some());
        if set.count() != 1 {
            let text = "jwt needs exactly one of auth.jwt_secret (JWT_SECRET), \
                        auth.jwt_public_key_file and auth.jwt_jwks";
            add(
                &[&keys::AUTH_MODE, places[0], places[1], places[2]],
                text.into(),
            );
        }
        let short = |secret: &str| secret.len() < 32;
        if config.text(&keys::JWT_SECRET).is_some_and(short) {
            let text = "a key of HS256 has at least 32 bytes: take random ones, as from \
                        `openssl rand -base64 32`";
            add(&[&keys::JWT_SECRET], text.into());
        }
    }
    for net in config.list(&keys::TRUSTED_PROXIES) {
        if net.parse::<Network>().is_err() {
            let text = format!("{net:?} is no address or network, as 10.0.0.1 or 10.0.0.0/8");
            add(&[&keys::TRUSTED_PROXIES], text);
        }
    }
    let (rewind, rebuild) = (&keys::RELAY_REWIND_SECONDS, &keys::RELAY_REBUILD_SECONDS);
    if int(rebuild) < int(rewind) {
        let text = format!(
            "{} s for lost data is less than the {} s after every failover: it must not be",
            int(rebuild),
            int(rewind)
        );
        add(&[rebuild, rewind], text);
    }
    let (dedup, age) = (&keys::DEDUP_TTL, &keys::MESSAGE_MAX_AGE);
    if int(dedup) < int(age) {
        let text = format!(
            "a message may wait {} s but its end is remembered for {} s only, so it could be \
             answered twice: keep.dedup_ttl must not be smaller",
            int(age),
            int(dedup)
        );
        add(&[dedup, age], text);
    }
    let (frame, content) = (&keys::MAX_FRAME_BYTES, &keys::MAX_CONTENT_CHARS);
    if int(frame) < int(content) {
        let text = format!(
            "a message of {} characters does not fit a frame of {} bytes",
            int(content),
            int(frame)
        );
        add(&[frame, content], text);
    }
    let mailbox = &keys::MAILBOX_BYTES;
    if int(mailbox) < int(&keys::MAX_ANSWER_BYTES) {
        let text = "a mailbox must hold at least one answer".to_owned();
        add(&[mailbox, &keys::MAX_ANSWER_BYTES], text);
    }

    let (messages, responses) = (&keys::MESSAGES_TOPIC, &keys::RESPONSES_TOPIC);
    if config.text(messages).is_some() && config.text(messages) == config.text(responses) {
        let text = "answers must not go where messages come from: name two topics".to_owned();
        add(&[messages, responses], text);
    }

    let properties = config.map(&keys::KAFKA_PROPERTIES);
    for (name, reason) in OWN_PROPERTIES {
        if properties.contains_key(name) {
            let text = format!("{name} can't be passed through: {reason}");
            add(&[&keys::KAFKA_PROPERTIES], text);
        }
    }
    let allowed = properties
        .get("message.max.bytes")
        .map_or(Some(MESSAGE_MAX_BYTES), |text| text.trim().parse().ok());
    match allowed {
        None => add(
            &[&keys::KAFKA_PROPERTIES],
            "message.max.bytes must be a whole number".into(),
        ),
        Some(allowed) if role == Role::AiWorker => {
            // The frame has more in it than the answer: names, usage, ids.
            let needed = int(&keys::MAX_ANSWER_BYTES).saturating_add(16 * 1024);
            if needed > allowed {
                let text = format!(
                    "an answer of {} bytes does not fit a Kafka record of {allowed} bytes \
                     (message.max.bytes)",
                    int(&keys::MAX_ANSWER_BYTES)
                );
                add(&[&keys::MAX_ANSWER_BYTES, &keys::KAFKA_PROPERTIES], text);
            }
        }
        Some(_) => {}
    }
    let one_redis = config.text(&keys::REDIS_URL).is_none_or(|url| {
        !url.split("://")
            .next()
            .unwrap_or_default()
            .contains("-cluster")
    });
    if config.bool(&keys::INTEROP) && !one_redis {
        let text = "services of the original know one Redis server, no cluster";
        add(&[&keys::INTEROP, &keys::REDIS_URL], text.into());
    }
}

/// `variables`: what is set in `.env` and in the environment.
pub(super) fn notices(
    config: &Config,
    variables: &BTreeMap<String, (String, String)>,
) -> Vec<String> {
    let role = config.role();
    let mut notices = Vec::new();
    if matches!(role, Role::Gateway | Role::AllInOne) {
        let everywhere = !config.listen().ip().is_loopback();
        let open = config.auth_mode() == AuthMode::Open;
        if open && everywhere {
            notices.push(format!(
                "AUTH_MODE=open on {}: whoever reaches it can be any user",
                config.listen()
            ));
        }
        if config.bool(&keys::ALLOW_CREDENTIALS) && config.any_origin() {
            notices.push(
                "ALLOW_CREDENTIALS is taken as false: with ALLOW_ORIGINS=* any page could act as \
                 its visitor; name the origins"
                    .into(),
            );
        }
        let jwks = config.text(&keys::JWT_JWKS).unwrap_or_default();
        if config.auth_mode() == AuthMode::Jwt && jwks.starts_with("http://") {
            notices.push(
                "JWT_JWKS is fetched over http: whoever can change the answer can be any user"
                    .into(),
            );
        }
        match config.token_endpoint() {
            TokenEndpoint::Open => notices.push(
                "TOKEN_ENDPOINT=open: anybody gets anybody's token; for demonstrations only".into(),
            ),
            TokenEndpoint::Off if role == Role::AllInOne && config.auth_mode() == AuthMode::Stored => notices.push(
                "tokens are needed and nothing hands them out: set ADMIN_KEY, TOKEN_ENDPOINT or \
                 AUTH_MODE"
                    .into(),
            ),
            TokenEndpoint::Off | TokenEndpoint::Admin(_) => {}
        }
    }
    if role == Role::AllInOne {
        for name in ["PRODUCE_TOPIC", "CONSUME_TOPIC"] {
            if variables.contains_key(name) {
                notices.push(format!(
                    "{name} is set, but all-in-one has a log of its own"
                ));
            }
        }
    } else {
        if config.bool(&keys::INTEROP) {
            notices.push(
                "INTEROP=true: beside services of the original only the original's guarantees hold"
                    .into(),
            );
        }
        let parts = [
            &keys::REDIS_HOST,
            &keys::REDIS_PORT,
            &keys::REDIS_PASSWORD,
            &keys::REDIS_DB,
        ];
        if config.is_set(&keys::REDIS_URL) {
            for part in parts.into_iter().filter(|part| config.is_set(part)) {
                let (var, name) = (part.var, part.name);
                notices.push(format!("{var} ({name}) is not used: REDIS_URL is set"));
            }
        }
    }
    for (name, reason, roles) in keys::NOT_USED {
        let set = variables.get(*name).map(|(value, _)| value.as_str());
        if set.is_some_and(|value| !value.contains('*')) && roles.contains(&role) {
            notices.push(format!("{name} is not used: {reason}"));
        }
    }
    notices
}
