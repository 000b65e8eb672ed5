//! The typed settings that come out of the sources.

use std::collections::BTreeSet;
use std::time::Duration;

use secrecy::ExposeSecret;

use super::kind::{Kind, Value};
use super::settings::{AuthMode, TokenEndpoint};
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
fn no_two_keys_share_a_name_or_a_variable_and_every_default_is_allowed() {
    let mut names = BTreeSet::new();
    for key in keys::TABLE {
        assert!(names.insert(key.name), "{}", key.name);
        for role in key.roles {
            if let Some(text) = key.default_text(*role) {
                assert!(key.kind.read(&text.into()).is_some(), "{}", key.name);
            }
        }
    }
    for role in Role::ALL {
        let mut variables = BTreeSet::new();
        for var in keys::TABLE.iter().flat_map(|key| key.vars(role)) {
            assert!(variables.insert(var), "{var}");
        }
    }
}

#[test]
fn the_largest_number_that_a_key_allows_fits_its_setting() {
    let largest = |key: &keys::Key| match key.kind {
        Kind::Int { max, .. } => max.to_string(),
        _ => panic!("{} is no number", key.name),
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
    let from = Sources {
        flags: flags.into(),
        ..Sources::default()
    };
    let config = Config::load(Role::AiWorker, &from).unwrap();
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
fn without_key_and_address_the_demo_model_answers() {
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
fn a_password_with_special_characters_survives_the_url() {
    let password = "a@b:c/d%41 é#?";
    let config = load(
        Role::Relay,
        &[("REDIS_PASSWORD", password), ("REDIS_HOST", "::1")],
    );
    let url = url::Url::parse(config.redis().url.expose_secret()).unwrap();
    // Decoded as a client does it.
    let encoded = url.password().unwrap().replace('+', "%2B");
    let (decoded, _) = url::form_urlencoded::parse(encoded.as_bytes())
        .next()
        .unwrap();
    assert_eq!(decoded, password);
    assert_eq!(config.redis_place(), "[::1]:6379");
    assert!(!format!("{config:?}").contains("a@b"), "{config:?}");
}

#[test]
fn an_admin_key_opens_the_token_endpoint_to_its_holder_only() {
    let of = |variables: &[(&str, &str)]| load(Role::Gateway, variables).gateway().token_endpoint;
    assert!(matches!(of(&[]), TokenEndpoint::Off));
    assert!(matches!(of(&[("ADMIN_KEY", "k")]), TokenEndpoint::Admin(_)));
    let off = of(&[("ADMIN_KEY", "k"), ("TOKEN_ENDPOINT", "off")]);
    assert!(matches!(off, TokenEndpoint::Off));
    assert!(matches!(
        of(&[("TOKEN_ENDPOINT", "OPEN")]),
        TokenEndpoint::Open
    ));
}

#[test]
fn all_in_one_is_untouched_by_what_a_deployment_sets() {
    let config = load(
        Role::AllInOne,
        &[
            ("CONSUME_TOPIC", "x"),
            ("MESSAGES_TOPIC", "x"),
            ("INTEROP", "true"),
            // What a cluster sets for a service of this name.
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
fn the_long_name_of_a_variable_wins_over_the_short_one() {
    let set = [("HOST", "not an address"), ("CHATMESH_HOST", "127.0.0.2")];
    let config = load(Role::Gateway, &set);
    assert_eq!(config.gateway().listen.to_string(), "127.0.0.2:8000");
}

#[test]
fn properties_of_file_and_environment_are_laid_over_each_other_by_name() {
    let folder = tempfile::TempDir::new().unwrap();
    let file = folder.path().join("c.toml");
    let toml = "[kafka.properties]\nsecurity.protocol = \"SSL\"\n\"linger.ms\" = 3\n";
    std::fs::write(&file, toml).unwrap();
    let mut from = sources(&[("KAFKA_PROPERTIES", "linger.ms=5,client.rack=a=b")]);
    from.file = Some(file);
    let config = Config::load(Role::Relay, &from).unwrap();
    let properties = config.kafka().properties;
    let text = |name: &str| properties[name].expose_secret().to_owned();
    assert_eq!(text("security.protocol"), "SSL");
    assert_eq!(text("linger.ms"), "5");
    assert_eq!(text("client.rack"), "a=b");
    assert!(matches!(
        config.settings["kafka.properties"].value,
        Value::Map(_)
    ));
}
