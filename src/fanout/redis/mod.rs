//! The fan-out on Redis: one server, a cluster, or behind sentinel.
//!
//! Each call is one Lua script (`scripts/`), so it is atomic and its repeats, which the client
//! library makes after a reconnect, are harmless. All of a user is in one slot. One connection
//! carries every call: they are pipelined, and Redis works them off one by one anyway.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use fred::clients::Client;
use fred::interfaces::{ClientLike, EventInterface};
use fred::types::Value;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use self::reply::{Reply, unreadable};
use self::results::{
    read_appended, read_delivered, read_entry, read_history, read_look, read_outcome, read_token,
    read_turns,
};
use self::scripts::{Script, Scripts};
use self::trouble::Trouble;
use super::{
    Admission, AdmissionDecision, BeginRequest, BeginResponse, ConversationEntry, DeferredOutcome,
    DeliverRequest, DeliverResponse, DeliveredOutcome, Fanout, FanoutError, Feed, FeedEvent,
    KeepRequest, KeepResponse, LEASE, Limit, LiveRequest, LiveResponse, MessageRef, NewOutcome,
    ReadRequest, Result, StoredOutcome, Turn, TurnStatus, UserView,
};
use crate::config::settings::RedisSettings;
use crate::protocol::ids::{ClientMessageId, ConversationId, MessageId, UserId};
use crate::protocol::open_message::CancelResult;
use crate::protocol::position::Epoch;
use crate::protocol::timestamp::now_ms;

mod channel;
mod connection;
mod feed;
mod frame;
pub mod inspect;
mod reply;
mod results;
mod scripts;
mod servers;
mod trouble;

/// Messages that one run of `forget` removes before it lets others have their turn: some
/// milliseconds of Redis.
const FORGET_AT_ONCE: usize = 1000;

/// The fan-out on Redis. Clones of its connections end when this and its feeds are dropped.
pub struct RedisFanout {
    settings: RedisSettings,
    client: Client,
    scripts: Scripts,
    disruptions: watch::Receiver<u64>,
    trouble: Trouble,
    _stop: DropGuard,
}

impl RedisFanout {
    /// Checks what [`RedisFanout::connect`] would refuse, without connecting.
    pub fn validate(settings: &RedisSettings) -> Result<()> {
        connection::client(settings).map(|_| ())
    }

    /// Connects in the background, and again whenever the connection is lost, for ever. Until
    /// then calls fail as unavailable within `command_timeout`. Must be called inside a tokio
    /// runtime.
    ///
    /// # Errors
    /// Only for a URL that can't be used.
    pub fn connect(settings: &RedisSettings) -> Result<Self> {
        let client = connection::client(settings)?;
        let stop = CancellationToken::new();
        let (sender, disruptions) = watch::channel(0);
        let trouble = Trouble::watch(&client);
        connection::connect_and_count(&client, sender, stop.clone());
        Ok(Self {
            trouble,
            settings: settings.clone(),
            scripts: Scripts::new(&settings.bounds, client.is_clustered()),
            client,
            disruptions,
            _stop: stop.drop_guard(),
        })
    }

    /// Runs a script within the command's time, whatever the client library waits for.
    async fn run(&self, script: &Script, key: &str, args: Vec<Value>) -> Result<Reply> {
        let call = script.run(&self.client, key, args);
        let answer = tokio::time::timeout(self.settings.command_timeout, call).await;
        let late = || {
            Err(FanoutError::Unavailable(
                "redis did not answer in time".into(),
            ))
        };
        self.trouble
            .see(answer.unwrap_or_else(|_| late()))
            .map(Reply::new)
    }

    /// What an ending costs its user, where that is counted at all.
    fn tokens(&self, ending: &NewOutcome) -> u64 {
        match self.settings.bounds.limits.daily_tokens {
            0 => 0,
            _ => ending.tokens(),
        }
    }

    fn turns_at_most(&self, limit: usize) -> usize {
        limit.min(self.settings.bounds.history_turns)
    }

    async fn marker(&self, script: &Script, epoch: &Epoch, token: &str) -> Result<bool> {
        let call = servers::marker(&self.client, script, epoch, token);
        tokio::time::timeout(self.settings.command_timeout, call)
            .await
            .map_err(|_| FanoutError::Unavailable("redis did not answer in time".into()))?
    }

    /// Runs it without the ending of a cancelled message, which nearly none needs, and once more
    /// with it where it is asked for. Until then nothing was changed.
    async fn run_or_with_ending(
        &self,
        script: &Script,
        user: &UserId,
        mut args: Vec<Value>,
        cancelled: &DeferredOutcome,
    ) -> Result<Reply> {
        let reply = self.run_for(script, user, args.clone()).await?;
        if !reply.next_is("cancelled") {
            return Ok(reply);
        }
        push_ending(&mut args, &cancelled.make());
        self.run_for(script, user, args).await
    }

    async fn run_for(&self, script: &Script, user: &UserId, args: Vec<Value>) -> Result<Reply> {
        self.run(script, &channel::tag(user), args).await
    }
}

fn text(text: &str) -> Value {
    Value::from(text)
}

fn random_id() -> Value {
    Value::from(uuid::Uuid::new_v4().simple().to_string())
}

fn client_id(subject: &MessageRef) -> &str {
    subject.id.as_ref().map_or("", ClientMessageId::as_str)
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn status_code(status: TurnStatus) -> &'static str {
    match status {
        TurnStatus::Answered => "a",
        TurnStatus::Cancelled => "c",
        TurnStatus::Failed => "f",
    }
}

fn push_ending(args: &mut Vec<Value>, ending: &NewOutcome) {
    let question = ending.turn.question.as_deref();
    args.extend([
        text(ending.frame.trim_end()),
        text(if question.is_some() { "1" } else { "0" }),
        text(question.unwrap_or("")),
        text(&ending.turn.answer),
        text(status_code(ending.turn.status)),
    ]);
}

fn wait(reply: &mut Reply) -> Result<Duration> {
    Ok(Duration::from_millis(reply.parse("time to wait")?))
}

fn unexpected(word: &str) -> FanoutError {
    FanoutError::Unexpected(format!("a script answered {word:?}"))
}

#[async_trait]
impl Fanout for RedisFanout {
    async fn admit(&self, subject: &MessageRef, content: &str) -> Result<Admission> {
        let args = vec![
            text(subject.message_id.as_str()),
            Value::from(frame::pending_entry(subject, content)),
            text(subject.conversation.as_str()),
        ];
        let mut reply = self
            .run_for(&self.scripts.admit, &subject.user, args)
            .await?;
        let admitted = match reply.text()?.as_str() {
            "new" => {
                return Ok(Admission {
                    decision: AdmissionDecision::New,
                    live_subscribers: reply.parse("number of subscribers")?,
                });
            }
            "rate" => AdmissionDecision::Refused(Limit::Rate(wait(&mut reply)?)),
            "tokens" => AdmissionDecision::Refused(Limit::Tokens(wait(&mut reply)?)),
            "pending" => AdmissionDecision::Refused(Limit::Pending),
            "conversations" => AdmissionDecision::Refused(Limit::Conversations),
            "kept" => AdmissionDecision::OutcomeStored,
            "forgotten" => AdmissionDecision::Forgotten,
            "delivered" => {
                let frame = reply.text()?;
                let position = reply.position()?.ok_or_else(|| unreadable("position"))?;
                AdmissionDecision::Delivered(frame, position)
            }
            word => return Err(unexpected(word)),
        };
        Ok(admitted.into())
    }

    async fn accept(&self, subject: &MessageRef, frame: String) -> Result<()> {
        let args = vec![
            random_id(),
            text(subject.message_id.as_str()),
            text(frame.trim_end()),
        ];
        self.run_for(&self.scripts.accept, &subject.user, args)
            .await
            .map(|_| ())
    }

    async fn begin(&self, call: BeginRequest) -> Result<BeginResponse> {
        let subject = &call.message;
        let recall = call.history.as_ref();
        let limit = recall.map_or(0, |recall| self.turns_at_most(recall.limit));
        let max_age = recall.map_or(0, |recall| millis(recall.max_age));
        let known = recall.and_then(|recall| recall.known_version.as_ref());
        let args = vec![
            random_id(),
            text(subject.message_id.as_str()),
            text(client_id(subject)),
            text(subject.conversation.as_str()),
            text(call.owner.as_str()),
            Value::from(call.last_attempt.to_string()),
            Value::from(frame::restarted(subject)),
            Value::from(millis(self.trouble.left_of(LEASE)).to_string()),
            Value::from(limit.to_string()),
            Value::from(max_age.to_string()),
            text(known.map_or("", |known| &known.0)),
        ];
        let mut reply = self
            .run_or_with_ending(
                &self.scripts.begin,
                &subject.user,
                args,
                &call.cancelled_outcome,
            )
            .await?;
        match reply.text()?.as_str() {
            "ended" => Ok(BeginResponse::Ended(read_outcome(&mut reply)?)),
            "busy" => Ok(BeginResponse::Busy(Duration::from_millis(
                reply.parse("lease")?,
            ))),
            "attempt" => Ok(BeginResponse::Attempt {
                number: reply.parse("attempt")?,
                now_ms: reply.parse("time")?,
                delivery_count: reply.parse("delivery_count")?,
                history: read_history(reply, known)?,
            }),
            word => Err(unexpected(word)),
        }
    }

    async fn live(&self, call: LiveRequest) -> Result<LiveResponse> {
        let subject = &call.message;
        let mut args = vec![
            random_id(),
            text(subject.message_id.as_str()),
            text(call.owner.as_str()),
            Value::from(call.attempt.to_string()),
        ];
        match &call.delta {
            Some((index, content)) => args.extend([
                Value::from(index.to_string()),
                text(content),
                Value::from(frame::delta(subject, call.attempt, *index, content)),
            ]),
            None => args.push(text("")),
        }
        let mut reply = self
            .run_for(&self.scripts.live, &subject.user, args)
            .await?;
        match reply.text()?.as_str() {
            "written" => Ok(LiveResponse::Written),
            "expected" => Ok(LiveResponse::Expected(reply.parse("index")?)),
            "fenced" => Ok(LiveResponse::Fenced),
            "cancelled" => Ok(LiveResponse::Cancelled),
            "lost" => Ok(LiveResponse::DataLost),
            word => Err(unexpected(word)),
        }
    }

    async fn keep(&self, call: KeepRequest) -> Result<KeepResponse> {
        let subject = &call.message;
        let mut args = vec![
            text(subject.message_id.as_str()),
            text(subject.conversation.as_str()),
            text(call.owner.as_str()),
            Value::from(call.attempt.to_string()),
        ];
        push_ending(&mut args, &call.outcome);
        args.push(Value::from(self.tokens(&call.outcome).to_string()));
        let mut reply = self
            .run_or_with_ending(
                &self.scripts.keep,
                &subject.user,
                args,
                &call.cancelled_outcome,
            )
            .await?;
        match reply.text()?.as_str() {
            "kept" => {
                let outcome = StoredOutcome {
                    frame: call.outcome.frame.clone(),
                    delivered_at: None,
                };
                Ok(match read_appended(reply, subject)? {
                    Some(appended) => KeepResponse::Appended(outcome, appended),
                    None => KeepResponse::Outcome(outcome),
                })
            }
            "ended" => Ok(KeepResponse::Outcome(read_outcome(&mut reply)?)),
            "fenced" => Ok(KeepResponse::Fenced),
            word => Err(unexpected(word)),
        }
    }

    async fn deliver(&self, call: DeliverRequest) -> Result<DeliverResponse> {
        let (known_epoch, known_offset) = match &call.known_end {
            Some(known) => (known.epoch.as_str(), known.offset.to_string()),
            None => ("", String::new()),
        };
        let conversation = call
            .conversation
            .as_ref()
            .map_or("", ConversationId::as_str);
        let args = vec![
            random_id(),
            random_id(),
            text(call.message_id.as_str()),
            text(conversation),
            text(call.position.epoch.as_str()),
            Value::from(call.position.offset.to_string()),
            text(known_epoch),
            Value::from(known_offset),
            text(if call.is_rewind { "1" } else { "0" }),
            text(call.frame.trim_end()),
            text(&call.answer),
            text(status_code(call.status)),
            Value::from(
                call.logged_at_ms
                    .map_or_else(String::new, |ms| ms.to_string()),
            ),
        ];
        let mut reply = self
            .run_for(&self.scripts.deliver, &call.user, args)
            .await?;
        match reply.text()?.as_str() {
            "published" => Ok(DeliverResponse::Published(reply.parse("count")?)),
            "already" => Ok(DeliverResponse::AlreadyDelivered),
            "lost" => Ok(DeliverResponse::DataLost),
            word => Err(unexpected(word)),
        }
    }

    async fn cancel(&self, user: &UserId, message_id: &MessageId) -> Result<CancelResult> {
        let args = vec![
            text(message_id.as_str()),
            Value::from(frame::cancel(message_id)),
        ];
        let mut reply = self.run_for(&self.scripts.cancel, user, args).await?;
        match reply.text()?.as_str() {
            "cancelling" => Ok(CancelResult::Cancelling),
            "already_done" => Ok(CancelResult::AlreadyDone),
            "unknown" => Ok(CancelResult::Unknown),
            word => Err(unexpected(word)),
        }
    }

    async fn read(&self, call: ReadRequest) -> Result<UserView> {
        let (epoch, offset) = match &call.after {
            Some(after) => (after.epoch.as_str(), after.offset.to_string()),
            None => ("", String::new()),
        };
        let args = vec![
            random_id(),
            random_id(),
            text(epoch),
            Value::from(offset),
            Value::from(call.max_bytes.to_string()),
            Value::from(u8::from(call.from_start && call.after.is_none()).to_string()),
        ];
        read_look(self.run_for(&self.scripts.read, &call.user, args).await?)
    }

    async fn context(
        &self,
        user: &UserId,
        conversation: &ConversationId,
        limit: usize,
        max_age: Duration,
    ) -> Result<Vec<Turn>> {
        let limit = self.turns_at_most(limit);
        let args = vec![
            text(conversation.as_str()),
            Value::from(limit.to_string()),
            Value::from(millis(max_age).to_string()),
        ];
        let reply = self.run_for(&self.scripts.context, user, args).await?;
        let mut turns = read_turns(reply)?;
        turns.reverse();
        Ok(turns)
    }

    async fn forget(&self, user: &UserId, conversation: Option<&ConversationId>) -> Result<bool> {
        let args = vec![
            text(conversation.map_or("", ConversationId::as_str)),
            Value::from(FORGET_AT_ONCE.to_string()),
        ];
        let mut found = false;
        // Each run begins anew and finds what is left, so one that failed is made good by a repeat.
        loop {
            let mut reply = self
                .run_for(&self.scripts.forget, user, args.clone())
                .await?;
            let count: u64 = reply.parse("count")?;
            found |= count > 0;
            if reply.text()? != "1" {
                return Ok(found);
            }
        }
    }

    async fn conversations(
        &self,
        user: &UserId,
        after: Option<&ConversationId>,
        limit: usize,
    ) -> Result<Vec<ConversationEntry>> {
        let args = vec![
            text(after.map_or("", ConversationId::as_str)),
            Value::from(limit.to_string()),
        ];
        let mut reply = self
            .run_for(&self.scripts.conversations, user, args)
            .await?;
        let mut entries = Vec::new();
        while !reply.is_empty() {
            entries.push(read_entry(reply.list()?)?);
        }
        Ok(entries)
    }

    async fn history(
        &self,
        user: &UserId,
        conversation: &ConversationId,
        before: Option<&MessageId>,
        limit: usize,
    ) -> Result<Option<Vec<Turn>>> {
        let limit = limit.min(self.settings.bounds.history_turns);
        let args = vec![
            text(conversation.as_str()),
            text(before.map_or("", MessageId::as_str)),
            Value::from(limit.to_string()),
        ];
        let mut reply = self.run_for(&self.scripts.turns, user, args).await?;
        match reply.text()?.as_str() {
            "gone" => Ok(None),
            "turns" => read_turns(reply.list()?).map(Some),
            word => Err(unexpected(word)),
        }
    }

    async fn delivered_outcomes(
        &self,
        user: &UserId,
        messages: &[MessageId],
    ) -> Result<Vec<DeliveredOutcome>> {
        if messages.is_empty() {
            return Ok(Vec::new());
        }
        let args = messages.iter().map(|id| text(id.as_str())).collect();
        read_delivered(self.run_for(&self.scripts.delivered, user, args).await?)
    }

    async fn clear_pending(&self, user: &UserId, message_id: &MessageId) -> Result<()> {
        let args = vec![text(message_id.as_str())];
        self.run_for(&self.scripts.clear_pending, user, args)
            .await
            .map(|_| ())
    }

    async fn stored_token(&self, user: &UserId) -> Result<Option<(String, u64)>> {
        let args = vec![text(""), text("0")];
        let key = channel::token_key(user);
        read_token(self.run(&self.scripts.issue_token, &key, args).await?)
    }

    async fn issue_token(
        &self,
        user: &UserId,
        candidate: &str,
        ttl: Duration,
    ) -> Result<(String, u64)> {
        let args = vec![
            text(candidate),
            Value::from(ttl.as_secs().max(1).to_string()),
        ];
        let key = channel::token_key(user);
        read_token(self.run(&self.scripts.issue_token, &key, args).await?)?
            .ok_or_else(|| unreadable("token"))
    }

    async fn revoke(&self, user: &UserId) -> Result<()> {
        // The token is in another slot than the rest of the user. It goes first: whoever comes
        // with it after that is refused, and who is in already is closed by what follows.
        let key = channel::token_key(user);
        self.run(&self.scripts.drop_token, &key, Vec::new()).await?;
        let at_ms = now_ms();
        let args = vec![
            random_id(),
            Value::from(at_ms.to_string()),
            Value::from(super::revoked_frame(user, at_ms)),
        ];
        self.run_for(&self.scripts.revoke, user, args)
            .await
            .map(|_| ())
    }

    async fn revoked_at(&self, user: &UserId) -> Result<Option<i64>> {
        let mut reply = self
            .run_for(&self.scripts.revoked_at, user, Vec::new())
            .await?;
        match reply.optional()? {
            Some(at_ms) => at_ms.parse().map(Some).map_err(|_| unreadable("time")),
            None => Ok(None),
        }
    }

    async fn has_marker(&self, epoch: &Epoch) -> Result<bool> {
        self.marker(&self.scripts.look_at_marker, epoch, "").await
    }

    async fn begin_marker(&self, epoch: &Epoch, token: &str) -> Result<bool> {
        self.marker(&self.scripts.begin_marker, epoch, token).await
    }

    async fn complete_marker(&self, epoch: &Epoch, token: &str) -> Result<bool> {
        self.marker(&self.scripts.complete_marker, epoch, token)
            .await
    }

    async fn set_marker(&self, epoch: &Epoch) -> Result<()> {
        servers::set_marker(&self.client, epoch).await
    }

    fn disruptions(&self) -> watch::Receiver<u64> {
        self.disruptions.clone()
    }

    async fn open_feed(
        &self,
        capacity: usize,
    ) -> Result<(Arc<dyn Feed>, mpsc::Receiver<FeedEvent>)> {
        let client = connection::client(&self.settings)?;
        let patience = self.settings.command_timeout;
        // The first look at a cluster counts as a change of it; a feed has nothing to repair then.
        // Where there is no Redis yet, the feed is opened all the same.
        let _ = tokio::time::timeout(patience, self.client.ping::<()>(None)).await;
        let changes = self.client.cluster_change_rx();
        Ok(feed::open(client, changes, capacity, patience).await)
    }

    async fn warnings(&self) -> Result<Vec<String>> {
        servers::warnings(&self.client).await
    }

    async fn check(&self) -> Result<()> {
        let checked = servers::check(&self.client).await;
        checked.map_err(|error| self.trouble.explain(error))
    }
}
