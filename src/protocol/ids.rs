//! Identifiers of users, messages and conversations. A value of these types has been validated.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};
use uuid::Uuid;

/// Namespace of every derived `message_id` (UUIDv5). It must never change: redelivered records
/// would get another identity and be answered twice.
const MESSAGE_NAMESPACE: Uuid = Uuid::from_u128(0x6c1f_5d0e_8f1b_4c57_9a0d_2b7e_53c4_91a6);

/// The error of a string that is not a valid identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} must be 1 to {max_chars} characters of A-Z a-z 0-9 . _ : @ | + -")]
pub struct InvalidId {
    field: &'static str,
    max_chars: usize,
}

fn validate(text: &str, field: &'static str, max_chars: usize) -> Result<(), InvalidId> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._:@|+-".contains(&byte);
    if text.is_empty() || text.len() > max_chars || !text.bytes().all(allowed) {
        return Err(InvalidId { field, max_chars });
    }
    Ok(())
}

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident, $field:literal, $max_chars:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Validates `text` by the rules of protocol.md section 1.
            ///
            /// # Errors
            /// The text is empty, too long, or has a character outside the allowed set.
            pub fn parse(text: &str) -> Result<Self, InvalidId> {
                validate(text, $field, $max_chars)?;
                Ok(Self(text.into()))
            }

            /// The identifier as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = Cow::<'de, str>::deserialize(deserializer)?;
                Self::parse(&text).map_err(serde::de::Error::custom)
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({
                    "type": "string",
                    "minLength": 1,
                    "maxLength": $max_chars,
                    "pattern": "^[A-Za-z0-9._:@|+-]+$",
                })
            }
        }
    };
}

identifier!(
    /// Identifies a user: 1–128 characters (protocol.md section 1).
    UserId, "userid", 128
);
identifier!(
    /// Identifies a message within its user, chosen by the client: 1–64 characters.
    ClientMessageId, "id", 64
);
identifier!(
    /// Identifies a conversation within its user: 1–64 characters.
    ConversationId, "conversation_id", 64
);
identifier!(
    /// Identifies a message in the whole system: 1–64 characters. A UUID if chatmesh has generated
    /// or derived it.
    MessageId, "message_id", 64
);

identifier!(
    /// Identifies the stream of one attempt at an answer within its message: 1–64 characters. No
    /// two attempts have the same stream.
    StreamId, "stream", 64
);

impl ConversationId {
    /// The conversation of messages that name no conversation.
    pub fn default_conversation() -> Self {
        Self("default".into())
    }

    /// A new random identifier of the form `chat-` and 12 hexadecimal digits.
    pub fn random() -> Self {
        let random = Uuid::new_v4().simple().to_string();
        Self(format!("chat-{}", &random[..12]).into())
    }
}

impl StreamId {
    /// The stream of the attempt with this number of the worker with this owner id. An owner id
    /// consists of characters that a stream's id may have, and is at most 32 characters long.
    pub(crate) fn of_attempt(owner: &str, attempt: u32) -> Self {
        Self(format!("{owner}.{attempt}").into())
    }
}

impl ClientMessageId {
    /// A new random identifier (UUIDv4).
    pub fn random() -> Self {
        Self(Uuid::new_v4().to_string().into())
    }
}

impl MessageId {
    /// A new identity that sorts by creation time (UUIDv7).
    pub fn random() -> Self {
        Self(Uuid::now_v7().to_string().into())
    }

    /// The identity of a message for which the client has chosen the identifier `id`. It is the
    /// same for every resend.
    pub fn from_client_id(user: &UserId, id: &ClientMessageId) -> Self {
        Self::derive(&[user.as_str(), id.as_str()])
    }

    /// The identity of the message in a record that names no identity. It is the same for every
    /// redelivery (protocol.md section 2). `timestamp_ms` is the record's timestamp in
    /// milliseconds.
    pub fn from_record(topic: &str, partition: i32, offset: i64, timestamp_ms: i64) -> Self {
        Self::derive(&[
            topic,
            &partition.to_string(),
            &offset.to_string(),
            &timestamp_ms.to_string(),
        ])
    }

    /// The identity of the replay of a dead letter. It is the same for every replay of that letter,
    /// and differs from the identity of the original message.
    pub fn for_replay(topic: &str, partition: i32, offset: i64, timestamp_ms: i64) -> Self {
        Self::derive(&[
            "replay",
            topic,
            &partition.to_string(),
            &offset.to_string(),
            &timestamp_ms.to_string(),
        ])
    }

    /// Hashes the parts, each with its length in front, so that different lists never collide.
    fn derive(parts: &[&str]) -> Self {
        let mut name = Vec::new();
        for part in parts {
            name.extend_from_slice(&(part.len() as u64).to_be_bytes());
            name.extend_from_slice(part.as_bytes());
        }
        Self(Uuid::new_v5(&MESSAGE_NAMESPACE, &name).to_string().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn userid_with_other_characters_or_length_is_rejected() {
        for bad in ["", "*", "a b", "a\r\nb", "{}", "ü", "a/b", &"x".repeat(129)] {
            assert!(UserId::parse(bad).is_err(), "{bad:?}");
        }
        for good in ["alice", "user:x", "a@b.c", "x|y+z-_", &"x".repeat(128)] {
            assert!(UserId::parse(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn derived_identity_depends_on_the_boundaries_of_its_parts() {
        let first = MessageId::from_client_id(
            &UserId::parse("ab").unwrap(),
            &ClientMessageId::parse("c").unwrap(),
        );
        let second = MessageId::from_client_id(
            &UserId::parse("a").unwrap(),
            &ClientMessageId::parse("bc").unwrap(),
        );
        assert_ne!(first, second);
    }

    #[test]
    fn derived_identity_is_stable() {
        let id = MessageId::from_record("incoming_messages", 3, 42, 1_700_000_000_000);
        assert_eq!(
            id,
            MessageId::from_record("incoming_messages", 3, 42, 1_700_000_000_000)
        );
        assert_eq!(id.as_str().len(), 36);
    }
}
