//! Redis comes late, goes, comes back with and without its data, and fails over.

use std::sync::Arc;
use std::time::Duration;

use chatmesh::config::bounds::Bounds;
use chatmesh::fanout::redis::RedisFanout;
use chatmesh::fanout::{
    BeginResponse, Channel, DeliverRequest, Fanout, FanoutError, FeedEvent, LEASE, Owner,
    ReadRequest, TurnStatus,
};
use chatmesh::protocol::ids::{MessageId, UserId};
use chatmesh::protocol::position::{Epoch, Position};
use tokio::sync::watch;
use tokio::time::timeout;

use super::server::{Cluster, Sentinel, ask, free_port, redis};
use super::{RedisBackend, settings};
use crate::fanout_contract::{Case, attempt, kept, next_event, outcome};

const LIMIT: Duration = Duration::from_secs(60);
const COMMAND: Duration = Duration::from_secs(1);

fn connect(url: &str) -> Arc<dyn Fanout> {
    let mut settings = settings(url, Bounds::default());
    settings.command_timeout = COMMAND;
    Arc::new(RedisFanout::connect(&settings).unwrap())
}

fn alice() -> UserId {
    UserId::parse("alice").unwrap()
}

fn epoch() -> Epoch {
    Epoch::new("cluster", "0", 0)
}

fn delivery(offset: i64) -> DeliverRequest {
    DeliverRequest {
        user: alice(),
        message_id: MessageId::random(),
        conversation: None,
        position: Position {
            epoch: epoch(),
            offset,
        },
        known_end: None,
        logged_at_ms: None,
        is_rewind: false,
        frame: format!(r#"{{"type":"response","offset":{offset}}}"#),
        answer: "x".into(),
        status: TurnStatus::Answered,
    }
}

/// What a role does: it waits for its dependency without limit.
async fn until_there(fanout: &dyn Fanout) {
    let there = async {
        while let Err(error) = fanout.check().await {
            assert!(matches!(error, FanoutError::Unavailable(_)), "{error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LIMIT, there).await.expect("redis never came back");
}

async fn deliver(fanout: &dyn Fanout, offset: i64) {
    let call = delivery(offset);
    let delivered = async {
        while let Err(error) = fanout.deliver(call.clone()).await {
            assert!(matches!(error, FanoutError::Unavailable(_)), "{error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LIMIT, delivered).await.expect("never delivered");
}

async fn disrupted(disruptions: &mut watch::Receiver<u64>) {
    timeout(LIMIT, disruptions.changed())
        .await
        .expect("no disruption was noticed")
        .unwrap();
}

async fn end(fanout: &dyn Fanout) -> Position {
    let call = ReadRequest {
        user: alice(),
        after: None,
        from_start: false,
        max_bytes: 1000,
    };
    fanout.read(call).await.unwrap().end
}

/// The frame with this offset, whatever comes before it; true where a gap was among that.
async fn gap_before(events: &mut tokio::sync::mpsc::Receiver<FeedEvent>, offset: i64) -> bool {
    let mut gap = false;
    loop {
        match next_event(events).await {
            FeedEvent::Gap => gap = true,
            FeedEvent::Frame { payload, .. } => {
                let frame: serde_json::Value = serde_json::from_slice(&payload).unwrap();
                if frame["offset"] == offset {
                    return gap;
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_that_is_not_there_yet_fails_calls_in_time_and_is_found_later() {
    let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
    let fanout = connect(&format!("redis://127.0.0.1:{port}"));
    let (feed, mut events) = fanout.open_feed(10).await.unwrap();
    let refused = timeout(COMMAND * 3, fanout.deliver(delivery(0))).await;
    let error = refused.expect("the call hangs").unwrap_err();
    assert!(matches!(error, FanoutError::Unavailable(_)), "{error}");
    assert!(fanout.check().await.is_err());
    let user = alice();
    let subscribing = feed.subscribe(&user, Channel::Terminal);
    assert!(timeout(COMMAND * 3, subscribing).await.unwrap().is_err());

    let _server = redis(port, dir.path(), &[]);
    until_there(&*fanout).await;
    let subscribed = async { while feed.subscribe(&alice(), Channel::Terminal).await.is_err() {} };
    timeout(LIMIT, subscribed).await.unwrap();
    deliver(&*fanout, 5).await;
    gap_before(&mut events, 5).await;
    assert!(!fanout.has_marker(&epoch()).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_without_redis_neither_hang_nor_pile_up() {
    let fanout = connect(&format!("redis://127.0.0.1:{}", free_port()));
    let calls = (0..15_000).map(|_| fanout.deliver(delivery(0)));
    let all = timeout(COMMAND * 10, futures_util::future::join_all(calls)).await;
    for result in all.expect("calls hang") {
        assert!(matches!(result, Err(FanoutError::Unavailable(_))));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_with_the_data_is_a_disruption_and_a_gap() {
    let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
    let durable = ["--appendonly", "yes", "--appendfsync", "always"];
    let server = redis(port, dir.path(), &durable);
    let fanout = connect(&format!("redis://127.0.0.1:{port}"));
    until_there(&*fanout).await;
    let (feed, mut events) = fanout.open_feed(10).await.unwrap();
    feed.subscribe(&alice(), Channel::Terminal).await.unwrap();
    fanout.set_marker(&epoch()).await.unwrap();
    deliver(&*fanout, 1).await;
    assert!(!gap_before(&mut events, 1).await);
    let mut disruptions = fanout.disruptions();
    disruptions.mark_unchanged();

    drop(server);
    let _server = redis(port, dir.path(), &durable);
    disrupted(&mut disruptions).await;
    assert!(matches!(next_event(&mut events).await, FeedEvent::Gap));
    assert!(fanout.has_marker(&epoch()).await.unwrap());
    assert_eq!(end(&*fanout).await.offset, 1);
    // Redis has forgotten the scripts; the subscription is there again.
    deliver(&*fanout, 2).await;
    gap_before(&mut events, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_nobody_could_renew_is_respected_when_redis_is_back() {
    let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
    let durable = ["--appendonly", "yes", "--appendfsync", "always"];
    let server = redis(port, dir.path(), &durable);
    let backend = RedisBackend::at(format!("redis://127.0.0.1:{port}")).await;
    let first = Case::new(&backend).await;
    let process = || Case::of(&backend, Bounds::default(), first.user.clone());
    let second = process().await;
    until_there(&*first.fanout).await;
    until_there(&*second.fanout).await;
    let owner = Owner::random();
    let (message, abandoned) = (first.message(), first.message());
    for message in [&message, &abandoned] {
        assert_eq!(attempt(&first.begin(message, &owner, 0).await), 1);
    }

    drop(server);
    tokio::time::sleep(LEASE).await;
    let _server = redis(port, dir.path(), &durable);
    until_there(&*second.fanout).await;
    let other = Owner::random();
    let begun = second.begin(&message, &other, 0).await;
    assert!(
        matches!(begun, BeginResponse::Busy(left) if left <= LEASE),
        "{begun:?}"
    );
    until_there(&*first.fanout).await;
    kept(first.keep(&message, &owner, 1, "whole").await);
    let known = outcome(second.begin(&message, &other, 0).await);
    assert!(known.frame.contains("whole"), "{known:?}");

    // Who did not see Redis away knows that the lease is over; the others wait for it once.
    let third = process().await;
    until_there(&*third.fanout).await;
    let begun = second.begin(&abandoned, &other, 0).await;
    assert!(matches!(begun, BeginResponse::Busy(_)), "{begun:?}");
    let begun = third.begin(&abandoned, &Owner::random(), 0).await;
    assert_eq!(attempt(&begun), 2);
    tokio::time::sleep(LEASE).await;
    let begun = second.begin_when_free(&abandoned, &other, 0).await;
    assert_eq!(attempt(&begun), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_without_the_data_takes_the_marker_with_it() {
    let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
    let server = redis(port, dir.path(), &[]);
    let fanout = connect(&format!("redis://127.0.0.1:{port}"));
    until_there(&*fanout).await;
    fanout.set_marker(&epoch()).await.unwrap();
    let mut disruptions = fanout.disruptions();
    disruptions.mark_unchanged();
    drop(server);
    let server = redis(port, dir.path(), &[]);
    disrupted(&mut disruptions).await;
    until_there(&*fanout).await;
    assert!(!fanout.has_marker(&epoch()).await.unwrap());

    fanout.set_marker(&epoch()).await.unwrap();
    assert!(fanout.has_marker(&epoch()).await.unwrap());
    ask(server.port, "FLUSHALL").unwrap();
    assert!(!fanout.has_marker(&epoch()).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_is_a_disruption_and_goes_on_at_the_new_master() {
    let mut servers = Sentinel::start();
    let fanout = connect(&servers.url());
    until_there(&*fanout).await;
    let (feed, mut events) = fanout.open_feed(10).await.unwrap();
    feed.subscribe(&alice(), Channel::Terminal).await.unwrap();
    deliver(&*fanout, 1).await;
    gap_before(&mut events, 1).await;
    let mut disruptions = fanout.disruptions();
    disruptions.mark_unchanged();

    servers.master = None;
    disrupted(&mut disruptions).await;
    deliver(&*fanout, 2).await;
    let role = ask(servers.replica.port, "ROLE").unwrap();
    assert!(role.contains("master"), "{role}");
    // The frame may have been published before the feed was back: then the gap says so.
    let mut offset = 3;
    loop {
        deliver(&*fanout, offset).await;
        if timeout(Duration::from_secs(2), gap_before(&mut events, offset))
            .await
            .is_ok()
        {
            break;
        }
        offset += 1;
        assert!(offset < 30, "the feed never came back");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_moves_is_a_disruption_and_its_subscriptions_follow() {
    let cluster = Cluster::start();
    let fanout = connect(&cluster.url());
    until_there(&*fanout).await;
    let (feed, mut events) = fanout.open_feed(10).await.unwrap();
    feed.subscribe(&alice(), Channel::Terminal).await.unwrap();
    fanout.set_marker(&epoch()).await.unwrap();
    assert!(fanout.has_marker(&epoch()).await.unwrap());
    let mut disruptions = fanout.disruptions();
    disruptions.mark_unchanged();

    cluster.move_slot_of("user:alice");
    deliver(&*fanout, 1).await;
    disrupted(&mut disruptions).await;
    // The first frame may be missed, but then there is a gap that says so.
    let gap = async {
        loop {
            if matches!(next_event(&mut events).await, FeedEvent::Gap) {
                break;
            }
        }
    };
    timeout(LIMIT, gap).await.unwrap();
    deliver(&*fanout, 2).await;
    gap_before(&mut events, 2).await;
    assert_eq!(end(&*fanout).await.offset, 2);

    // A marker is missing as soon as one of the masters has lost it.
    ask(cluster.nodes[1].port, "FLUSHALL").unwrap();
    assert!(!fanout.has_marker(&epoch()).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_subscriptions_come_back_before_the_gap_is_told() {
    let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
    let _server = redis(port, dir.path(), &[]);
    let fanout: Arc<dyn Fanout> = {
        let url = format!("redis://127.0.0.1:{port}");
        Arc::new(RedisFanout::connect(&settings(&url, Bounds::default())).unwrap())
    };
    let (feed, mut events) = fanout.open_feed(10_000).await.unwrap();
    let users: Vec<UserId> = (0..4000)
        .map(|number| UserId::parse(&format!("user-{number}")).unwrap())
        .collect();
    let subscribing = users
        .iter()
        .map(|user| feed.subscribe(user, Channel::Terminal));
    futures_util::future::try_join_all(subscribing)
        .await
        .unwrap();

    ask(port, "CLIENT KILL TYPE pubsub").unwrap();
    assert!(matches!(next_event(&mut events).await, FeedEvent::Gap));
    for user in &users {
        let mut call = delivery(0);
        call.user = user.clone();
        fanout.deliver(call).await.unwrap();
    }
    for expected in &users {
        let FeedEvent::Frame { user, .. } = next_event(&mut events).await else {
            panic!("a second gap");
        };
        assert_eq!(user, *expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_lose_data_are_warned_about() {
    let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
    let _server = redis(
        port,
        dir.path(),
        &["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"],
    );
    let fanout = connect(&format!("redis://127.0.0.1:{port}"));
    until_there(&*fanout).await;
    let warnings = fanout.warnings().await.unwrap();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].contains("allkeys-lru"));
    assert!(warnings[1].contains("appendonly"));

    ask(port, "CONFIG SET maxmemory-policy noeviction").unwrap();
    ask(port, "CONFIG SET appendonly yes").unwrap();
    assert!(fanout.warnings().await.unwrap().is_empty());
    ask(port, "ACL SETUSER default -info").unwrap();
    ask(port, "CONFIG SET appendonly no").unwrap();
    assert!(fanout.warnings().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_in_the_url_is_used_and_never_shown() {
    let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
    let _server = redis(port, dir.path(), &[]);
    ask(port, "CONFIG SET requirepass s3cret").unwrap();
    let fanout = connect(&format!("redis://:s3cret@127.0.0.1:{port}"));
    until_there(&*fanout).await;
    deliver(&*fanout, 0).await;
    let unusable = RedisFanout::connect(&settings("nothing://:s3cret@x", Bounds::default()));
    if let Err(error) = unusable {
        assert!(!error.to_string().contains("s3cret"), "{error}");
    }
}
