//! Names of a user's keys and channels in Redis, used by all calls and by the feed. A user id
//! contains no braces, so two users never share a name.

use crate::fanout::Channel;
use crate::protocol::ids::{MessageId, StreamId, UserId};

/// The hash tag with which all keys of a user begin, except the stored token's key.
pub(super) fn hash_tag(user: &UserId) -> String {
    format!("{{user:{user}}}")
}

/// A name in the slot of a user's keys that no key has, like the hash tag itself. Scripts declare
/// both as their keys: see `scripts`.
pub(super) fn absent_key(hash_tag: &str) -> String {
    format!("{hash_tag}:x")
}

/// Key of the pieces of a stream.
pub(super) fn stream_key(hash_tag: &str, message: &MessageId, stream: &StreamId) -> String {
    format!("{hash_tag}:1:s:{message}:{stream}")
}

/// Key of a user's stored token, as in the original system.
pub(super) fn token_key(user: &UserId) -> String {
    format!("token:{user}")
}

/// Name of a user's channel in Redis.
pub(super) fn name(user: &UserId, channel: Channel) -> String {
    match channel {
        Channel::Terminal => format!("user:{user}"),
        Channel::Live => format!("{{user:{user}}}:live"),
        Channel::Cancel => format!("{{user:{user}}}:cancel"),
    }
}

/// Splits a channel's name into user and channel. Returns `None` if it is not the name of a user's
/// channel.
pub(super) fn parse(name: &str) -> Option<(UserId, Channel)> {
    let (user, channel) = if let Some(rest) = name.strip_prefix("{user:") {
        match rest.split_once('}')? {
            (user, ":live") => (user, Channel::Live),
            (user, ":cancel") => (user, Channel::Cancel),
            _ => return None,
        }
    } else {
        (name.strip_prefix("user:")?, Channel::Terminal)
    };
    Some((UserId::parse(user).ok()?, channel))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_user_id_maps_only_to_its_own_channels() {
        for user in [
            "alice",
            "user:x",
            "a:live",
            "a|b+c",
            "alice:cancel",
            "x:1:m",
        ] {
            let user = UserId::parse(user).unwrap();
            for channel in [Channel::Terminal, Channel::Live, Channel::Cancel] {
                assert_eq!(parse(&name(&user, channel)), Some((user.clone(), channel)));
            }
        }
        assert_eq!(parse("{user:alice}:1:m"), None);
        assert_eq!(parse("other"), None);
    }
}
