//! Tests of the table of settings, and of the typed settings that are loaded from sources.

use std::collections::BTreeSet;
use std::time::Duration;

use secrecy::ExposeSecret;

use super::kind::{Kind, Value};
use super::settings::{AuthMode, Reasoning, TokenEndpoint};
use super::{Config, Flag, Role, Sources, keys};

fn sources(variables: &[(&str, &str)]) -> Sources {
    let variables = variables.iter();
    Sources {
        environment: variables.map(|(k, v)| ((*k).into(), (*v).into())).collect(),
        ..Sources::default()
    }
}

fn load(role: Role, variables: &[(&str, &str)]) -> Config {
    Config::load(role, &sources(variables)).unwrap()
}

#[test]
fn keys_and_variables_are_unique_and_defaults_are_allowed() {
    let mut names = BTreeSet::new();
    for key in keys::TABLE {
        assert!(names.insert(key.name), "{}", key.name);
        for role in key.roles {
            if let Some(text) = key.default_text(*role) {
                assert!(key.kind.parse(&text.into()).is_some(), "{}", key.name);
            }
        }
    }
    for role in Role::ALL {
        let mut variables = BTreeSet::new();
        for variable in keys::TABLE.iter().flat_map(|key| key.variables(role)) {
            assert!(variables.insert(variable), "{variable}");
        }
    }
}

#[test]
fn table_is_grouped_by_the_sections_in_their_order() {
    let mut names: Vec<&str> = keys::TABLE
        .iter()
        .map(|key| key.name.split_once('.').unwrap().0)
        .collect();
    names.dedup();
    let sections: Vec<&str> = keys::SECTIONS.iter().map(|section| section.name).collect();
    assert_eq!(names, sections);
}

#[test]
fn largest_allowed_number_fits_the_type_of_its_setting() {
    let largest = |key: &keys::Key| match key.kind {
        Kind::Int { max, .. } => max.to_string(),
        _ => panic!("{} is not a number", key.name),
    };
    let checked = [
        &keys::KAFKA_TOPIC_PARTITIONS,
        &keys::KAFKA_REPLICATION_FACTOR,
        &keys::MAX_DELIVERIES,
        &keys::OPENAI_MAX_TOKENS,
        &keys::OPENAI_MAX_ATTEMPTS,
        &keys::METRICS_PORT,
        &keys::OPENAI_CONTEXT_TOKENS,
        &keys::OPENAI_API_KEY,
    ];
    let flags = checked.map(|key| Flag {
        flag: "--set".into(),
        key: key.name.into(),
        value: if key.secret { "k".into() } else { largest(key) },
    });
    let only_flags = Sources {
        flags: flags.into(),
        ..Sources::default()
    };
    let config = Config::load(Role::AiWorker, &only_flags).unwrap();
    let worker = config.worker();
    assert_eq!(config.kafka().topic_partitions, 10_000);
    assert_eq!(config.kafka().replication_factor, 100);
    assert_eq!(worker.pipeline.max_deliveries, 1000);
    assert_eq!(worker.prompt.max_tokens, 1_000_000);
    assert_eq!(worker.model.unwrap().max_attempts, 100);
    assert_eq!(worker.admin_listen.port(), 65535);
    let partitions = Config::load(Role::AllInOne, &sources(&[("EMBEDDED_PARTITIONS", "1024")]));
    assert_eq!(partitions.unwrap().embedded().partitions, 1024);
}

#[test]
fn demo_model_answers_without_key_and_url() {
    assert!(
        load(Role::AiWorker, &[("OPENAI_API_KEY", "")])
            .worker()
            .model
            .is_none()
    );
    let keyed = load(Role::AiWorker, &[("OPENAI_API_KEY", "k")]).worker();
    let model = keyed.model.unwrap();
    assert_eq!(model.base_url.as_str(), "https://api.openai.com/v1");
    assert_eq!(model.first_token_timeout, Duration::from_secs(2));
    let local = load(
        Role::AiWorker,
        &[("OPENAI_BASE_URL", "http://127.0.0.1:11434/v1")],
    );
    assert!(local.worker().model.unwrap().api_key.is_none());
}

#[test]
fn redis_password_with_special_characters_survives_the_url() {
    let password = "a@b:c/d%41 é#?";
    let config = load(
        Role::Relay,
        &[("REDIS_PASSWORD", password), ("REDIS_HOST", "::1")],
    );
    let url = url::Url::parse(config.redis().url.expose_secret()).unwrap();
    // Decode the password as a Redis client does, with the decoder of URL queries. That decoder
    // would turn a plus sign into a space.
    let encoded = url.password().unwrap().replace('+', "%2B");
    let (decoded, _) = url::form_urlencoded::parse(encoded.as_bytes())
        .next()
        .unwrap();
    assert_eq!(decoded, password);
    assert_eq!(config.redis_address(), "[::1]:6379");
    assert!(!format!("{config:?}").contains("a@b"), "{config:?}");
}

#[test]
fn sentinel_url_needs_the_name_of_its_master() {
    let config = |url| {
        let sources = sources(&[("REDIS_URL", url)]);
        Config::load(Role::Gateway, &sources)
    };
    let named = config("redis-sentinel://h:26379/0?sentinelServiceName=main").unwrap();
    assert!(named.has_redis_address());
    let error = config("redis-sentinel://h:26379/0")
        .unwrap_err()
        .to_string();
    assert!(error.contains("?sentinelServiceName=NAME"), "{error}");
}

#[test]
fn token_endpoint_depends_on_the_admin_key() {
    let endpoint =
        |variables: &[(&str, &str)]| load(Role::Gateway, variables).gateway().token_endpoint;
    assert!(matches!(endpoint(&[]), TokenEndpoint::Off));
    assert!(matches!(
        endpoint(&[("ADMIN_KEY", "k")]),
        TokenEndpoint::Admin(_)
    ));
    let off = endpoint(&[("ADMIN_KEY", "k"), ("TOKEN_ENDPOINT", "off")]);
    assert!(matches!(off, TokenEndpoint::Off));
    assert!(matches!(
        endpoint(&[("TOKEN_ENDPOINT", "OPEN")]),
        TokenEndpoint::Open
    ));
}

#[test]
fn all_in_one_ignores_the_settings_of_a_deployment() {
    let config = load(
        Role::AllInOne,
        &[
            ("CONSUME_TOPIC", "x"),
            ("MESSAGES_TOPIC", "x"),
            ("INTEROP", "true"),
            // Kubernetes sets this variable for a service with the name redis.
            ("REDIS_PORT", "tcp://10.0.0.1:6379"),
        ],
    );
    assert_eq!(config.gateway().messages_topic, "incoming_messages");
    assert_eq!(config.worker().pipeline.topic, "incoming_messages");
    assert_eq!(config.relay().pipeline.dead_letter_topic, "responses.dlq");
    assert!(!config.gateway().interop && !config.kafka().interop);
    assert_eq!(config.gateway().auth, AuthMode::Open);
}

#[test]
fn reasoning_is_shown_unless_it_is_kept_or_dropped() {
    let reasoning = |variables: &[(&str, &str)]| load(Role::AiWorker, variables).worker().reasoning;
    assert_eq!(reasoning(&[]), Reasoning::Show);
    assert_eq!(reasoning(&[("REASONING", "show")]), Reasoning::Show);
    assert_eq!(reasoning(&[("REASONING", "KEEP")]), Reasoning::Keep);
    assert_eq!(reasoning(&[("REASONING", "drop")]), Reasoning::Drop);
    let refused = Config::load(Role::AiWorker, &sources(&[("REASONING", "hide")]));
    let text = refused.unwrap_err().to_string();
    assert!(text.contains("show, keep, drop"), "{text}");
}

#[test]
fn prefixed_variable_takes_precedence() {
    let variables = [("HOST", "not an address"), ("CHATMESH_HOST", "127.0.0.2")];
    let config = load(Role::Gateway, &variables);
    assert_eq!(config.gateway().listen.to_string(), "127.0.0.2:8000");
}

#[test]
fn properties_of_file_and_environment_are_merged_by_name() {
    let folder = tempfile::TempDir::new().unwrap();
    let file = folder.path().join("c.toml");
    let toml = "[kafka.properties]\nsecurity.protocol = \"SSL\"\n\"linger.ms\" = 3\n";
    std::fs::write(&file, toml).unwrap();
    let mut sources = sources(&[("KAFKA_PROPERTIES", "linger.ms=5,client.rack=a=b")]);
    sources.file = Some(file);
    let config = Config::load(Role::Relay, &sources).unwrap();
    let properties = config.kafka().properties;
    let text = |name: &str| properties[name].expose_secret().to_owned();
    assert_eq!(text("security.protocol"), "SSL");
    assert_eq!(text("linger.ms"), "5");
    assert_eq!(text("client.rack"), "a=b");
    assert!(matches!(
        config.values["kafka.properties"].value,
        Value::Map(_)
    ));
}
