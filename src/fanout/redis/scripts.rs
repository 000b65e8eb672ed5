//! Builds the Lua scripts of the calls, and runs them by their digest.
//!
//! During a rolling upgrade, scripts of two versions run side by side. Keys, fields, arguments and
//! replies must therefore stay compatible with the previous version.
//!
//! A script about a user declares two keys that never exist. While the user's slot migrates to
//! another server of a cluster, the old server redirects such a script to the new one (`ASK`), and
//! the new one refuses it (`TRYAGAIN`). With only one key, the new server would run the script on
//! the part of the user's keys that has been moved.

use fred::clients::Client;
use fred::error::Error;
use fred::interfaces::ClientLike;
use fred::types::cluster::ClusterRouting;
use fred::types::{ClusterHash, CustomCommand, Value};

use super::connection::{fanout_error, is_redirection};
use crate::config::bounds::Bounds;
use crate::fanout::answers::LARGE_HISTORY_TURNS;
use crate::fanout::{LEASE, Result};

/// A Lua script: its source, and the SHA-1 digest by which Redis finds it.
#[derive(Debug)]
pub(super) struct Script {
    source: String,
    digest: String,
}

impl Script {
    fn new(source: String) -> Self {
        let digest = fred::util::sha1_hash(&source);
        Self { source, digest }
    }

    /// Runs the script on the server that has the slot of `keys`, by its digest. A server that does
    /// not have the script, because it restarted or took over a slot of a cluster, gets the source
    /// in a second command. A command that was redirected is repeated once, because the slot may
    /// have moved. While the slot migrates, the repeat is redirected too, and the call fails.
    pub(super) async fn run(
        &self,
        client: &Client,
        keys: &[&str],
        args: Vec<Value>,
    ) -> Result<Value> {
        let (mut command, mut script) = ("EVALSHA", &self.digest);
        let mut is_redirected = false;
        loop {
            match send(client, command, script, keys, args.clone()).await {
                Err(error) if error.details().starts_with("NOSCRIPT") && command == "EVALSHA" => {
                    (command, script) = ("EVAL", &self.source);
                }
                Err(error) if is_redirection(&error) && !is_redirected => is_redirected = true,
                other => return other.map_err(|error| fanout_error(client, &error)),
            }
        }
    }
}

/// Sends EVAL with the source of a script, or EVALSHA with its digest. The client library's own
/// `evalsha` fails at once while a cluster was not reached yet; a custom command with a slot waits
/// for the connection, like every other command.
async fn send(
    client: &Client,
    command: &'static str,
    script: &str,
    keys: &[&str],
    args: Vec<Value>,
) -> std::result::Result<Value, Error> {
    let first_key = keys.first().copied().unwrap_or_default();
    let slot = ClusterHash::Custom(ClusterRouting::hash_key(first_key.as_bytes()));
    let mut command_args = Vec::with_capacity(2 + keys.len() + args.len());
    command_args.extend([script.into(), keys.len().to_string().into()]);
    command_args.extend(keys.iter().map(|key| Value::from(*key)));
    command_args.extend(args);
    client
        .custom(
            CustomCommand::new_static(command, slot, false),
            command_args,
        )
        .await
}

/// All scripts. Settings that stay the same while the process runs (retention times, limits, the
/// publish command) are prepended to the source of a script as Lua constants, so that calls need
/// not send them. The marker scripts, `issue_token` and `drop_token` use none.
#[derive(Debug)]
pub(super) struct Scripts {
    pub(super) admit: Script,
    pub(super) accept: Script,
    pub(super) begin: Script,
    pub(super) open_part: Script,
    pub(super) renew: Script,
    pub(super) keep: Script,
    pub(super) deliver: Script,
    pub(super) cancel: Script,
    pub(super) read: Script,
    pub(super) context: Script,
    pub(super) forget: Script,
    pub(super) conversations: Script,
    pub(super) turns: Script,
    pub(super) delivered: Script,
    pub(super) clear_pending: Script,
    pub(super) issue_token: Script,
    pub(super) drop_token: Script,
    pub(super) revoke: Script,
    pub(super) revoked_at: Script,
    pub(super) has_marker: Script,
    pub(super) begin_rebuild: Script,
    pub(super) complete_rebuild: Script,
}

const COMMON: &str = include_str!("scripts/common.lua");
const ANSWER: &str = include_str!("scripts/answer.lua");
const CONTEXT: &str = include_str!("scripts/context.lua");
const HISTORY: &str = include_str!("scripts/history.lua");
const LIMITS: &str = include_str!("scripts/limits.lua");
const MAILBOX: &str = include_str!("scripts/mailbox.lua");
const PENDING: &str = include_str!("scripts/pending.lua");
const PUBLISH: &str = include_str!("scripts/publish.lua");
const STREAM: &str = include_str!("scripts/stream.lua");
const TOKENS: &str = include_str!("scripts/tokens.lua");
const TURN: &str = include_str!("scripts/turn.lua");

/// Lua source with which the marker scripts begin. KEYS: the marker, whose value is `1`, or the
/// token of the relay that rebuilds the mailboxes. ARGV: token, time to live in seconds. `put`
/// writes the marker and returns 1 if the written value is `1`.
const MARKER: &str = "local marker = redis.call('GET', KEYS[1])\n\
                      local function put(value)\n\
                        redis.call('SET', KEYS[1], value, 'EX', ARGV[2])\n\
                        return value == '1' and 1 or 0\n\
                      end\n";

/// Lua source that defines the settings as constants. Times are in milliseconds unless the name of
/// the constant says otherwise.
fn constants(bounds: &Bounds, is_clustered: bool) -> String {
    let (publish, count) = if is_clustered {
        ("SPUBLISH", "SHARDNUMSUB")
    } else {
        ("PUBLISH", "NUMSUB")
    };
    let limits = &bounds.limits;
    format!(
        "local PUBLISH_COMMAND, NUMSUB_COMMAND = '{publish}', '{count}'\n\
         local LEASE, DEDUP_TTL, PENDING_TTL = {}, {}, {}\n\
         local MAILBOX_TTL, MAILBOX_FRAMES, MAILBOX_BYTES = {}, {}, {}\n\
         local HISTORY_TTL, HISTORY_TURNS, IS_LARGE_HISTORY = {}, {}, {}\n\
         local RATE_REQUESTS, RATE_WINDOW_US, DAILY_TOKENS = {}, {}, {}\n\
         local MAX_CONVERSATIONS, MAX_PENDING = {}, {}\n",
        LEASE.as_millis(),
        bounds.dedup_ttl.as_millis().max(1),
        bounds.pending_ttl.as_millis().max(1),
        bounds.mailbox_ttl.as_millis().max(1),
        bounds.mailbox_frames,
        bounds.mailbox_bytes,
        bounds.history_ttl.as_millis().max(1),
        bounds.history_turns,
        bounds.history_turns >= LARGE_HISTORY_TURNS,
        limits.requests,
        limits.window.as_micros().max(1),
        limits.daily_tokens,
        limits.conversations,
        limits.max_pending,
    )
}

impl Scripts {
    /// Builds all scripts. Each script contains only the parts that it uses, because each part
    /// costs every run about as much time as a Redis command.
    pub(super) fn new(bounds: &Bounds, is_clustered: bool) -> Self {
        let constants = constants(bounds, is_clustered);
        let script = |parts: &[&str]| Script::new(format!("{constants}{}", parts.concat()));
        Self {
            admit: script(&[
                COMMON,
                PENDING,
                TOKENS,
                LIMITS,
                include_str!("scripts/admit.lua"),
            ]),
            accept: script(&[COMMON, PUBLISH, include_str!("scripts/accept.lua")]),
            begin: script(&[
                COMMON,
                PUBLISH,
                STREAM,
                ANSWER,
                HISTORY,
                TURN,
                CONTEXT,
                include_str!("scripts/begin.lua"),
            ]),
            open_part: script(&[
                COMMON,
                PUBLISH,
                STREAM,
                ANSWER,
                include_str!("scripts/open_part.lua"),
            ]),
            renew: script(&[COMMON, STREAM, ANSWER, include_str!("scripts/renew.lua")]),
            keep: script(&[COMMON, HISTORY, TOKENS, include_str!("scripts/keep.lua")]),
            deliver: script(&[
                COMMON,
                PUBLISH,
                STREAM,
                HISTORY,
                MAILBOX,
                include_str!("scripts/deliver.lua"),
            ]),
            cancel: script(&[COMMON, PENDING, include_str!("scripts/cancel.lua")]),
            read: script(&[
                COMMON,
                PUBLISH,
                STREAM,
                PENDING,
                MAILBOX,
                include_str!("scripts/read.lua"),
            ]),
            context: script(&[
                COMMON,
                TURN,
                CONTEXT,
                // ARGV: conversation, maximum number of turns, maximum age of the newest turn (ms)
                "return context(ARGV[1], tonumber(ARGV[2]), ARGV[3])",
            ]),
            forget: script(&[
                COMMON,
                STREAM,
                PENDING,
                MAILBOX,
                include_str!("scripts/forget.lua"),
            ]),
            conversations: script(&[COMMON, include_str!("scripts/conversations.lua")]),
            turns: script(&[COMMON, TURN, include_str!("scripts/turns.lua")]),
            delivered: script(&[COMMON, include_str!("scripts/delivered.lua")]),
            clear_pending: script(&[COMMON, include_str!("scripts/clear_pending.lua")]),
            drop_token: Script::new("return { redis.call('DEL', KEYS[1]) }".to_owned()),
            revoke: script(&[COMMON, PUBLISH, include_str!("scripts/revoke.lua")]),
            revoked_at: script(&[COMMON, "return { redis.call('GET', PREFIX .. 'rv') }"]),
            has_marker: Script::new(format!("{MARKER} return marker == '1' and put('1') or 0")),
            begin_rebuild: Script::new(format!(
                "{MARKER} return put(marker == '1' and '1' or ARGV[1])"
            )),
            complete_rebuild: Script::new(format!(
                "{MARKER} return (marker == '1' or marker == ARGV[1]) and put('1') or 0"
            )),
            issue_token: Script::new(include_str!("scripts/issue_token.lua").to_owned()),
        }
    }
}
