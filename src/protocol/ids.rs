//! Identifiers that clients and records bring along, checked where they enter.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};
use uuid::Uuid;

/// Namespace of every derived `message_id` (UUIDv5). Fixed for ever: another value would give
/// records that are read again another identity.
const MESSAGE_NAMESPACE: Uuid = Uuid::from_u128(0x6c1f_5d0e_8f1b_4c57_9a0d_2b7e_53c4_91a6);

/// Why a string is no identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} must be 1 to {max} characters of A-Z a-z 0-9 . _ : @ | + -")]
pub struct InvalidId {
    what: &'static str,
    max: usize,
}

fn check(text: &str, what: &'static str, max: usize) -> Result<(), InvalidId> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._:@|+-".contains(&byte);
    if text.is_empty() || text.len() > max || !text.bytes().all(allowed) {
        return Err(InvalidId { what, max });
    }
    Ok(())
}

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident, $what:literal, $max:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks `text` against the rule of protocol.md section 1.
            pub fn parse(text: &str) -> Result<Self, InvalidId> {
                check(text, $what, $max)?;
                Ok(Self(text.into()))
            }

            /// The identifier as it was given.
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
                    "maxLength": $max,
                    "pattern": "^[A-Za-z0-9._:@|+-]+$",
                })
            }
        }
    };
}

identifier!(
    /// A user: 1–128 characters (protocol.md section 1).
    UserId, "userid", 128
);
identifier!(
    /// A message's identifier chosen by its client: 1–64 characters.
    ClientMessageId, "id", 64
);
identifier!(
    /// A conversation of one user: 1–64 characters.
    ConversationId, "conversation_id", 64
);
identifier!(
    /// A message's identity in the whole system: a UUID where chatmesh made it.
    MessageId, "message_id", 64
);

impl ConversationId {
    /// The conversation of a client that names none.
    pub fn default_conversation() -> Self {
        Self("default".into())
    }

    /// A new one, as our own client names it.
    pub fn random() -> Self {
        let random = Uuid::new_v4().simple().to_string();
        Self(format!("chat-{}", &random[..12]).into())
    }
}

impl ClientMessageId {
    /// A new one, as our own client chooses it.
    pub fn random() -> Self {
        Self(Uuid::new_v4().to_string().into())
    }
}

impl MessageId {
    /// A new identity, ordered by time (UUIDv7).
    pub fn random() -> Self {
        Self(Uuid::now_v7().to_string().into())
    }

    /// The identity of a message that its client named: the same for every resend.
    pub fn of_client(user: &UserId, id: &ClientMessageId) -> Self {
        Self::derive(&[user.as_str(), id.as_str()])
    }

    /// The identity of a record that carries none: reading it again gives the same one
    /// (protocol.md section 2). `timestamp_ms` is the record's own, in milliseconds.
    pub fn of_record(topic: &str, partition: i32, offset: i64, timestamp_ms: i64) -> Self {
        Self::derive(&[
            topic,
            &partition.to_string(),
            &offset.to_string(),
            &timestamp_ms.to_string(),
        ])
    }

    /// The identity of the message that brings a dead letter's record back: the same however often
    /// it is brought back, and never that of the record.
    pub fn of_replay(topic: &str, partition: i32, offset: i64, timestamp_ms: i64) -> Self {
        Self::derive(&[
            "replay",
            topic,
            &partition.to_string(),
            &offset.to_string(),
            &timestamp_ms.to_string(),
        ])
    }

    /// Each part goes in with its length before it, so that no two lists of parts collide.
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
    fn a_userid_outside_the_set_is_refused() {
        for bad in ["", "*", "a b", "a\r\nb", "{}", "ü", "a/b", &"x".repeat(129)] {
            assert!(UserId::parse(bad).is_err(), "{bad:?}");
        }
        for good in ["alice", "user:x", "a@b.c", "x|y+z-_", &"x".repeat(128)] {
            assert!(UserId::parse(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn a_derived_identity_depends_on_where_the_parts_are_cut() {
        let one = MessageId::of_client(
            &UserId::parse("ab").unwrap(),
            &ClientMessageId::parse("c").unwrap(),
        );
        let other = MessageId::of_client(
            &UserId::parse("a").unwrap(),
            &ClientMessageId::parse("bc").unwrap(),
        );
        assert_ne!(one, other);
    }

    #[test]
    fn a_derived_identity_never_changes_between_versions() {
        let id = MessageId::of_record("incoming_messages", 3, 42, 1_700_000_000_000);
        assert_eq!(
            id,
            MessageId::of_record("incoming_messages", 3, 42, 1_700_000_000_000)
        );
        assert_eq!(id.as_str().len(), 36);
    }
}
