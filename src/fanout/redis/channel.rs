//! Keys and channels of a user. A userid has no braces, so none of them can be another user's.

use crate::fanout::Channel;
use crate::protocol::ids::UserId;

/// The hash tag that every key of the user begins with.
pub(super) fn tag(user: &UserId) -> String {
    format!("{{user:{user}}}")
}

/// The original's key of a user's stored token.
pub(super) fn token_key(user: &UserId) -> String {
    format!("token:{user}")
}

pub(super) fn name(user: &UserId, channel: Channel) -> String {
    match channel {
        Channel::Terminal => format!("user:{user}"),
        Channel::Live => format!("{{user:{user}}}:live"),
        Channel::Cancel => format!("{{user:{user}}}:cancel"),
    }
}

/// Whose channel this is, and which.
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
    fn a_hostile_userid_gets_only_its_own_channels() {
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
