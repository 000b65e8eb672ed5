//! Tests of the configuration through the command line.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;

use assert_cmd::Command;
use serde_json::Value;
use tempfile::TempDir;

/// The program in its own directory, with an empty environment.
fn chatmesh(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chatmesh"));
    command.current_dir(folder).env_clear();
    command
}

fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = TempDir::new().unwrap();
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

/// The result of a finished command.
struct Finished {
    code: i32,
    out: String,
    err: String,
}

fn run(command: &mut Command) -> Finished {
    let output = command.output().unwrap();
    Finished {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

fn shown(command: &mut Command) -> Value {
    let done = run(command);
    assert_eq!(done.code, 0, "{}", done.err);
    serde_json::from_str(&done.out).unwrap()
}

/// Value and source of a key in the output of `config show --json`.
fn setting<'a>(document: &'a Value, key: &str) -> (&'a Value, &'a str) {
    let settings = document["settings"].as_array().unwrap();
    let found = settings.iter().find(|setting| setting["key"] == key);
    let found = found.unwrap_or_else(|| panic!("{key} is not in {document:#}"));
    (&found["value"], found["source"].as_str().unwrap())
}

#[test]
fn later_source_takes_precedence_and_values_name_their_source() {
    let toml = "[server]\nport = 1\nhost = \"10.0.0.1\"\ndrain_timeout_ms = 11\n\
                [auth]\ntoken_ttl = 21\n[kafka]\nlinger_ms = 7\n";
    let folder = folder(&[
        ("c.toml", toml),
        (
            ".env",
            "PORT=2\nHOST=10.0.0.2\nTOKEN_TTL=22\nMAX_CONTENT_CHARS=32\n",
        ),
    ]);
    let mut command = chatmesh(folder.path());
    command
        .args(["config", "show", "gateway", "--json", "--config", "c.toml"])
        .args(["--set", "server.port=4"])
        .env("HOST", "10.0.0.3")
        .env("PORT", "3")
        .env("TOKEN_TTL", "");
    let document = shown(&mut command);
    let expect = |key: &str, value: Value, source: &str| {
        assert_eq!(setting(&document, key), (&value, source), "{key}");
    };
    expect("server.port", 4.into(), "flag --set");
    expect(
        "server.host",
        "10.0.0.3".into(),
        "environment variable HOST",
    );
    // An empty variable counts as unset and does not override `.env`.
    expect("auth.token_ttl", 22.into(), ".env, TOKEN_TTL");
    expect(
        "gateway.max_content_chars",
        32.into(),
        ".env, MAX_CONTENT_CHARS",
    );
    expect("server.drain_timeout_ms", 11.into(), "file c.toml");
    expect("kafka.linger_ms", 7.into(), "file c.toml");
    expect("gateway.max_frame_bytes", 65536.into(), "default");
}

#[test]
fn all_errors_are_reported_with_key_source_and_allowed_values() {
    let folder = folder(&[("c.toml", "[kafka]\nlinger_msec = 1\n[nonsense]\na = 1\n")]);
    let mut command = chatmesh(folder.path());
    command
        .args(["config", "check", "gateway", "--config", "c.toml"])
        .args(["--set", "server.prot=1"])
        .env("CHATMESH_LOG_LEVL", "info")
        .env("SOMETHING_ELSE", "is not judged")
        .env("TOKEN_TTL", "1h")
        .env("LOG_LEVEL", "inof");
    let done = run(&mut command);
    assert_eq!(done.code, 2, "{}", done.err);
    assert_eq!(done.out, "");
    let lines = [
        "the configuration can't be used: 6 problems",
        "kafka.linger_msec (file c.toml): there is no such key; did you mean kafka.linger_ms?",
        "nonsense.a (file c.toml): there is no such key; `chatmesh config default` lists all keys",
        "server.prot (flag --set): there is no such key; did you mean server.port?",
        "CHATMESH_LOG_LEVL (environment variable CHATMESH_LOG_LEVL): there is no such key; did you mean CHATMESH_LOG_LEVEL?",
        "auth.token_ttl (environment variable TOKEN_TTL): \"1h\" is not allowed; allowed: whole seconds from 1",
        "log.level (environment variable LOG_LEVEL): \"inof\" is not allowed; allowed: trace, debug",
    ];
    for line in lines {
        assert!(done.err.contains(line), "{line}\nnot in\n{}", done.err);
    }
}

#[test]
fn contradicting_values_are_rejected_for_roles_that_use_them() {
    let folder = folder(&[]);
    let cases = [
        (
            "ai-worker",
            "OPENAI_CONTEXT_TOKENS",
            "500",
            "has no room for a prompt",
        ),
        (
            "ai-worker",
            "OPENAI_TIMEOUT_MS",
            "300001",
            "more than the 300000 ms",
        ),
        (
            "ai-worker",
            "MAX_ANSWER_BYTES",
            "1000000",
            "does not fit a Kafka record",
        ),
        ("gateway", "TOKEN_ENDPOINT", "admin", "needs an admin key"),
        ("gateway", "DEDUP_TTL", "43199", "could be answered twice"),
        ("gateway", "MAX_FRAME_BYTES", "7999", "does not fit a frame"),
        (
            "gateway",
            "KAFKA_PROPERTIES",
            "group.id=x",
            "group.id can't be set here",
        ),
        ("relay", "RELAY_REBUILD_SECONDS", "59", "must not be"),
    ];
    for (role, variable, value, text) in cases {
        let mut command = chatmesh(folder.path());
        command.args(["config", "check", role]).env(variable, value);
        let done = run(&mut command);
        assert_eq!(done.code, 2, "{variable}: {}", done.err);
        assert!(done.err.contains(text), "{text}\nnot in\n{}", done.err);
        let source = format!("environment variable {variable}");
        assert!(done.err.contains(&source), "{source}\nnot in\n{}", done.err);
        let other = if role == "relay" { "gateway" } else { "relay" };
        if variable.starts_with("OPENAI") || role == "relay" {
            let mut command = chatmesh(folder.path());
            command
                .args(["config", "check", other])
                .env(variable, value);
            assert_eq!(
                run(&mut command).code,
                0,
                "{variable} is not used by {other}"
            );
        }
    }
}

#[test]
fn secrets_are_never_printed() {
    let folder = folder(&[
        (
            "c.toml",
            "[kafka.properties]\n\"sasl.password\" = \"TOPSECRET1\"\n\"linger.ms\" = 3\n",
        ),
        ("bad.toml", "[redis]\npassword = TOPSECRET2\n"),
    ]);
    let properties = r"sasl.jaas.config=a\,TOPSECRET3,ssl.key.pem=TOPSECRET4,client.rack=r1,ssl.keystore.password=TOPSECRET5";
    let secrets: &[(&str, &str)] = &[
        ("OPENAI_API_KEY", "TOPSECRET6"),
        ("OPENAI_BASE_URL", "https://TOPSECRET7@models.example/v1"),
        ("ADMIN_KEY", "TOPSECRET8"),
        (
            "REDIS_URL",
            "rediss-sentinel://u:TOPSECRET9@r:26379?sentinelServiceName=m&sentinelPassword=TOPSECRET0",
        ),
        ("KAFKA_PROPERTIES", properties),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://u:TOPSECRET@c:4318"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-key=TOPSECRET"),
    ];
    for role in ["gateway", "ai-worker", "relay", "all-in-one"] {
        for json in [&["--json"][..], &[]] {
            let mut command = chatmesh(folder.path());
            command
                .args(["config", "show", role, "--config", "c.toml"])
                .args(json)
                .envs(secrets.iter().copied());
            let done = run(&mut command);
            assert_eq!(done.code, 0, "{}", done.err);
            assert!(!done.out.contains("TOPSECRET"), "{}", done.out);
            if role == "gateway" {
                for text in [
                    "sentinelServiceName=m",
                    "client.rack",
                    "\"r1\"",
                    "linger.ms",
                ] {
                    assert!(done.out.contains(text), "{text}\nnot in\n{}", done.out);
                }
            }
        }
    }
    let bad: &[(&str, &str)] = &[
        ("REDIS_URL", "http://u:TOPSECRET@r"),
        ("OPENAI_BASE_URL", "htp://u:TOPSECRET@r"),
        ("KAFKA_PROPERTIES", "TOPSECRET"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "TOPSECRET"),
    ];
    for (variable, value) in bad {
        let mut command = chatmesh(folder.path());
        command
            .args(["config", "check", "ai-worker"])
            .env(variable, value);
        let done = run(&mut command);
        assert_eq!(done.code, 2, "{variable}");
        assert!(!done.err.contains("TOPSECRET"), "{}", done.err);
    }
    let mut command = chatmesh(folder.path());
    let done = run(command.args(["config", "check", "--config", "bad.toml"]));
    assert_eq!(done.code, 2);
    assert!(done.err.contains("line 2"), "{}", done.err);
    assert!(!done.err.contains("TOPSECRET"), "{}", done.err);
}

#[test]
fn env_file_of_the_original_system_is_accepted() {
    let env = r#"# WebSocket server
SERVER_ID=server_1
APP_NAME="WebSocket Server"
export KAFKA_BOOTSTRAP_SERVERS='["kafka1:9092", "kafka2:9092"]'
REDIS_HOST=redis
REDIS_PORT=6380
REDIS_PASSWORD='p@ss:w%rd' # quoted
REDIS_DB=2
PRODUCE_TOPIC=questions
ALLOW_ORIGINS='["*"]'
ALLOW_CREDENTIALS=True
ALLOW_METHODS='["*"]'
ALLOW_HEADERS=["*"]
TOKEN_TTL=3600
DEBUG=False
LOG_LEVEL=WARNING
LOG_FOLDER=
METRICS_PORT=9000
PYTHONUNBUFFERED=1
"#;
    let folder = folder(&[(".env", env)]);
    let document = shown(chatmesh(folder.path()).args(["config", "show", "gateway", "--json"]));
    let value = |key: &str| setting(&document, key).0.clone();
    assert_eq!(value("server.id"), "server_1");
    assert_eq!(value("log.app_name"), "WebSocket Server");
    assert_eq!(value("log.level"), "warn");
    assert_eq!(value("kafka.messages_topic"), "questions");
    let brokers = serde_json::json!(["kafka1:9092", "kafka2:9092"]);
    assert_eq!(value("kafka.bootstrap_servers"), brokers);
    assert_eq!(value("redis.url"), "redis://:hidden@redis:6380/2");
    assert_eq!(value("auth.mode"), "stored");
    let notices = document["notices"].to_string();
    assert!(
        notices.contains("ALLOW_CREDENTIALS counts as false"),
        "{notices}"
    );
    assert!(!notices.contains("ALLOW_METHODS"), "{notices}");

    // In the original system the same variables name other topics in worker and relay.
    let topics = folder_with_topics();
    let worker = shown(chatmesh(topics.path()).args(["config", "show", "ai-worker", "--json"]));
    assert_eq!(setting(&worker, "kafka.messages_topic").0, "in");
    assert_eq!(setting(&worker, "kafka.responses_topic").0, "out");
    let relay = shown(chatmesh(topics.path()).args(["config", "show", "relay", "--json"]));
    assert_eq!(setting(&relay, "kafka.responses_topic").0, "in");
    let all = shown(chatmesh(topics.path()).args(["config", "show", "all-in-one", "--json"]));
    let notices = all["notices"].to_string();
    assert!(
        notices.contains("PRODUCE_TOPIC is not used: all-in-one"),
        "{notices}"
    );
}

fn folder_with_topics() -> TempDir {
    folder(&[(".env", "CONSUME_TOPIC=in\nPRODUCE_TOPIC=out\n")])
}

#[test]
fn open_mode_is_the_default_on_loopback_and_warned_about_elsewhere() {
    let folder = folder(&[]);
    let mode = |arguments: &[&str]| {
        let mut command = chatmesh(folder.path());
        command.args(["config", "show", "--json"]).args(arguments);
        let document = shown(&mut command);
        let mode = setting(&document, "auth.mode")
            .0
            .as_str()
            .unwrap()
            .to_owned();
        (mode, document["notices"].to_string())
    };
    assert_eq!(mode(&["all-in-one"]).0, "open");
    assert_eq!(mode(&["gateway"]).0, "stored");
    assert_eq!(
        mode(&["all-in-one", "--set", "server.host=0.0.0.0"]).0,
        "stored"
    );
    let everywhere = ["--set", "HOST=0.0.0.0", "--set", "AUTH_MODE=open"];
    let (named, notices) = mode(&everywhere);
    assert_eq!(named, "open");
    assert!(
        notices.contains("every client can act as any user"),
        "{notices}"
    );
}

#[test]
fn default_file_is_valid_and_contains_the_defaults() {
    let folder = folder(&[]);
    let done = run(chatmesh(folder.path()).args(["config", "default"]));
    assert_eq!(done.code, 0);
    // Lines that begin with '#' and no space are commented-out settings.
    let live: String = done
        .out
        .lines()
        .filter(|line| !line.contains(" = ") || !line.ends_with("# all-in-one"))
        .filter(|line| !line.ends_with("# relay"))
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if !rest.starts_with(' ') => format!("{rest}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    for (name, text) in [("as-is.toml", &done.out), ("live.toml", &live)] {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let mut shows = ["as-is.toml", "live.toml"].map(|file| {
        let mut command = chatmesh(folder.path());
        command.args(["config", "show", "gateway", "--json", "--config", file]);
        command.env("SERVER_ID", "s");
        let document = shown(&mut command);
        let settings = document["settings"].as_array().unwrap().clone();
        settings
            .into_iter()
            .map(|setting| (setting["key"].clone(), setting["value"].clone()))
            .collect::<Vec<_>>()
    });
    assert!(shows[0].len() > 20);
    let live = std::mem::take(&mut shows[1]);
    assert_eq!(shows[0], live);
}

#[test]
fn exit_codes_distinguish_usage_errors_from_failures() {
    let folder = folder(&[]);
    let code = |arguments: &[&str]| run(chatmesh(folder.path()).args(arguments)).code;
    assert_eq!(code(&["--version"]), 0);
    assert_eq!(code(&["--help"]), 0);
    assert_eq!(code(&["config", "check"]), 0);
    assert_eq!(code(&[]), 2);
    assert_eq!(code(&["nonsense"]), 2);
    assert_eq!(code(&["config", "check", "--set", "no-value"]), 2);
    assert_eq!(code(&["config", "check", "--config", "missing.toml"]), 2);
    assert_eq!(code(&["gateway", "--port", "65536"]), 2);
    assert_eq!(code(&["healthcheck", "--url", "https://127.0.0.1/"]), 1);
    let help = run(chatmesh(folder.path()).arg("--help")).out;
    for word in ["all-in-one", "healthcheck", "Examples:", "CHATMESH_CONFIG"] {
        assert!(help.contains(word), "{help}");
    }
    let help = run(chatmesh(folder.path()).args(["healthcheck", "--help"])).out;
    assert!(
        help.contains("METRICS_PORT") && help.contains("--url"),
        "{help}"
    );
}

#[test]
fn healthcheck_fails_with_the_reason_if_the_role_is_not_ready() {
    let folder = folder(&[]);
    for (status, code) in [("200 OK", 0), ("503 Service Unavailable", 1)] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port().to_string();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = [0; 1024];
            let read = stream.read(&mut head).unwrap();
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 11\r\n\r\nredis: away");
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8_lossy(&head[..read]).into_owned()
        });
        let mut command = chatmesh(folder.path());
        command
            .args(["healthcheck", "relay"])
            .env("METRICS_PORT", &port);
        let done = run(&mut command);
        assert_eq!(done.code, code, "{}", done.err);
        let head = server.join().unwrap();
        assert!(head.starts_with("GET /health/ready HTTP/1.1\r\n"), "{head}");
        if code == 1 {
            assert!(done.err.contains("redis: away"), "{}", done.err);
        }
    }
}

#[test]
fn signed_tokens_need_exactly_one_key_of_sufficient_length() {
    let check = |set: &[&str]| {
        let mut args = vec!["config", "check", "gateway", "--set", "auth.mode=jwt"];
        for one in set {
            args.extend(["--set", one]);
        }
        let (code, _, said) = crate::support::process::ProcessSpec::new(&args).run();
        (code, said)
    };
    let long = "auth.jwt_secret=0123456789abcdef0123456789abcdef";
    assert_eq!(check(&[long]).0, Some(0));
    assert_eq!(check(&["auth.jwt_jwks=https://id.example/keys"]).0, Some(0));
    let (code, said) = check(&[]);
    assert_eq!(code, Some(2));
    assert!(said.contains("exactly one of auth.jwt_secret"), "{said}");
    let (code, _) = check(&[long, "auth.jwt_jwks=keys.json"]);
    assert_eq!(code, Some(2));
    let (code, said) = check(&["auth.jwt_secret=short-and-secret"]);
    assert_eq!(code, Some(2));
    assert!(said.contains("at least 32 bytes"), "{said}");
    assert!(!said.contains("short-and-secret"), "{said}");
    let (code, said) = check(&["auth.jwt_jwks=http://id.example/keys"]);
    assert_eq!(code, Some(0));
    assert!(said.contains("fetched over http"), "{said}");
}

#[test]
fn unusable_verification_keys_are_reported_at_the_start() {
    let folder = folder(&[
        ("empty.json", r#"{"keys":[]}"#),
        ("secret.json", r#"{"keys":[{"kty":"oct","k":"AAAA"}]}"#),
    ]);
    let jwt = |args: &[&str], keys: &str| {
        let mut command = chatmesh(folder.path());
        command.args(args).env("AUTH_MODE", "jwt");
        run(command.env("JWT_JWKS", keys))
    };
    let doctor = ["doctor", "all-in-one", "--no-model", "--json"];
    for (keys, said) in [
        ("nowhere.json", "nowhere.json can't be read"),
        ("empty.json", "lists no key"),
        ("secret.json", "`kty: oct`"),
    ] {
        for role in ["gateway", "all-in-one"] {
            let done = jwt(&["config", "check", role], keys);
            assert_eq!(done.code, 2, "{}", done.err);
            assert!(done.err.contains(said), "{}", done.err);
        }
        let done = jwt(&["all-in-one", "--ephemeral", "--port", "0"], keys);
        assert_eq!(done.code, 2, "{}", done.err);
        assert!(done.err.contains(said), "{}", done.err);
        assert!(!done.out.contains("open the page"), "{}", done.out);
        let done = jwt(&doctor, keys);
        assert_eq!(done.code, 2, "{}", done.out);
        assert!(done.out.contains(r#""area": "keys""#), "{}", done.out);
        assert!(done.out.contains(said), "{}", done.out);
    }
    // Only `doctor` fetches keys from a URL; `config check` makes no connections.
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr();
    let url = format!("http://{}/keys", closed.unwrap());
    assert_eq!(jwt(&["config", "check", "gateway"], &url).code, 0);
    let done = jwt(&doctor, &url);
    assert_eq!(done.code, 1, "{}", done.out);
    assert!(
        done.out.contains("no token can be verified"),
        "{}",
        done.out
    );
}
