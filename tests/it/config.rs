//! Tests of the configuration through the command line.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;

use assert_cmd::Command;
use serde_json::Value;
use tempfile::TempDir;

/// A command that runs the program in this folder with an empty environment.
fn chatmesh(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chatmesh"));
    command.current_dir(folder).env_clear();
    command
}

/// A temporary folder with these files.
fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = TempDir::new().unwrap();
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

/// The exit code and output of a finished command.
struct CommandOutput {
    code: i32,
    stdout: String,
    stderr: String,
}

fn run(command: &mut Command) -> CommandOutput {
    let output = command.output().unwrap();
    CommandOutput {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// The JSON document that a successful command prints.
fn json_output(command: &mut Command) -> Value {
    let output = run(command);
    assert_eq!(output.code, 0, "{}", output.stderr);
    serde_json::from_str(&output.stdout).unwrap()
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
    let document = json_output(&mut command);
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
    let output = run(&mut command);
    assert_eq!(output.code, 2, "{}", output.stderr);
    assert_eq!(output.stdout, "");
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
        assert!(
            output.stderr.contains(line),
            "{line}\nnot in\n{}",
            output.stderr
        );
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
        let output = run(&mut command);
        assert_eq!(output.code, 2, "{variable}: {}", output.stderr);
        assert!(
            output.stderr.contains(text),
            "{text}\nnot in\n{}",
            output.stderr
        );
        let source = format!("environment variable {variable}");
        assert!(
            output.stderr.contains(&source),
            "{source}\nnot in\n{}",
            output.stderr
        );
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
            let output = run(&mut command);
            assert_eq!(output.code, 0, "{}", output.stderr);
            assert!(!output.stdout.contains("TOPSECRET"), "{}", output.stdout);
            if role == "gateway" {
                for text in [
                    "sentinelServiceName=m",
                    "client.rack",
                    "\"r1\"",
                    "linger.ms",
                ] {
                    assert!(
                        output.stdout.contains(text),
                        "{text}\nnot in\n{}",
                        output.stdout
                    );
                }
            }
        }
    }
    let invalid_values: &[(&str, &str)] = &[
        ("REDIS_URL", "http://u:TOPSECRET@r"),
        ("OPENAI_BASE_URL", "htp://u:TOPSECRET@r"),
        ("KAFKA_PROPERTIES", "TOPSECRET"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "TOPSECRET"),
    ];
    for (variable, value) in invalid_values {
        let mut command = chatmesh(folder.path());
        command
            .args(["config", "check", "ai-worker"])
            .env(variable, value);
        let output = run(&mut command);
        assert_eq!(output.code, 2, "{variable}");
        assert!(!output.stderr.contains("TOPSECRET"), "{}", output.stderr);
    }
    let mut command = chatmesh(folder.path());
    let output = run(command.args(["config", "check", "--config", "bad.toml"]));
    assert_eq!(output.code, 2);
    assert!(output.stderr.contains("line 2"), "{}", output.stderr);
    assert!(!output.stderr.contains("TOPSECRET"), "{}", output.stderr);
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
    let document =
        json_output(chatmesh(folder.path()).args(["config", "show", "gateway", "--json"]));
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
    let topics = folder_with_original_topics();
    let worker =
        json_output(chatmesh(topics.path()).args(["config", "show", "ai-worker", "--json"]));
    assert_eq!(setting(&worker, "kafka.messages_topic").0, "in");
    assert_eq!(setting(&worker, "kafka.responses_topic").0, "out");
    let relay = json_output(chatmesh(topics.path()).args(["config", "show", "relay", "--json"]));
    assert_eq!(setting(&relay, "kafka.responses_topic").0, "in");
    let all = json_output(chatmesh(topics.path()).args(["config", "show", "all-in-one", "--json"]));
    let notices = all["notices"].to_string();
    assert!(
        notices.contains("PRODUCE_TOPIC is not used: all-in-one"),
        "{notices}"
    );
}

fn folder_with_original_topics() -> TempDir {
    folder(&[(".env", "CONSUME_TOPIC=in\nPRODUCE_TOPIC=out\n")])
}

#[test]
fn open_mode_is_the_default_on_loopback_and_warned_about_elsewhere() {
    let folder = folder(&[]);
    let mode = |arguments: &[&str]| {
        let mut command = chatmesh(folder.path());
        command.args(["config", "show", "--json"]).args(arguments);
        let document = json_output(&mut command);
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
    let open_to_the_network = ["--set", "HOST=0.0.0.0", "--set", "AUTH_MODE=open"];
    let (mode_name, notices) = mode(&open_to_the_network);
    assert_eq!(mode_name, "open");
    assert!(
        notices.contains("every client can act as any user"),
        "{notices}"
    );
}

#[test]
fn default_file_is_valid_and_contains_the_defaults() {
    let folder = folder(&[]);
    let output = run(chatmesh(folder.path()).args(["config", "default"]));
    assert_eq!(output.code, 0);
    // Lines that begin with '#' and no space are commented-out settings.
    let uncommented: String = output
        .stdout
        .lines()
        .filter(|line| !line.contains(" = ") || !line.ends_with("# all-in-one"))
        .filter(|line| !line.ends_with("# relay"))
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if !rest.starts_with(' ') => format!("{rest}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    for (name, text) in [
        ("as-is.toml", &output.stdout),
        ("uncommented.toml", &uncommented),
    ] {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let mut settings_by_file = ["as-is.toml", "uncommented.toml"].map(|file| {
        let mut command = chatmesh(folder.path());
        command.args(["config", "show", "gateway", "--json", "--config", file]);
        command.env("SERVER_ID", "s");
        let document = json_output(&mut command);
        let settings = document["settings"].as_array().unwrap().clone();
        settings
            .into_iter()
            .map(|setting| (setting["key"].clone(), setting["value"].clone()))
            .collect::<Vec<_>>()
    });
    assert!(settings_by_file[0].len() > 20);
    let uncommented = std::mem::take(&mut settings_by_file[1]);
    assert_eq!(settings_by_file[0], uncommented);
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
    let help = run(chatmesh(folder.path()).arg("--help")).stdout;
    for word in ["all-in-one", "healthcheck", "Examples:", "CHATMESH_CONFIG"] {
        assert!(help.contains(word), "{help}");
    }
    let help = run(chatmesh(folder.path()).args(["healthcheck", "--help"])).stdout;
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
        let output = run(&mut command);
        assert_eq!(output.code, code, "{}", output.stderr);
        let head = server.join().unwrap();
        assert!(head.starts_with("GET /health/ready HTTP/1.1\r\n"), "{head}");
        if code == 1 {
            assert!(output.stderr.contains("redis: away"), "{}", output.stderr);
        }
    }
}

#[test]
fn signed_tokens_need_exactly_one_key_of_sufficient_length() {
    let check = |settings: &[&str]| {
        let mut args = vec!["config", "check", "gateway", "--set", "auth.mode=jwt"];
        for setting in settings {
            args.extend(["--set", setting]);
        }
        let (code, _, stderr) = crate::support::process::ProcessSpec::new(&args).run();
        (code, stderr)
    };
    let long_secret = "auth.jwt_secret=0123456789abcdef0123456789abcdef";
    assert_eq!(check(&[long_secret]).0, Some(0));
    assert_eq!(check(&["auth.jwt_jwks=https://id.example/keys"]).0, Some(0));
    let (code, stderr) = check(&[]);
    assert_eq!(code, Some(2));
    assert!(
        stderr.contains("exactly one of auth.jwt_secret"),
        "{stderr}"
    );
    let (code, _) = check(&[long_secret, "auth.jwt_jwks=keys.json"]);
    assert_eq!(code, Some(2));
    let (code, stderr) = check(&["auth.jwt_secret=short-and-secret"]);
    assert_eq!(code, Some(2));
    assert!(stderr.contains("at least 32 bytes"), "{stderr}");
    assert!(!stderr.contains("short-and-secret"), "{stderr}");
    let (code, stderr) = check(&["auth.jwt_jwks=http://id.example/keys"]);
    assert_eq!(code, Some(0));
    assert!(stderr.contains("fetched over http"), "{stderr}");
}

#[test]
fn unusable_verification_keys_are_reported_at_the_start() {
    let folder = folder(&[
        ("empty.json", r#"{"keys":[]}"#),
        ("secret.json", r#"{"keys":[{"kty":"oct","k":"AAAA"}]}"#),
    ]);
    let run_with_keys = |args: &[&str], keys: &str| {
        let mut command = chatmesh(folder.path());
        command.args(args).env("AUTH_MODE", "jwt");
        run(command.env("JWT_JWKS", keys))
    };
    let doctor = ["doctor", "all-in-one", "--no-model", "--json"];
    for (keys, expected) in [
        ("nowhere.json", "nowhere.json can't be read"),
        ("empty.json", "lists no key"),
        ("secret.json", "`kty: oct`"),
    ] {
        for role in ["gateway", "all-in-one"] {
            let output = run_with_keys(&["config", "check", role], keys);
            assert_eq!(output.code, 2, "{}", output.stderr);
            assert!(output.stderr.contains(expected), "{}", output.stderr);
        }
        let output = run_with_keys(&["all-in-one", "--ephemeral", "--port", "0"], keys);
        assert_eq!(output.code, 2, "{}", output.stderr);
        assert!(output.stderr.contains(expected), "{}", output.stderr);
        assert!(
            !output.stdout.contains("open the page"),
            "{}",
            output.stdout
        );
        let output = run_with_keys(&doctor, keys);
        assert_eq!(output.code, 2, "{}", output.stdout);
        assert!(
            output.stdout.contains(r#""area": "keys""#),
            "{}",
            output.stdout
        );
        assert!(output.stdout.contains(expected), "{}", output.stdout);
    }
    // Only `doctor` fetches keys from a URL; `config check` makes no connections.
    let closed_address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr();
    let url = format!("http://{}/keys", closed_address.unwrap());
    assert_eq!(run_with_keys(&["config", "check", "gateway"], &url).code, 0);
    let output = run_with_keys(&doctor, &url);
    assert_eq!(output.code, 1, "{}", output.stdout);
    assert!(
        output.stdout.contains("no token can be verified"),
        "{}",
        output.stdout
    );
}
