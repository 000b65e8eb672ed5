//! A fake log and a fake fan-out whose faults a test controls.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chatmesh::fanout::{
    Admission, AdmissionDecision, Admissions, Channel, ConversationEntry, DeliveredOutcome,
    FanoutError, Feed, FeedEvent, Feeds, History, Limit, MessageRef, ReadRequest, Reads, Result,
    Tokens, Turn, UserView,
};
use chatmesh::log::{AppendError, Consumer, Log, LogError, LogOffset, TopicSpec};
use chatmesh::protocol::ids::{ConversationId, MessageId, UserId};
use chatmesh::protocol::log_record::NewRecord;
use chatmesh::protocol::open_message::{CancelResult, PendingMessage};
use chatmesh::protocol::position::{Epoch, Position};
use chatmesh::protocol::sequence_number::SequenceNumber;
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, watch};

/// Stores appended records, and acknowledges them while `acknowledging` is true.
pub(crate) struct FakeLog {
    records: Mutex<Vec<(String, NewRecord)>>,
    appended: watch::Sender<usize>,
    acknowledging: watch::Sender<bool>,
    pub(crate) is_refusing: AtomicBool,
}

impl FakeLog {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            records: Mutex::default(),
            appended: watch::Sender::new(0),
            acknowledging: watch::Sender::new(true),
            is_refusing: AtomicBool::new(false),
        })
    }

    pub(crate) fn set_acknowledging(&self, enabled: bool) {
        self.acknowledging.send_replace(enabled);
    }

    /// Whether no record was appended.
    pub(super) fn is_empty(&self) -> bool {
        self.records.lock().unwrap().is_empty()
    }

    /// Waits until `count` records were appended, and returns all.
    pub(crate) async fn records(&self, count: usize) -> Vec<(String, NewRecord)> {
        let mut appended = self.appended.subscribe();
        appended.wait_for(|n| *n >= count).await.unwrap();
        self.records.lock().unwrap().clone()
    }
}

#[async_trait]
impl Log for FakeLog {
    fn append(
        &self,
        topic: &str,
        record: NewRecord,
    ) -> BoxFuture<'static, std::result::Result<LogOffset, AppendError>> {
        if self.is_refusing.load(Ordering::SeqCst) {
            return Box::pin(async { Err(AppendError::Refused("too large".into())) });
        }
        let mut records = self.records.lock().unwrap();
        let offset = records.len() as i64;
        records.push((topic.to_owned(), record));
        self.appended.send_replace(records.len());
        let mut acknowledging = self.acknowledging.subscribe();
        Box::pin(async move {
            let _ = acknowledging.wait_for(|enabled| *enabled).await;
            Ok(LogOffset {
                partition: 0,
                offset,
            })
        })
    }

    fn consumer(
        &self,
        _group: &str,
        _topic: &str,
    ) -> std::result::Result<Box<dyn Consumer>, LogError> {
        Err(LogError::Unavailable("not in this fake".into()))
    }

    async fn ensure_topics(
        &self,
        _topics: &[TopicSpec],
    ) -> std::result::Result<Vec<String>, LogError> {
        Ok(Vec::new())
    }

    async fn offset_at(
        &self,
        _topic: &str,
        _partition: i32,
        _timestamp_ms: i64,
    ) -> std::result::Result<Option<i64>, LogError> {
        Ok(None)
    }

    async fn cluster_id(&self) -> std::result::Result<String, LogError> {
        Ok("fake".into())
    }

    async fn check(&self) -> std::result::Result<(), LogError> {
        Ok(())
    }

    async fn flush(&self) {}
}

#[derive(Default)]
struct Mailbox {
    epoch: Option<Epoch>,
    /// `frames` is complete after this offset.
    floor: i64,
    frames: Vec<(Position, String)>,
    /// Delivered frames that the mailbox no longer holds.
    trimmed: Vec<(Position, String)>,
    /// Positions of delivered outcomes whose conversation was forgotten, with their message id.
    forgotten: Vec<(Position, String)>,
    pending: Vec<PendingMessage>,
    /// Position of the last frame that a rewind stored again.
    rebuilt: Option<Position>,
}

pub(super) struct FakeFanout {
    tokens: Mutex<HashMap<UserId, String>>,
    /// The limit with which `admit` refuses; `None` admits.
    pub(super) refusal: Mutex<Option<Limit>>,
    revoked_at: Mutex<HashMap<UserId, i64>>,
    mailboxes: Mutex<HashMap<UserId, Mailbox>>,
    subscribed: Arc<Mutex<HashSet<UserId>>>,
    /// The number of calls of `subscribe`.
    subscriptions: Arc<AtomicUsize>,
    events: Mutex<Option<mpsc::Sender<FeedEvent>>>,
    pub(super) is_unavailable: AtomicBool,
    /// The messages for which `clear_pending` was called.
    pub(super) cleared: watch::Sender<Vec<MessageId>>,
    /// The number of calls of `read`.
    pub(super) reads: watch::Sender<usize>,
}

struct FakeFeed {
    subscribed: Arc<Mutex<HashSet<UserId>>>,
    subscriptions: Arc<AtomicUsize>,
}

#[async_trait]
impl Feed for FakeFeed {
    async fn subscribe(&self, user: &UserId, channel: Channel) -> Result<()> {
        assert_eq!(channel, Channel::Terminal);
        assert!(self.subscribed.lock().unwrap().insert(user.clone()));
        self.subscriptions.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    async fn unsubscribe(&self, user: &UserId, _channel: Channel) -> Result<()> {
        assert!(self.subscribed.lock().unwrap().remove(user));
        Ok(())
    }
}

pub(super) fn user(name: &str) -> UserId {
    UserId::parse(name).unwrap()
}

pub(super) fn position(offset: i64) -> Position {
    Position {
        epoch: Epoch::new("fake", "0", 0),
        offset,
    }
}

/// A terminal frame as a relay publishes it.
pub(super) fn terminal_frame(name: &str, message_id: &str, offset: i64, content: &str) -> String {
    serde_json::json!({"v": 1, "type": "response", "content": content, "userid": name,
        "timestamp": "2024-01-01T12:00:00Z", "processing_time_ms": 5, "correlation_id": "c",
        "message_id": message_id, "conversation_id": "default", "position": position(offset).to_string(),
        "n": 1, "n_id": "x"})
    .to_string()
}

impl FakeFanout {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            tokens: Mutex::default(),
            refusal: Mutex::default(),
            revoked_at: Mutex::default(),
            mailboxes: Mutex::default(),
            subscribed: Arc::default(),
            subscriptions: Arc::default(),
            events: Mutex::default(),
            is_unavailable: AtomicBool::new(false),
            cleared: watch::Sender::new(Vec::new()),
            reads: watch::Sender::new(0),
        })
    }

    fn check_available(&self) -> Result<()> {
        if self.is_unavailable.load(Ordering::SeqCst) {
            return Err(FanoutError::Unavailable(
                "made unavailable by the test".into(),
            ));
        }
        Ok(())
    }

    pub(super) fn is_subscribed(&self, name: &str) -> bool {
        self.subscribed.lock().unwrap().contains(&user(name))
    }

    /// The number of subscriptions made so far.
    pub(super) fn subscriptions(&self) -> usize {
        self.subscriptions.load(Ordering::SeqCst)
    }

    /// Sends a frame to the gateway if it is subscribed, as Redis does.
    pub(super) async fn publish(&self, name: &str, payload: &str) {
        if !self.is_subscribed(name) {
            return;
        }
        self.send_event(FeedEvent::Frame {
            user: user(name),
            channel: Channel::Terminal,
            payload: Bytes::copy_from_slice(payload.as_bytes()),
        })
        .await;
    }

    pub(super) async fn send_event(&self, event: FeedEvent) {
        let events = self.events.lock().unwrap().clone().unwrap();
        events.send(event).await.unwrap();
    }

    /// Puts a frame into the mailbox without publishing it.
    pub(super) fn store_frame(&self, name: &str, offset: i64, payload: &str) {
        let mut mailboxes = self.mailboxes.lock().unwrap();
        let mailbox = mailboxes.entry(user(name)).or_default();
        mailbox.epoch = Some(position(0).epoch);
        mailbox.frames.push((position(offset), payload.to_owned()));
    }

    /// Stores and publishes a frame, as a relay does by `deliver`.
    pub(super) async fn deliver(&self, name: &str, message_id: &str, offset: i64, content: &str) {
        let payload = terminal_frame(name, message_id, offset, content);
        self.store_frame(name, offset, &payload);
        self.publish(name, &payload).await;
    }

    /// Simulates a user that moved to another partition and back: the mailbox is empty, and the
    /// outcomes are still known.
    pub(super) fn reset_mailbox(&self, name: &str, floor: i64) {
        let mut mailboxes = self.mailboxes.lock().unwrap();
        let mailbox = mailboxes.entry(user(name)).or_default();
        let frames = std::mem::take(&mut mailbox.frames);
        mailbox.trimmed.extend(frames);
        mailbox.floor = floor;
    }

    /// Simulates an outcome that was delivered, not published, and then forgotten.
    pub(super) fn forget_outcome(&self, name: &str, message_id: &str, offset: i64) {
        let mut mailboxes = self.mailboxes.lock().unwrap();
        let mailbox = mailboxes.entry(user(name)).or_default();
        mailbox.epoch = Some(position(0).epoch);
        mailbox
            .forgotten
            .push((position(offset), message_id.to_owned()));
    }

    /// Simulates data loss and a rebuild of the frames after `floor` up to `until`.
    pub(super) fn rebuild(&self, name: &str, floor: i64, until: i64) {
        let mut mailboxes = self.mailboxes.lock().unwrap();
        *mailboxes.entry(user(name)).or_default() = Mailbox {
            epoch: Some(position(0).epoch),
            floor,
            rebuilt: Some(position(until)),
            ..Mailbox::default()
        };
    }
}

fn unexpected_call<T>() -> Result<T> {
    Err(FanoutError::Unexpected(
        "the gateway must not call this".into(),
    ))
}

#[async_trait]
impl Admissions for FakeFanout {
    async fn admit(&self, subject: &MessageRef, content: &str) -> Result<Admission> {
        self.check_available()?;
        if let Some(limit) = *self.refusal.lock().unwrap() {
            return Ok(AdmissionDecision::Refused(limit).into());
        }
        let mut mailboxes = self.mailboxes.lock().unwrap();
        let mailbox = mailboxes.entry(subject.user.clone()).or_default();
        mailbox.pending.push(PendingMessage {
            message_id: subject.message_id.clone(),
            id: None,
            conversation: subject.conversation.clone(),
            content: content.to_owned(),
        });
        Ok(AdmissionDecision::New.into())
    }

    async fn accept(&self, _subject: &MessageRef, _frame: String) -> Result<()> {
        self.check_available()
    }

    async fn cancel(&self, _user: &UserId, _message_id: &MessageId) -> Result<CancelResult> {
        unexpected_call()
    }

    async fn clear_pending(&self, _user: &UserId, message_id: &MessageId) -> Result<()> {
        self.cleared
            .send_modify(|cleared| cleared.push(message_id.clone()));
        Ok(())
    }
}

#[async_trait]
impl Reads for FakeFanout {
    async fn read(&self, call: ReadRequest) -> Result<UserView> {
        self.check_available()?;
        let mut mailboxes = self.mailboxes.lock().unwrap();
        let mailbox = mailboxes.entry(call.user).or_default();
        let epoch = mailbox
            .epoch
            .clone()
            .unwrap_or_else(|| Epoch::for_empty_mailbox("fake"));
        let offset = mailbox
            .frames
            .last()
            .map_or(mailbox.floor, |(position, _)| position.offset);
        let end = Position { epoch, offset };
        let recovered = call.after.as_ref().is_some_and(|after| {
            (after.epoch.empty_mailbox_id().is_some() && mailbox.trimmed.is_empty())
                || (after.epoch == end.epoch && (mailbox.floor..=offset).contains(&after.offset))
        });
        let from = call.after.map_or(-1, |after| {
            if after.epoch == end.epoch {
                after.offset
            } else {
                -1
            }
        });
        let is_requested = recovered || call.from_start;
        let newer_frames = mailbox
            .frames
            .iter()
            .filter(|(p, _)| is_requested && p.offset > from);
        let frames: Vec<_> = newer_frames.cloned().collect();
        let view = UserView {
            number: SequenceNumber::new("x", 1),
            end,
            recovered,
            // Pages are small, so that the tests cover paging.
            has_more: frames.len() > 2,
            frames: frames.into_iter().take(2).collect(),
            rebuilt_up_to: mailbox.rebuilt.clone(),
            in_flight: Vec::new(),
            pending: mailbox.pending.clone(),
        };
        self.reads.send_modify(|reads| *reads += 1);
        Ok(view)
    }

    async fn delivered_outcomes(
        &self,
        user: &UserId,
        messages: &[MessageId],
    ) -> Result<Vec<DeliveredOutcome>> {
        self.check_available()?;
        let mailboxes = self.mailboxes.lock().unwrap();
        let Some(mailbox) = mailboxes.get(user) else {
            return Ok(Vec::new());
        };
        let outcomes = messages.iter().filter_map(|id| {
            let field = format!(r#""message_id":"{id}""#);
            let mut frames = mailbox.trimmed.iter().chain(&mailbox.frames);
            let stored = frames.find(|(_, frame)| frame.contains(&field));
            let mut forgotten_outcomes = mailbox.forgotten.iter();
            let mut find_forgotten =
                || forgotten_outcomes.find(|(_, forgotten_id)| *forgotten_id == id.as_str());
            let (position, frame) = match stored {
                Some((position, frame)) => (position, Some(frame.clone())),
                None => (&find_forgotten()?.0, None),
            };
            Some(DeliveredOutcome {
                message_id: id.clone(),
                position: position.clone(),
                frame,
            })
        });
        Ok(outcomes.collect())
    }
}

#[async_trait]
impl History for FakeFanout {
    async fn conversations(
        &self,
        _user: &UserId,
        _after: Option<&ConversationId>,
        _limit: usize,
    ) -> Result<Vec<ConversationEntry>> {
        unexpected_call()
    }

    async fn history(
        &self,
        _user: &UserId,
        _conversation: &ConversationId,
        _before: Option<&MessageId>,
        _limit: usize,
    ) -> Result<Option<Vec<Turn>>> {
        unexpected_call()
    }

    async fn forget(&self, _user: &UserId, _conversation: Option<&ConversationId>) -> Result<bool> {
        unexpected_call()
    }
}

#[async_trait]
impl Tokens for FakeFanout {
    async fn stored_token(&self, user: &UserId) -> Result<Option<(String, u64)>> {
        self.check_available()?;
        let tokens = self.tokens.lock().unwrap();
        Ok(tokens.get(user).map(|token| (token.clone(), 60)))
    }

    async fn issue_token(
        &self,
        user: &UserId,
        candidate: &str,
        ttl: Duration,
    ) -> Result<(String, u64)> {
        self.check_available()?;
        let mut tokens = self.tokens.lock().unwrap();
        let token = tokens
            .entry(user.clone())
            .or_insert_with(|| candidate.to_owned());
        Ok((token.clone(), ttl.as_secs()))
    }

    async fn revoke(&self, user: &UserId) -> Result<()> {
        self.check_available()?;
        self.tokens.lock().unwrap().remove(user);
        let now = std::time::SystemTime::now();
        let at_ms = now
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap()
            .as_millis() as i64;
        self.revoked_at.lock().unwrap().insert(user.clone(), at_ms);
        let frame = format!(r#"{{"type":"revoked","userid":"{user}","at_ms":{at_ms}}}"#);
        self.publish(user.as_str(), &frame).await;
        Ok(())
    }

    async fn revoked_at(&self, user: &UserId) -> Result<Option<i64>> {
        self.check_available()?;
        Ok(self.revoked_at.lock().unwrap().get(user).copied())
    }
}

#[async_trait]
impl Feeds for FakeFanout {
    async fn open_feed(
        &self,
        capacity: usize,
    ) -> Result<(Arc<dyn Feed>, mpsc::Receiver<FeedEvent>)> {
        let (sender, receiver) = mpsc::channel(capacity);
        *self.events.lock().unwrap() = Some(sender);
        let feed = FakeFeed {
            subscribed: self.subscribed.clone(),
            subscriptions: self.subscriptions.clone(),
        };
        Ok((Arc::new(feed), receiver))
    }
}
