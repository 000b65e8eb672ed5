//! Tests of the catch-up of connections to a fan-out whose user view the test sets.

use std::sync::Mutex;

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::Value;
use tokio::sync::mpsc;

use super::*;
use crate::fanout::{
    Admission, Admissions, Channel, ConversationEntry, DeliveredOutcome, Feed, FeedEvent, Feeds,
    History, MessageRef, Reads, Result as FanoutResult, Tokens, Turn,
};
use crate::gateway::bench::ConfirmingFeed;
use crate::gateway::client::Client;
use crate::gateway::v1::sim::{gateway, user};
use crate::gateway::{delivery, mailbox_sync};
use crate::protocol::ids::{ConversationId, MessageId, StreamId, UserId};
use crate::protocol::open_message::{CancelResult, InFlightPart};
use crate::protocol::parts::{TextRange, utf16_len};
use crate::protocol::position::Epoch;
use crate::protocol::sequence_number::SequenceNumber;
use crate::protocol::v1::{DeltaTarget, delta_frame};

/// A fan-out that returns the user view that a test has set, and has nothing else.
struct TestFanout {
    view: Mutex<UserView>,
    /// When each read was made.
    reads: Mutex<Vec<Instant>>,
}

fn unavailable<T>() -> FanoutResult<T> {
    Err(FanoutError::Unavailable("not part of the test".into()))
}

#[async_trait]
impl Reads for TestFanout {
    async fn read(&self, _: ReadRequest) -> FanoutResult<UserView> {
        self.reads.lock().unwrap().push(Instant::now());
        Ok(self.view.lock().unwrap().clone())
    }

    async fn delivered_outcomes(
        &self,
        _: &UserId,
        _: &[MessageId],
    ) -> FanoutResult<Vec<DeliveredOutcome>> {
        Ok(Vec::new())
    }
}

#[async_trait]
impl Admissions for TestFanout {
    async fn admit(&self, _: &MessageRef, _: &str) -> FanoutResult<Admission> {
        unavailable()
    }

    async fn accept(&self, _: &MessageRef, _: String) -> FanoutResult<()> {
        unavailable()
    }

    async fn cancel(&self, _: &UserId, _: &MessageId) -> FanoutResult<CancelResult> {
        unavailable()
    }

    async fn clear_pending(&self, _: &UserId, _: &MessageId) -> FanoutResult<()> {
        unavailable()
    }
}

#[async_trait]
impl History for TestFanout {
    async fn conversations(
        &self,
        _: &UserId,
        _: Option<&ConversationId>,
        _: usize,
    ) -> FanoutResult<Vec<ConversationEntry>> {
        unavailable()
    }

    async fn history(
        &self,
        _: &UserId,
        _: &ConversationId,
        _: Option<&MessageId>,
        _: usize,
    ) -> FanoutResult<Option<Vec<Turn>>> {
        unavailable()
    }

    async fn forget(&self, _: &UserId, _: Option<&ConversationId>) -> FanoutResult<bool> {
        unavailable()
    }
}

#[async_trait]
impl Tokens for TestFanout {
    async fn stored_token(&self, _: &UserId) -> FanoutResult<Option<(String, u64)>> {
        unavailable()
    }

    async fn issue_token(&self, _: &UserId, _: &str, _: Duration) -> FanoutResult<(String, u64)> {
        unavailable()
    }

    async fn revoke(&self, _: &UserId) -> FanoutResult<()> {
        unavailable()
    }

    async fn revoked_at(&self, _: &UserId) -> FanoutResult<Option<i64>> {
        unavailable()
    }
}

#[async_trait]
impl Feeds for TestFanout {
    async fn open_feed(
        &self,
        _: usize,
    ) -> FanoutResult<(Arc<dyn Feed>, mpsc::Receiver<FeedEvent>)> {
        unavailable()
    }
}

/// A gateway with connections of one user, whose catch-ups run.
struct TestGateway {
    gateway: Arc<Gateway>,
    fanout: Arc<TestFanout>,
    clients: Vec<Arc<V1State>>,
}

impl TestGateway {
    /// Adds new connections, and waits until they are live.
    async fn new(connections: usize, view: UserView) -> Self {
        let fanout = Arc::new(TestFanout {
            view: Mutex::new(view),
            reads: Mutex::default(),
        });
        let gateway = gateway(fanout.clone());
        gateway.registry.set_feed(Arc::new(ConfirmingFeed));
        let mut clients = Vec::new();
        for _ in 0..connections {
            let client = Arc::new(V1State::new(1 << 20));
            let handle = Client::V1(client.clone());
            let since = Some(position(0));
            let user = user();
            let joined = gateway.registry.join(&user, &handle, since.as_ref());
            let sessions = joined.await.unwrap();
            tokio::spawn({
                let (gateway, client) = (gateway.clone(), client.clone());
                async move { run(&gateway, &sessions, &client, since).await }
            });
            clients.push(client);
        }
        sleep(Duration::from_millis(10)).await;
        Self {
            gateway,
            fanout,
            clients,
        }
    }

    fn set_view(&self, view: UserView) {
        *self.fanout.view.lock().unwrap() = view;
    }

    /// When each read was made, in milliseconds since the first of them.
    fn reads(&self) -> Vec<u128> {
        let reads = self.fanout.reads.lock().unwrap();
        let since_first = |read: &Instant| read.duration_since(reads[0]).as_millis();
        reads.iter().map(since_first).collect()
    }

    fn publish(&self, frame: String) {
        let sessions = self.gateway.registry.get(&user()).unwrap();
        let payload = Bytes::from(frame);
        delivery::deliver_published(&self.gateway.metrics, &sessions, Channel::Live, &payload);
    }

    /// Removes and returns the frames that were queued for a connection, without the fields that
    /// are the same in all of them.
    fn received(&self, client: usize) -> Vec<String> {
        let outbound = &self.clients[client].outbound;
        let frames = outbound.queued();
        outbound.discard();
        frames.iter().map(|frame| short(frame)).collect()
    }
}

/// The fields of a frame that differ between the frames of one test.
fn short(frame: &str) -> String {
    let mut frame: Value = serde_json::from_str(frame).unwrap();
    let fields = frame.as_object_mut().unwrap();
    let kind = fields.remove("type").unwrap();
    let kind = kind.as_str().unwrap();
    if kind == "welcome" {
        return format!("welcome {}", fields["recovered"]);
    }
    let names = [
        "stream",
        "part",
        "offset",
        "end",
        "kind",
        "meta",
        "previous_end",
        "parts",
        "content",
    ];
    let fields = names.iter().filter_map(|name| fields.get(*name));
    let fields: Vec<_> = fields.map(ToString::to_string).collect();
    format!("{kind} {}", fields.join(" ")).replace('"', "")
}

fn position(offset: i64) -> Position {
    Position {
        epoch: Epoch::new("c", "0", 0),
        offset,
    }
}

fn stream(stream: &str) -> StreamId {
    StreamId::parse(stream).unwrap()
}

/// A user view with the number `n` in which message `m` is in flight with these parts.
fn view(n: u64, stream_id: &str, parts: &[(&str, &str)]) -> UserView {
    let part = |(kind, text): &(&str, &str)| InFlightPart {
        kind: (*kind).into(),
        meta: (*kind == "tool_call").then(|| r#"{"name":"f"}"#.into()),
        length: utf16_len(text),
        text: (*text).into(),
    };
    let answer = InFlightAnswer {
        message_id: MessageId::parse("m").unwrap(),
        id: None,
        conversation: ConversationId::default_conversation(),
        attempt: 1,
        stream: stream(stream_id),
        parts: parts.iter().map(part).collect(),
    };
    UserView {
        in_flight: vec![answer],
        ..empty_view(n)
    }
}

fn empty_view(n: u64) -> UserView {
    UserView {
        number: SequenceNumber::new("a", n),
        end: position(0),
        recovered: true,
        frames: Vec::new(),
        has_more: false,
        rebuilt_up_to: None,
        in_flight: Vec::new(),
        pending: Vec::new(),
    }
}

/// A published delta of message `m` that is no opening.
fn delta(stream_id: &str, part: u32, offset: u32, content: &str) -> String {
    let target = DeltaTarget {
        message_id: &MessageId::parse("m").unwrap(),
        id: None,
        conversation: &ConversationId::default_conversation(),
        stream: &stream(stream_id),
        attempt: 1,
    };
    let end = offset + utf16_len(content);
    delta_frame(target, TextRange { part, offset, end }, None, content)
}

/// A published opening of the first part of another message than `m`.
fn other_opening(n: u64) -> String {
    format!(
        r#"{{"type":"delta","message_id":"other","stream":"o.1","part":0,"offset":0,"end":2,"kind":"text","attempt":1,"conversation_id":"default","content":"Hi","n":{n},"n_id":"a"}}"#
    )
}

#[tokio::test(start_paused = true)]
async fn connection_that_fell_behind_receives_exactly_the_missing_code_units() {
    let first = [("reasoning", "h𝄞")];
    let gateway = TestGateway::new(1, view(1, "s.1", &first)).await;
    assert_eq!(
        gateway.received(0),
        ["welcome true", "snapshot s.1 [{content:h𝄞,kind:reasoning}]"]
    );
    // A delta was lost: the text that follows it is not sent.
    let second = [
        ("reasoning", "h𝄞𝄞e\u{301}"),
        ("tool_call", ""),
        ("text", "x𝄞"),
    ];
    gateway.set_view(view(1, "s.1", &second));
    gateway.publish(delta("s.1", 0, 5, "e\u{301}"));
    sleep(Duration::from_millis(10)).await;
    assert_eq!(
        gateway.received(0),
        [
            "delta s.1 0 3 7 𝄞e\u{301}",
            "delta s.1 1 0 0 tool_call {name:f} 7 ",
            "delta s.1 2 0 3 text 0 x𝄞",
        ]
    );
    gateway.publish(delta("s.1", 2, 3, "y"));
    assert_eq!(gateway.received(0), ["delta s.1 2 3 4 y"]);
    // A frame with a number was lost, and no text.
    let third = [second[0], second[1], ("text", "x𝄞y")];
    gateway.set_view(view(3, "s.1", &third));
    gateway.publish(other_opening(3));
    sleep(Duration::from_millis(10)).await;
    assert_eq!(gateway.received(0), [""; 0]);
    // `restarted` was lost.
    gateway.set_view(view(5, "t.2", &[("text", "z")]));
    gateway.publish(other_opening(5));
    sleep(Duration::from_millis(10)).await;
    assert_eq!(
        gateway.received(0),
        ["snapshot t.2 [{content:z,kind:text}]"]
    );
    // The terminal frame was lost. It comes from the mailbox, and nothing else.
    gateway.set_view(empty_view(7));
    gateway.publish(other_opening(7));
    sleep(Duration::from_millis(10)).await;
    assert_eq!(gateway.received(0), [""; 0]);
    assert_eq!(gateway.reads().len(), 5);
}

#[tokio::test(start_paused = true)]
async fn client_that_must_reload_its_history_receives_snapshots() {
    let gateway = TestGateway::new(1, view(1, "s.1", &[("text", "a")])).await;
    gateway.received(0);
    gateway.set_view(UserView {
        recovered: false,
        ..view(1, "s.1", &[("text", "abc")])
    });
    gateway.publish(delta("s.1", 0, 2, "c"));
    sleep(Duration::from_millis(10)).await;
    assert_eq!(
        gateway.received(0),
        ["welcome false", "snapshot s.1 [{content:abc,kind:text}]"]
    );
}

#[tokio::test(start_paused = true)]
async fn stale_deltas_cause_at_most_one_read_a_second_for_all_connections() {
    for (streams, expected) in [(1, vec![0]), (100, vec![0, 1000, 2000, 3000])] {
        let gateway = TestGateway::new(3, empty_view(0)).await;
        for client in 0..3 {
            gateway.received(client);
        }
        gateway.fanout.reads.lock().unwrap().clear();
        for index in 0..100 {
            let stream = format!("s.{}", index % streams);
            gateway.publish(delta(&stream, 0, index, "x"));
            sleep(Duration::from_millis(25)).await;
        }
        sleep(Duration::from_secs(10)).await;
        assert_eq!(gateway.reads(), expected, "{streams} streams");
        for client in 0..3 {
            assert_eq!(gateway.received(client), [""; 0]);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn connection_that_waits_for_a_stream_read_receives_other_frames() {
    let gateway = TestGateway::new(1, empty_view(0)).await;
    gateway.received(0);
    gateway.fanout.reads.lock().unwrap().clear();
    gateway.publish(delta("x.1", 0, 7, "late"));
    sleep(Duration::from_millis(300)).await;
    gateway.set_view(view(0, "s.1", &[("text", "abc")]));
    gateway.publish(delta("s.1", 0, 2, "c"));
    gateway.publish(other_opening(1));
    sleep(Duration::from_millis(300)).await;
    assert_eq!(gateway.received(0), ["delta o.1 0 0 2 text Hi"]);
    gateway.set_view(view(1, "s.1", &[("text", "abc")]));
    sleep(Duration::from_secs(5)).await;
    assert_eq!(gateway.reads(), [0, 1000]);
    assert_eq!(
        gateway.received(0),
        ["snapshot s.1 [{content:abc,kind:text}]"]
    );
}

#[tokio::test(start_paused = true)]
async fn lost_last_delta_is_sent_after_the_check_of_open_messages() {
    let gateway = TestGateway::new(1, view(1, "s.1", &[("text", "ab")])).await;
    gateway.received(0);
    tokio::spawn(mailbox_sync::run(gateway.gateway.clone()));
    sleep(Duration::from_secs(6)).await;
    assert_eq!(gateway.received(0), [""; 0]);
    gateway.set_view(view(1, "s.1", &[("text", "abc")]));
    sleep(Duration::from_secs(6)).await;
    assert_eq!(gateway.received(0), ["delta s.1 0 2 3 c"]);
    // A delta that arrives shortly after the check's read is not lost.
    gateway.publish(delta("s.1", 0, 3, "d"));
    gateway.received(0);
    let reads = gateway.reads().len();
    gateway.set_view(view(1, "s.1", &[("text", "abcde")]));
    while gateway.reads().len() == reads {
        sleep(Duration::from_millis(20)).await;
    }
    gateway.publish(delta("s.1", 0, 4, "e"));
    sleep(Duration::from_secs(1)).await;
    assert_eq!(gateway.received(0), ["delta s.1 0 4 5 e"]);
    assert_eq!(gateway.reads().len(), reads + 1);
}
