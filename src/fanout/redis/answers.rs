//! The calls of [`Answers`] on Redis. `streams` has the calls that write the answer's parts.

use std::time::Duration;

use async_trait::async_trait;
use fred::types::Value;

use super::args::{client_id, millis, number, push_outcome, random_id, text};
use super::reply::Reply;
use super::scripts::Script;
use super::turn::decode_turns;
use super::{RedisFanout, frame, unexpected_reply_error};
use crate::fanout::{
    Answers, AppendRequest, BeginRequest, BeginResponse, HistoryResponse, HistoryVersion,
    KeepRequest, KeepResponse, LEASE, LazyOutcome, MessageRef, NewOutcome, OpenPartRequest,
    RenewRequest, Result, StoredOutcome, StreamResponse, Turn, TurnAppend,
};
use crate::protocol::ids::{ConversationId, UserId};

impl RedisFanout {
    /// Number of model tokens that the script counts for an outcome; 0 if users have no token
    /// limit.
    fn counted_tokens(&self, outcome: &NewOutcome) -> u64 {
        match self.settings.bounds.limits.daily_tokens {
            0 => 0,
            _ => outcome.tokens(),
        }
    }

    /// Runs a script without the arguments of the cancelled outcome, because hardly any call needs
    /// them. If the script needs them, it changes nothing and returns `cancelled`; it then runs a
    /// second time with these arguments.
    async fn run_with_lazy_outcome(
        &self,
        script: &Script,
        user: &UserId,
        mut args: Vec<Value>,
        cancelled_outcome: &LazyOutcome,
    ) -> Result<Reply> {
        let reply = self.run_for(script, user, args.clone()).await?;
        if !reply.next_is("cancelled") {
            return Ok(reply);
        }
        push_outcome(&mut args, &cancelled_outcome.build());
        self.run_for(script, user, args).await
    }
}

/// Decodes the frame of an outcome and its position, which is empty before the delivery.
fn decode_outcome(reply: &mut Reply) -> Result<StoredOutcome> {
    Ok(StoredOutcome {
        frame: reply.text()?,
        delivered_at: reply.position()?,
    })
}

/// Decodes the rest of the reply to `begin`: the history's version, and its turns unless the
/// worker has cached them (`known_version`). Returns `None` if no history was requested.
fn decode_history(
    mut reply: Reply,
    known_version: Option<&HistoryVersion>,
) -> Result<Option<HistoryResponse>> {
    if reply.is_empty() {
        return Ok(None);
    }
    let version = HistoryVersion(reply.text()?);
    if reply.is_empty() && known_version == Some(&version) {
        return Ok(Some(HistoryResponse::Unchanged));
    }
    // A worker without a cached version sends the empty version, which is also the version of an
    // empty history. In that case the script omits the turns although nothing is cached.
    let mut turns = if reply.is_empty() {
        Vec::new()
    } else {
        decode_turns(reply.list()?)?
    };
    turns.reverse();
    Ok(Some(HistoryResponse::Turns(version, turns)))
}

/// Decodes the rest of the reply to `keep`: the history's version before the turn was appended, and
/// the time of that turn. `None` if the script returned neither, because it changed another turn
/// that a worker may have cached, or appended no new turn.
fn decode_appended(mut reply: Reply, message: &MessageRef) -> Result<Option<TurnAppend>> {
    if reply.is_empty() {
        return Ok(None);
    }
    let version_before = HistoryVersion(reply.text()?);
    let at_us: i64 = reply.parse("time of a turn")?;
    Ok(Some(TurnAppend {
        version_before,
        version_after: HistoryVersion(format!("{} {at_us}", message.message_id)),
        at_ms: at_us / 1000,
    }))
}

#[async_trait]
impl Answers for RedisFanout {
    async fn begin(&self, call: BeginRequest) -> Result<BeginResponse> {
        let message = &call.message;
        let history = call.history.as_ref();
        let known_version = history.and_then(|history| history.known_version.as_ref());
        let args = vec![
            random_id(),
            text(message.message_id.as_str()),
            client_id(message),
            text(message.conversation.as_str()),
            text(call.owner.as_str()),
            number(call.last_attempt),
            Value::from(frame::restarted(message)),
            millis(self.health.remaining_grace(LEASE)),
            number(history.map_or(0, |history| self.limit_turns(history.limit))),
            millis(history.map_or(Duration::ZERO, |history| history.max_newest_turn_age)),
            text(known_version.map_or("", |version| &version.0)),
        ];
        let script = &self.scripts.begin;
        let mut reply = self
            .run_with_lazy_outcome(script, &message.user, args, &call.cancelled_outcome)
            .await?;
        match reply.text()?.as_str() {
            "ended" => Ok(BeginResponse::Ended(decode_outcome(&mut reply)?)),
            "busy" => Ok(BeginResponse::Busy(Duration::from_millis(
                reply.parse("lease")?,
            ))),
            "attempt" => Ok(BeginResponse::Attempt {
                number: reply.parse("attempt")?,
                now_ms: reply.parse("time")?,
                delivery_count: reply.parse("delivery count")?,
                history: decode_history(reply, known_version)?,
            }),
            word => Err(unexpected_reply_error(word)),
        }
    }

    async fn open_part(&self, call: OpenPartRequest) -> Result<StreamResponse> {
        self.run_open_part(&call).await
    }

    async fn append(&self, call: AppendRequest) -> Result<u64> {
        self.run_append(&call).await
    }

    async fn renew(&self, call: RenewRequest) -> Result<StreamResponse> {
        self.run_renew(&call).await
    }

    async fn keep(&self, call: KeepRequest) -> Result<KeepResponse> {
        let message = &call.message;
        let mut args = vec![
            text(message.message_id.as_str()),
            text(message.conversation.as_str()),
            text(call.owner.as_str()),
            number(call.attempt),
        ];
        push_outcome(&mut args, &call.outcome);
        args.push(number(self.counted_tokens(&call.outcome)));
        let script = &self.scripts.keep;
        let mut reply = self
            .run_with_lazy_outcome(script, &message.user, args, &call.cancelled_outcome)
            .await?;
        match reply.text()?.as_str() {
            "kept" => {
                let outcome = StoredOutcome {
                    frame: call.outcome.frame.clone(),
                    delivered_at: None,
                };
                Ok(match decode_appended(reply, message)? {
                    Some(appended) => KeepResponse::Appended(outcome, appended),
                    None => KeepResponse::Outcome(outcome),
                })
            }
            "ended" => Ok(KeepResponse::Outcome(decode_outcome(&mut reply)?)),
            "fenced" => Ok(KeepResponse::Fenced),
            word => Err(unexpected_reply_error(word)),
        }
    }

    async fn context(
        &self,
        user: &UserId,
        conversation: &ConversationId,
        limit: usize,
        max_newest_turn_age: Duration,
    ) -> Result<Vec<Turn>> {
        let args = vec![
            text(conversation.as_str()),
            number(self.limit_turns(limit)),
            millis(max_newest_turn_age),
        ];
        let reply = self.run_for(&self.scripts.context, user, args).await?;
        let mut turns = decode_turns(reply)?;
        turns.reverse();
        Ok(turns)
    }
}
