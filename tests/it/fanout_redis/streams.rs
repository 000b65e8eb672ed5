//! Streams in Redis: expiry of their lists, text that Redis loses or rolls back, and connections
//! that break during an append.

use std::sync::Arc;
use std::time::Duration;

use chatmesh::config::bounds::Bounds;
use chatmesh::fanout::redis::RedisFanout;
use chatmesh::fanout::{Channel, Fanout, FanoutError, FeedEvent, RenewRequest, StreamResponse};
use chatmesh::protocol::ids::UserId;
use chatmesh::protocol::parts::PartKind;
use fred::interfaces::{KeysInterface, ListInterface, LuaInterface};

use super::RedisBackend;
use crate::fanout_contract::{
    Backend, Case, Receiver, StreamWriter, is_confirmed, next_event, piece, received_parts, texts,
};
use crate::settings::redis_settings;
use crate::support::lossy_redis::LossyRedis;
use crate::support::process::free_port;
use crate::support::redis_server::RedisServer;

/// Number of pieces above which a renewal joins them.
const JOINED_PIECES: usize = 256;

impl RedisBackend {
    /// Time to live of a key in milliseconds; negative if it has none.
    async fn time_to_live(&self, key: &str) -> i64 {
        self.admin.pttl(key).await.unwrap()
    }

    /// Saves a copy of all keys of a user.
    async fn save(&self, user: &UserId) {
        let script = "redis.call('DEL', KEYS[1] .. '!') \
                      for _, key in ipairs(redis.call('KEYS', KEYS[1] .. ':*')) do \
                        redis.call('HSET', KEYS[1] .. '!', key, redis.call('DUMP', key)) \
                      end return 1";
        self.run_for(user, script).await;
    }

    /// Rolls all keys of a user back to the saved copy, in one step.
    async fn roll_back(&self, user: &UserId) {
        let script = "for _, key in ipairs(redis.call('KEYS', KEYS[1] .. ':*')) do \
                        redis.call('DEL', key) \
                      end \
                      local copy = redis.call('HGETALL', KEYS[1] .. '!') \
                      for i = 1, #copy, 2 do \
                        redis.call('RESTORE', copy[i], 100000, copy[i + 1]) \
                      end return 1";
        self.run_for(user, script).await;
    }

    async fn run_for(&self, user: &UserId, script: &str) {
        let tag = format!("{{user:{user}}}");
        let done: i64 = self
            .admin
            .eval(script, tag.as_str(), None::<()>)
            .await
            .unwrap();
        assert_eq!(done, 1);
    }
}

/// Name of the list with the pieces of a stream.
fn list_key(writer: &StreamWriter) -> String {
    let message = &writer.message;
    format!(
        "{{user:{}}}:1:s:{}:{}",
        message.user,
        message.message_id,
        writer.stream()
    )
}

async fn open(case: &Case<'_>, writer: &mut StreamWriter, text: &str) {
    let opened = writer.open(&*case.fanout, PartKind::Text, None, text).await;
    assert!(is_confirmed(opened.unwrap()));
}

/// Begins the message again and writes all parts again, as a worker does after a data loss. Asserts
/// that readers see the whole text.
async fn assert_answer_starts_over(case: &Case<'_>, writer: &mut StreamWriter) {
    let parts = writer.parts.clone();
    let earlier = writer.clone();
    writer.begin_again(case).await;
    assert_ne!(writer.stream(), earlier.stream());
    for part in &parts {
        open(case, writer, &part.text).await;
    }
    let late = earlier.append_call(piece(0, 0, "late"));
    assert_eq!(case.fanout.append(late).await.unwrap(), 0);
    let answer = case.answer_in_flight().await;
    assert_eq!((answer.stream, answer.parts), (writer.stream(), parts));
    let renewed = writer.renew(&*case.fanout).await.unwrap();
    assert!(is_confirmed(renewed), "{renewed:?}");
}

async fn list_expires_after_the_first_opening_and_after_a_join(backend: &RedisBackend) {
    let bounds = Bounds {
        pending_ttl: Duration::from_secs(1000),
        ..Bounds::default()
    };
    let case = Case::with_bounds(backend, bounds).await;
    let mut writer = StreamWriter::begin(&case).await;
    let assert_expires = async |writer: &StreamWriter| {
        let time_to_live = backend.time_to_live(&list_key(writer)).await;
        assert!(
            (900_000..=1_100_000).contains(&time_to_live),
            "{time_to_live}"
        );
        for key in backend.key_names(&case.user).await {
            assert!(backend.time_to_live(&key).await > 0, "{key} never expires");
        }
    };
    open(&case, &mut writer, "a").await;
    assert_expires(&writer).await;
    for _ in 0..JOINED_PIECES {
        writer.append(&*case.fanout, "b").await.unwrap();
    }
    let count: usize = backend.admin.llen(list_key(&writer)).await.unwrap();
    assert_eq!(count, JOINED_PIECES + 1);
    let renewed = writer.renew(&*case.fanout).await.unwrap();
    assert_eq!(renewed, StreamResponse::Confirmed(1));
    let count: usize = backend.admin.llen(list_key(&writer)).await.unwrap();
    assert_eq!(count, 1);
    assert_expires(&writer).await;
    writer.begin_again(&case).await;
    open(&case, &mut writer, "a").await;
    assert_expires(&writer).await;
}

async fn hole_is_never_read_across_and_the_renewal_reports_it(backend: &RedisBackend) {
    for is_trimmed in [false, true] {
        let case = Case::new(backend).await;
        let mut writer = StreamWriter::begin(&case).await;
        open(&case, &mut writer, "a").await;
        for text in ["b", "c", "d"] {
            writer.append(&*case.fanout, text).await.unwrap();
        }
        open(&case, &mut writer, "e").await;
        let key = list_key(&writer);
        let visible = if is_trimmed {
            let _: () = backend.admin.ltrim(&key, 1, -1).await.unwrap();
            Vec::new()
        } else {
            let removed: i64 = backend.admin.lrem(&key, 1, "0:2:3:c").await.unwrap();
            assert_eq!(removed, 1);
            vec!["ab"]
        };
        assert_eq!(texts(&case.answer_in_flight().await), visible);
        writer.append(&*case.fanout, "f").await.unwrap();
        assert_eq!(texts(&case.answer_in_flight().await), visible);
        let renewed = writer.renew(&*case.fanout).await.unwrap();
        assert_eq!(renewed, StreamResponse::DataLost);
        // A renewal by which nothing is missed joins only the text before the hole.
        for _ in 0..JOINED_PIECES {
            writer.append(&*case.fanout, "g").await.unwrap();
        }
        let message = &writer.message;
        let known = (visible.len() as u32, 0);
        let renewed = case.renew(message, &writer.owner, 1, known).await;
        assert_eq!(renewed, StreamResponse::Confirmed(visible.len() as u64));
        assert_eq!(texts(&case.answer_in_flight().await), visible);
        assert_answer_starts_over(&case, &mut writer).await;
    }
}

async fn renewal_with_the_expected_count_reads_all_pieces_only_if_they_differ(
    backend: &RedisBackend,
) {
    let case = Case::new(backend).await;
    let mut writer = StreamWriter::begin(&case).await;
    open(&case, &mut writer, "a").await;
    writer.append(&*case.fanout, "b").await.unwrap();
    let repeated = writer.next_append("c");
    case.fanout.append(repeated.clone()).await.unwrap();
    writer.record_append(&repeated);
    writer.append(&*case.fanout, "d").await.unwrap();
    let renew = || {
        case.fanout.renew(RenewRequest {
            pieces: 4,
            ..writer.renewal()
        })
    };
    // The pieces are as expected. They are not joined, which needs all of them to be read.
    assert_eq!(renew().await.unwrap(), StreamResponse::Confirmed(4));

    // One piece is lost, and the late repeat of another one makes their number the expected one.
    let key = list_key(&writer);
    let removed: i64 = backend.admin.lrem(&key, 1, "0:3:4:d").await.unwrap();
    assert_eq!(removed, 1);
    assert_eq!(case.fanout.append(repeated.clone()).await.unwrap(), 4);
    assert_eq!(renew().await.unwrap(), StreamResponse::DataLost);

    // The piece is stored again. A repeat behind it lets the renewal read and join all pieces.
    let lost = writer.append_call(piece(0, 3, "d"));
    case.fanout.append(lost).await.unwrap();
    case.fanout.append(repeated).await.unwrap();
    assert_eq!(renew().await.unwrap(), StreamResponse::Confirmed(1));
    assert_eq!(texts(&case.answer_in_flight().await), ["abcd"]);
}

async fn missing_opening_hides_its_part_and_the_renewal_reports_it(backend: &RedisBackend) {
    let case = Case::new(backend).await;
    let mut writer = StreamWriter::begin(&case).await;
    for text in ["a", "b", "c"] {
        open(&case, &mut writer, text).await;
    }
    let _: i64 = backend
        .admin
        .lrem(list_key(&writer), 1, "+1:1:1:text:0:b")
        .await
        .unwrap();
    writer.append(&*case.fanout, "d").await.unwrap();
    assert_eq!(texts(&case.answer_in_flight().await), ["a"]);
    let renewed = writer.renew(&*case.fanout).await.unwrap();
    assert_eq!(renewed, StreamResponse::DataLost);
    assert_answer_starts_over(&case, &mut writer).await;
}

async fn rollback_to_before_a_part_was_opened_is_reported_by_the_renewal(backend: &RedisBackend) {
    let case = Case::new(backend).await;
    let mut writer = StreamWriter::begin(&case).await;
    open(&case, &mut writer, "a").await;
    backend.save(&case.user).await;
    open(&case, &mut writer, "b").await;
    assert_eq!(writer.append(&*case.fanout, "c").await.unwrap(), 3);
    backend.roll_back(&case.user).await;

    // Fewer pieces than expected. What lies beyond the rollback is not read.
    let pieces = writer.append(&*case.fanout, "d").await.unwrap();
    assert_eq!(pieces, 2);
    assert_eq!(texts(&case.answer_in_flight().await), ["a"]);
    let next = writer.next_opening(PartKind::Text, None, "e");
    let opened = case.fanout.open_part(next).await.unwrap();
    assert_eq!(opened, StreamResponse::DataLost);
    let renewed = writer.renew(&*case.fanout).await.unwrap();
    assert_eq!(renewed, StreamResponse::DataLost);
    assert_answer_starts_over(&case, &mut writer).await;
}

async fn rollback_to_a_shorter_list_is_reported_by_the_renewal(backend: &RedisBackend) {
    let case = Case::new(backend).await;
    let mut writer = StreamWriter::begin(&case).await;
    open(&case, &mut writer, "a").await;
    writer.append(&*case.fanout, "b").await.unwrap();
    backend.save(&case.user).await;
    for text in ["c", "d"] {
        writer.append(&*case.fanout, text).await.unwrap();
    }
    backend.roll_back(&case.user).await;
    assert_eq!(texts(&case.answer_in_flight().await), ["ab"]);
    assert_eq!(writer.append(&*case.fanout, "e").await.unwrap(), 3);
    assert_eq!(texts(&case.answer_in_flight().await), ["ab"]);
    let renewed = writer.renew(&*case.fanout).await.unwrap();
    assert_eq!(renewed, StreamResponse::DataLost);
    assert_answer_starts_over(&case, &mut writer).await;
}

async fn rollback_of_an_unconfirmed_piece_is_mended_by_its_repeat(backend: &RedisBackend) {
    let case = Case::new(backend).await;
    let mut writer = StreamWriter::begin(&case).await;
    open(&case, &mut writer, "a").await;
    backend.save(&case.user).await;
    // The worker did not receive the reply, so it sends the piece again.
    let unconfirmed = writer.next_append("b");
    case.fanout.append(unconfirmed).await.unwrap();
    backend.roll_back(&case.user).await;
    assert_eq!(writer.append(&*case.fanout, "b").await.unwrap(), 2);
    let renewed = writer.renew(&*case.fanout).await.unwrap();
    assert!(is_confirmed(renewed), "{renewed:?}");
    assert_eq!(texts(&case.answer_in_flight().await), ["ab"]);
}

async fn rollback_to_before_the_attempt_starts_a_new_stream(backend: &RedisBackend) {
    for has_earlier_attempt in [false, true] {
        let case = Case::new(backend).await;
        let mut writer;
        if has_earlier_attempt {
            writer = StreamWriter::begin(&case).await;
            open(&case, &mut writer, "old").await;
            backend.save(&case.user).await;
            writer.begin_again(&case).await;
        } else {
            case.admit(&case.message()).await;
            backend.save(&case.user).await;
            writer = StreamWriter::begin(&case).await;
        }
        open(&case, &mut writer, "a").await;
        backend.roll_back(&case.user).await;
        assert_eq!(writer.append(&*case.fanout, "b").await.unwrap(), 0);
        let expected = if has_earlier_attempt {
            StreamResponse::Fenced
        } else {
            StreamResponse::DataLost
        };
        let renewed = writer.renew(&*case.fanout).await.unwrap();
        assert_eq!(renewed, expected);
        assert_answer_starts_over(&case, &mut writer).await;
    }
}

async fn answer_of_an_emptied_redis_starts_over(backend: &RedisBackend) {
    let mut case = Case::new(backend).await;
    let mut writer = StreamWriter::begin(&case).await;
    open(&case, &mut writer, "a").await;
    open(&case, &mut writer, "b").await;
    case.lose_data().await;
    assert_eq!(writer.append(&*case.fanout, "c").await.unwrap(), 0);
    assert!(backend.key_names(&case.user).await.is_empty());
    let renewed = writer.renew(&*case.fanout).await.unwrap();
    assert_eq!(renewed, StreamResponse::DataLost);
    assert!(backend.key_names(&case.user).await.is_empty());
    assert_answer_starts_over(&case, &mut writer).await;
}

/// Under load the appends of many answers are sent in one pipeline.
async fn each_of_many_appends_at_once_gets_its_own_result(backend: &RedisBackend) {
    const ANSWERS: usize = 300;
    let case = Case::new(backend).await;
    let mut writers = Vec::new();
    for _ in 0..ANSWERS {
        let mut writer = StreamWriter::begin(&case).await;
        open(&case, &mut writer, "a").await;
        writers.push(writer);
    }
    let (wrong_type, deleted) = (7, 150);
    for index in [wrong_type, deleted] {
        let _: () = backend.admin.del(list_key(&writers[index])).await.unwrap();
    }
    let key = list_key(&writers[wrong_type]);
    let set = backend
        .admin
        .set::<(), _, _>(key, "no list", None, None, false);
    set.await.unwrap();
    for round in 0..3 {
        let calls = writers.iter_mut().enumerate().map(|(index, writer)| {
            let fanout = Arc::clone(&case.fanout);
            async move { (index, writer.append(&*fanout, "b").await) }
        });
        for (index, result) in futures_util::future::join_all(calls).await {
            match result {
                Err(FanoutError::Unexpected(error)) if index == wrong_type => {
                    assert!(error.starts_with("WRONGTYPE"), "{error}");
                }
                Ok(0) if index == deleted => {}
                Ok(pieces) => assert_eq!(pieces, round + 2, "answer {index}"),
                Err(error) => panic!("answer {index}: {error}"),
            }
        }
    }
}

/// Declares the tests of this file that run on a single Redis and on a cluster.
macro_rules! redis_tests {
    ($($name:ident),* $(,)?) => {
        mod single {
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $name() {
                    super::$name(&super::RedisBackend::new("TEST_REDIS_URL").await).await;
                }
            )*
        }
        mod cluster {
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $name() {
                    super::$name(&super::RedisBackend::new("TEST_REDIS_CLUSTER_URL").await).await;
                }
            )*
        }
    };
}

redis_tests!(
    list_expires_after_the_first_opening_and_after_a_join,
    hole_is_never_read_across_and_the_renewal_reports_it,
    renewal_with_the_expected_count_reads_all_pieces_only_if_they_differ,
    missing_opening_hides_its_part_and_the_renewal_reports_it,
    rollback_to_before_a_part_was_opened_is_reported_by_the_renewal,
    rollback_to_a_shorter_list_is_reported_by_the_renewal,
    rollback_of_an_unconfirmed_piece_is_mended_by_its_repeat,
    rollback_to_before_the_attempt_starts_a_new_stream,
    answer_of_an_emptied_redis_starts_over,
    each_of_many_appends_at_once_gets_its_own_result,
);

/// A private Redis behind a proxy that breaks connections.
struct BrokenConnection {
    _server: RedisServer,
    _dir: tempfile::TempDir,
    backend: RedisBackend,
    proxy: LossyRedis,
    /// The fan-out of the worker, whose connection goes through the proxy.
    fanout: Arc<dyn Fanout>,
}

impl BrokenConnection {
    async fn start() -> Self {
        let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
        let server = RedisServer::start(port, dir.path(), &[]);
        let backend = RedisBackend::with_url(format!("redis://127.0.0.1:{port}")).await;
        let proxy = LossyRedis::start(port).await;
        let url = format!("redis://127.0.0.1:{}", proxy.port());
        let mut settings = redis_settings(&url, Bounds::default());
        settings.command_timeout = Duration::from_secs(1);
        let fanout = Arc::new(RedisFanout::connect(&settings).unwrap());
        Self {
            _server: server,
            _dir: dir,
            backend,
            proxy,
            fanout,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn append_whose_connection_breaks_is_unavailable_and_its_repeat_harmless() {
    let broken = BrokenConnection::start().await;
    let (fanout, proxy) = (&*broken.fanout, &broken.proxy);
    let case = Case::new(&broken.backend).await;
    let (feed, mut events) = case.fanout.open_feed(1000).await.unwrap();
    feed.subscribe(&case.user, Channel::Live).await.unwrap();
    let mut writer = StreamWriter::begin(&case).await;
    let opened = writer
        .open(fanout, PartKind::Text, None, "a")
        .await
        .unwrap();
    assert!(is_confirmed(opened));
    for text in ["b😀", "", "c"] {
        let call = writer.next_append(text);
        proxy.break_connections_at("RPUSHX");
        let error = fanout.append(call.clone()).await.unwrap_err();
        assert!(matches!(error, FanoutError::Unavailable(_)), "{error}");
        assert!(proxy.broken_count() > 0);
        proxy.stop_breaking();
        // The worker sends the same piece until it gets a reply, before any other piece.
        let pieces = loop {
            match fanout.append(call.clone()).await {
                Ok(pieces) => break pieces,
                Err(error) => assert!(matches!(error, FanoutError::Unavailable(_)), "{error}"),
            }
        };
        assert!(
            pieces > 2,
            "expected the piece to be stored twice, got {pieces}"
        );
        writer.record_append(&call);
        assert_eq!(case.answer_in_flight().await.parts, writer.parts);
    }
    let renewed = writer.renew(fanout).await.unwrap();
    assert!(is_confirmed(renewed), "{renewed:?}");

    let mut receiver = Receiver::default();
    while receiver.parts != received_parts(&writer.parts) {
        match next_event(&mut events).await {
            FeedEvent::Frame { payload, .. } => {
                receiver.receive(&serde_json::from_slice(&payload).unwrap());
            }
            FeedEvent::Gap => panic!("expected a frame, got a gap"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn repeats_that_the_client_library_makes_change_no_text() {
    let broken = BrokenConnection::start().await;
    let (fanout, proxy) = (&*broken.fanout, &broken.proxy);
    let case = Case::new(&broken.backend).await;
    let mut writer = StreamWriter::begin(&case).await;
    for (number, command) in ["EVALSHA", "RPUSHX", "PUBLISH"]
        .iter()
        .cycle()
        .take(9)
        .enumerate()
    {
        // The connection breaks once, so the client library sends the call again after a reconnect.
        proxy.break_next_connection_at(command);
        let text = format!("{number} 😀");
        if *command == "EVALSHA" {
            let call = writer.next_opening(PartKind::Text, Some("{}"), &text);
            while fanout.open_part(call.clone()).await.is_err() {}
            writer.record_opening(&call);
        } else {
            let call = writer.next_append(&text);
            while fanout.append(call.clone()).await.is_err() {}
            writer.record_append(&call);
        }
        assert_eq!(case.answer_in_flight().await.parts, writer.parts);
    }
    assert!(proxy.broken_count() >= 9, "{}", proxy.broken_count());
    let renewed = writer.renew(fanout).await.unwrap();
    assert!(is_confirmed(renewed), "{renewed:?}");
}
