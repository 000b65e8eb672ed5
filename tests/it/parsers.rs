//! Property tests of the parsers of untrusted input: none panics, and every accepted value is
//! valid. They use the functions of the fuzz targets.

use chatmesh::config::settings::Network;
use chatmesh::protocol::ids::UserId;
use proptest::prelude::*;

/// JSON with the field names of frames and random values.
fn frame_like_json() -> impl Strategy<Value = String> {
    let name = prop_oneof![
        Just("type".to_owned()),
        Just("content".to_owned()),
        Just("userid".to_owned()),
        Just("id".to_owned()),
        Just("message_id".to_owned()),
        Just("conversation_id".to_owned()),
        Just("interrupt".to_owned()),
        Just("position".to_owned()),
        Just("n".to_owned()),
        Just("n_id".to_owned()),
        ".{0,8}",
    ];
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        prop_oneof![
            Just("message".to_owned()),
            Just("cancel".to_owned()),
            Just("ping".to_owned()),
            Just("alice".to_owned()),
            ".{0,40}",
        ]
        .prop_map(Into::into),
    ];
    let value = leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
            prop::collection::hash_map(".{0,6}", inner, 0..4)
                .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
        ]
    });
    prop::collection::hash_map(name, value, 0..8)
        .prop_map(|map| serde_json::Value::Object(map.into_iter().collect()).to_string())
}

fn any_text() -> impl Strategy<Value = String> {
    prop_oneof![
        ".{0,200}",
        frame_like_json(),
        r#"[{}\[\]":,a-z0-9\\ ]{0,60}"#
    ]
}

#[path = "../../fuzz/src/targets.rs"]
#[allow(unreachable_pub, reason = "the module is also a library")]
mod targets;

/// JSON with the field names of records and of a token's claims, and mostly valid values.
fn record_like_json() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        8 => prop::sample::select(vec![
            "message", "response", "error", "alice", "default", "HS256", "unavailable", "m-1",
        ]).prop_map(serde_json::Value::from),
        2 => ".{0,20}".prop_map(serde_json::Value::from),
        2 => any::<u32>().prop_map(serde_json::Value::from),
        1 => any::<f64>().prop_map(serde_json::Value::from),
        1 => any::<bool>().prop_map(serde_json::Value::from),
        1 => Just(serde_json::Value::Null),
        1 => Just(serde_json::json!({"prompt_tokens": 1, "total_tokens": 3})),
        1 => Just(serde_json::json!(["message", "x"])),
        1 => Just(serde_json::json!(4_102_444_800_u64)),
    ];
    let names = [
        "v",
        "type",
        "content",
        "userid",
        "timestamp",
        "server_id",
        "correlation_id",
        "message_id",
        "id",
        "conversation_id",
        "stream",
        "processing_time_ms",
        "code",
        "message",
        "retryable",
        "retry_after_ms",
        "finish_reason",
        "model",
        "usage",
        "attempt",
        "position",
        "n",
        "n_id",
        "sub",
        "exp",
        "iat",
        "nbf",
        "alg",
        "crit",
        "typ",
        "kid",
    ];
    let field = (prop::sample::select(names.to_vec()), leaf);
    prop::collection::vec(field, 0..10).prop_map(|fields| {
        // The required fields are present unless a random value replaces them.
        let mut record = serde_json::json!({"type": "message", "content": "x", "userid": "alice"});
        for (name, value) in fields {
            record[name] = value;
        }
        record.to_string()
    })
}

fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200),
        any_text().prop_map(String::into_bytes),
        record_like_json().prop_map(String::into_bytes),
        // A record that is truncated or has one changed byte.
        (
            record_like_json(),
            any::<prop::sample::Index>(),
            any::<u8>()
        )
            .prop_map(|(text, index, byte)| {
                let mut bytes = text.into_bytes();
                let index = index.index(bytes.len());
                if byte < 64 {
                    bytes.truncate(index);
                } else {
                    bytes[index] = byte;
                }
                bytes
            }),
    ]
}

/// Input of `targets::records`: flags, then value, key and headers, separated by the byte 0xff.
fn record_input() -> impl Strategy<Value = Vec<u8>> {
    (
        any::<u8>(),
        any_bytes(),
        prop::collection::vec(any_bytes(), 0..6),
    )
        .prop_map(|(flags, value, key_and_headers)| {
            let mut bytes = vec![flags];
            bytes.extend(value);
            for part in key_and_headers {
                bytes.push(0xff);
                bytes.extend(part);
            }
            bytes
        })
}

fn position_like_text() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        "[!-~]{0,220}".prop_map(String::into_bytes),
        "[a-zA-Z0-9_~-]{1,190}[.][0-9]{1,20}".prop_map(String::into_bytes),
        ".{0,140}".prop_map(String::into_bytes),
        "[A-Za-z0-9._:@|+-]{0,140}".prop_map(String::into_bytes),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn client_frame_is_accepted_or_rejected_within_its_limits(bytes in any_bytes()) {
        targets::client_frames(&bytes);
    }

    #[test]
    fn record_survives_decoding_and_encoding_or_is_rejected(bytes in record_input()) {
        targets::records(&bytes);
    }

    #[test]
    fn published_frame_is_encoded_without_internal_fields(bytes in any_bytes()) {
        targets::published(&bytes);
    }

    #[test]
    fn positions_and_identifiers_are_url_safe(bytes in position_like_text()) {
        targets::positions(&bytes);
    }

    #[test]
    fn only_a_signed_token_is_valid(bytes in any_bytes()) {
        targets::tokens(&bytes);
    }

    #[test]
    fn parsing_a_network_never_panics(text in "[0-9a-f:./]{0,40}", ip in any::<[u8; 4]>()) {
        if let Ok(network) = text.parse::<Network>() {
            network.contains(ip.into());
        }
    }
}

/// The seeds include the inputs with which the fuzzer has found bugs.
#[test]
fn fuzz_targets_accept_their_seeds() {
    type Target = fn(&[u8]);
    let targets: [(&str, Target); 5] = [
        ("client_frames", targets::client_frames),
        ("records", targets::records),
        ("published", targets::published),
        ("positions", targets::positions),
        ("tokens", targets::tokens),
    ];
    for (name, target) in targets {
        let seeds = format!("{}/fuzz/seeds/{name}", env!("CARGO_MANIFEST_DIR"));
        let mut count = 0;
        for seed in std::fs::read_dir(&seeds).unwrap() {
            target(&std::fs::read(seed.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count > 0, "{seeds} is empty");
    }
}

#[test]
fn userid_with_unsafe_characters_is_rejected() {
    for hostile in [
        "",
        "*",
        "a*",
        "?",
        "[ab]",
        "{}",
        "{a}",
        "a{b",
        "a b",
        "a\r\nb",
        "a\0b",
        "a/b",
        "a\\b",
        "\u{e9}",
        "\u{1f600}",
        "\u{202e}a",
        "a\"b",
        "a'b",
        "a,b",
        "a%b",
        "<a>",
    ] {
        assert!(UserId::parse(hostile).is_err(), "{hostile:?}");
    }
    assert!(UserId::parse(&"a".repeat(129)).is_err());
    assert!(UserId::parse(&"a".repeat(128)).is_ok());
}
