//! Whatever comes from the network: every parser takes anything without breaking, and what it lets
//! through keeps its promises.

use std::str::FromStr as _;

use chatmesh::config::settings::Network;
use chatmesh::protocol::frame::{Published, parse_classic};
use chatmesh::protocol::ids::{ClientMessageId, ConversationId, MessageId, UserId};
use chatmesh::protocol::position::Position;
use chatmesh::protocol::v1;
use proptest::prelude::*;

fn alice() -> UserId {
    UserId::parse("alice").unwrap()
}

/// JSON that is nearly a frame: known names, any values.
fn nearly_a_frame() -> impl Strategy<Value = String> {
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
        nearly_a_frame(),
        r#"[{}\[\]":,a-z0-9\\ ]{0,60}"#
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_clients_frame_is_understood_or_refused_within_its_bounds(
        text in any_text(),
        limit in 1_usize..50,
    ) {
        if let Ok(content) = parse_classic(&text, &alice(), limit) {
            prop_assert!(content.chars().count() <= limit);
            prop_assert!(!content.trim().is_empty() && !content.contains('\0'));
        }
        if let Ok(v1::ClientFrame::Message { content, .. }) = v1::parse(&text, &alice(), limit) {
            prop_assert!(content.chars().count() <= limit);
            prop_assert!(!content.trim().is_empty() && !content.contains('\0'));
        }
    }

    #[test]
    fn a_published_frame_never_breaks_a_gateway(text in any_text()) {
        if let Ok(frame) = Published::parse(text.as_bytes()) {
            let user = alice();
            if let Some(told) = frame.to_classic(&user) {
                let told: serde_json::Value = serde_json::from_str(&told).unwrap();
                prop_assert_eq!(&told["userid"], "alice");
            }
            if let Some(told) = v1::of_published(&frame, &user) {
                let told: serde_json::Value = serde_json::from_str(&told).unwrap();
                prop_assert_eq!(&told["userid"], "alice");
            }
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        let _ = Published::parse(&bytes);
    }

    #[test]
    fn an_identifier_has_only_what_is_safe_in_keys_channels_headers_and_logs(text in ".{0,140}") {
        let safe = |text: &str, most: usize| {
            (1..=most).contains(&text.len())
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._:@|+-".contains(&b))
        };
        prop_assert_eq!(UserId::parse(&text).is_ok(), safe(&text, 128));
        prop_assert_eq!(ConversationId::parse(&text).is_ok(), safe(&text, 64));
        prop_assert_eq!(ClientMessageId::parse(&text).is_ok(), safe(&text, 64));
        let _ = MessageId::parse(&text);
    }

    #[test]
    fn a_position_is_read_as_it_was_written(text in "[!-~]{0,220}") {
        if let Ok(position) = Position::from_str(&text) {
            prop_assert!(text.len() <= 200);
            prop_assert_eq!(position.to_string().parse::<Position>().ok(), Some(position));
        }
    }

    #[test]
    fn a_network_is_a_network(text in "[0-9a-f:./]{0,40}", ip in any::<[u8; 4]>()) {
        if let Ok(network) = text.parse::<Network>() {
            network.contains(ip.into());
        }
    }
}

#[test]
fn hostile_userids_are_refused() {
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
