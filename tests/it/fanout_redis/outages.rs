//! Outages of Redis: a late start, restarts with and without the data, failover.

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

use super::RedisBackend;
use super::clusters::{Cluster, Sentinel};
use crate::fanout_contract::{Case, attempt_number, ended_outcome, next_event, stored_outcome};
use crate::settings::redis_settings;
use crate::support::process::free_port;
use crate::support::redis_server::{RedisServer, send_command};

const TIMEOUT: Duration = Duration::from_secs(60);
const COMMAND_TIMEOUT: Duration = Duration::from_secs(1);

fn connect(url: &str) -> Arc<dyn Fanout> {
    let mut settings = redis_settings(url, Bounds::default());
    settings.command_timeout = COMMAND_TIMEOUT;
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
        parts: None,
        status: TurnStatus::Answered,
    }
}

/// Waits until Redis answers, as a role waits for its dependency.
async fn wait_until_available(fanout: &dyn Fanout) {
    let check = async {
        while let Err(error) = fanout.check().await {
            assert!(matches!(error, FanoutError::Unavailable(_)), "{error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(TIMEOUT, check)
        .await
        .expect("Redis becomes available in time");
}

/// Delivers a frame, and repeats the call while Redis is unavailable.
async fn deliver(fanout: &dyn Fanout, offset: i64) {
    let request = delivery(offset);
    let delivering = async {
        while let Err(error) = fanout.deliver(request.clone()).await {
            assert!(matches!(error, FanoutError::Unavailable(_)), "{error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(TIMEOUT, delivering)
        .await
        .expect("the frame is delivered in time");
}

async fn wait_for_disruption(disruptions: &mut watch::Receiver<u64>) {
    timeout(TIMEOUT, disruptions.changed())
        .await
        .expect("a disruption is observed in time")
        .unwrap();
}

async fn mailbox_end(fanout: &dyn Fanout) -> Position {
    let request = ReadRequest {
        user: alice(),
        after: None,
        from_start: false,
        max_bytes: 1000,
    };
    fanout.read(request).await.unwrap().end
}

/// Receives events up to the frame with this offset. Returns whether a gap was among them.
async fn receive_frame(events: &mut tokio::sync::mpsc::Receiver<FeedEvent>, offset: i64) -> bool {
    let mut has_gap = false;
    loop {
        match next_event(events).await {
            FeedEvent::Gap => has_gap = true,
            FeedEvent::Frame { payload, .. } => {
                let frame: serde_json::Value = serde_json::from_slice(&payload).unwrap();
                if frame["offset"] == offset {
                    return has_gap;
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_fail_in_time_until_redis_is_started() {
    let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
    let fanout = connect(&format!("redis://127.0.0.1:{port}"));
    let (feed, mut events) = fanout.open_feed(10).await.unwrap();
    let refused = timeout(COMMAND_TIMEOUT * 3, fanout.deliver(delivery(0))).await;
    let error = refused.expect("the call fails in time").unwrap_err();
    assert!(matches!(error, FanoutError::Unavailable(_)), "{error}");
    assert!(fanout.check().await.is_err());
    let user = alice();
    let subscription = feed.subscribe(&user, Channel::Terminal);
    assert!(
        timeout(COMMAND_TIMEOUT * 3, subscription)
            .await
            .unwrap()
            .is_err()
    );

    let _server = RedisServer::start(port, dir.path(), &[]);
    wait_until_available(&*fanout).await;
    let subscribing = async { while feed.subscribe(&alice(), Channel::Terminal).await.is_err() {} };
    timeout(TIMEOUT, subscribing).await.unwrap();
    deliver(&*fanout, 5).await;
    receive_frame(&mut events, 5).await;
    assert!(!fanout.has_marker(&epoch()).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_without_redis_neither_hang_nor_accumulate() {
    let fanout = connect(&format!("redis://127.0.0.1:{}", free_port()));
    let calls = (0..15_000).map(|_| fanout.deliver(delivery(0)));
    let results = timeout(COMMAND_TIMEOUT * 10, futures_util::future::join_all(calls)).await;
    for result in results.expect("all calls fail in time") {
        assert!(matches!(result, Err(FanoutError::Unavailable(_))));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn restart_with_data_causes_a_disruption_and_a_gap() {
    let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
    let durable_options = ["--appendonly", "yes", "--appendfsync", "always"];
    let server = RedisServer::start(port, dir.path(), &durable_options);
    let fanout = connect(&format!("redis://127.0.0.1:{port}"));
    wait_until_available(&*fanout).await;
    let (feed, mut events) = fanout.open_feed(10).await.unwrap();
    feed.subscribe(&alice(), Channel::Terminal).await.unwrap();
    fanout.set_marker(&epoch()).await.unwrap();
    deliver(&*fanout, 1).await;
    assert!(!receive_frame(&mut events, 1).await);
    let mut disruptions = fanout.disruptions();
    disruptions.mark_unchanged();

    drop(server);
    let _server = RedisServer::start(port, dir.path(), &durable_options);
    wait_for_disruption(&mut disruptions).await;
    assert!(matches!(next_event(&mut events).await, FeedEvent::Gap));
    assert!(fanout.has_marker(&epoch()).await.unwrap());
    assert_eq!(mailbox_end(&*fanout).await.offset, 1);
    // The restarted Redis does not know the scripts, and the feed has renewed its subscription.
    deliver(&*fanout, 2).await;
    receive_frame(&mut events, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lease_that_could_not_be_renewed_is_respected_after_recovery() {
    let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
    let durable_options = ["--appendonly", "yes", "--appendfsync", "always"];
    let server = RedisServer::start(port, dir.path(), &durable_options);
    let backend = RedisBackend::with_url(format!("redis://127.0.0.1:{port}")).await;
    let first = Case::new(&backend).await;
    let open_process = || Case::for_user(&backend, Bounds::default(), first.user.clone());
    let second = open_process().await;
    wait_until_available(&*first.fanout).await;
    wait_until_available(&*second.fanout).await;
    let owner = Owner::random();
    let (message, abandoned) = (first.message(), first.message());
    for message in [&message, &abandoned] {
        assert_eq!(attempt_number(&first.begin(message, &owner, 0).await), 1);
    }

    drop(server);
    tokio::time::sleep(LEASE).await;
    let _server = RedisServer::start(port, dir.path(), &durable_options);
    wait_until_available(&*second.fanout).await;
    let other_owner = Owner::random();
    let response = second.begin(&message, &other_owner, 0).await;
    assert!(
        matches!(response, BeginResponse::Busy(remaining) if remaining <= LEASE),
        "{response:?}"
    );
    wait_until_available(&*first.fanout).await;
    stored_outcome(first.keep(&message, &owner, 1, "whole").await);
    let stored = ended_outcome(second.begin(&message, &other_owner, 0).await);
    assert!(stored.frame.contains("whole"), "{stored:?}");

    // A process that did not observe the outage regards the lease as expired. The others regard it
    // as valid for one more lease.
    let third = open_process().await;
    wait_until_available(&*third.fanout).await;
    let response = second.begin(&abandoned, &other_owner, 0).await;
    assert!(matches!(response, BeginResponse::Busy(_)), "{response:?}");
    let response = third.begin(&abandoned, &Owner::random(), 0).await;
    assert_eq!(attempt_number(&response), 2);
    tokio::time::sleep(LEASE).await;
    let response = second.begin_when_free(&abandoned, &other_owner, 0).await;
    assert_eq!(attempt_number(&response), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn restart_without_data_loses_the_marker() {
    let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
    let server = RedisServer::start(port, dir.path(), &[]);
    let fanout = connect(&format!("redis://127.0.0.1:{port}"));
    wait_until_available(&*fanout).await;
    fanout.set_marker(&epoch()).await.unwrap();
    let mut disruptions = fanout.disruptions();
    disruptions.mark_unchanged();
    drop(server);
    let server = RedisServer::start(port, dir.path(), &[]);
    wait_for_disruption(&mut disruptions).await;
    wait_until_available(&*fanout).await;
    assert!(!fanout.has_marker(&epoch()).await.unwrap());

    fanout.set_marker(&epoch()).await.unwrap();
    assert!(fanout.has_marker(&epoch()).await.unwrap());
    send_command(server.port, "FLUSHALL").unwrap();
    assert!(!fanout.has_marker(&epoch()).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn failover_causes_a_disruption_and_continues_at_the_new_master() {
    let mut servers = Sentinel::start();
    let fanout = connect(&servers.url());
    wait_until_available(&*fanout).await;
    let (feed, mut events) = fanout.open_feed(10).await.unwrap();
    feed.subscribe(&alice(), Channel::Terminal).await.unwrap();
    deliver(&*fanout, 1).await;
    receive_frame(&mut events, 1).await;
    let mut disruptions = fanout.disruptions();
    disruptions.mark_unchanged();

    servers.master = None;
    wait_for_disruption(&mut disruptions).await;
    deliver(&*fanout, 2).await;
    let role = send_command(servers.replica.port, "ROLE").unwrap();
    assert!(role.contains("master"), "{role}");
    // The frame may have been published before the feed renewed its subscription, which the gap
    // reports.
    let mut offset = 3;
    loop {
        deliver(&*fanout, offset).await;
        if timeout(Duration::from_secs(2), receive_frame(&mut events, offset))
            .await
            .is_ok()
        {
            break;
        }
        offset += 1;
        assert!(offset < 30, "expected the feed to recover");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn moved_slot_causes_a_disruption_and_its_subscriptions_follow() {
    let cluster = Cluster::start();
    let fanout = connect(&cluster.url());
    wait_until_available(&*fanout).await;
    let (feed, mut events) = fanout.open_feed(10).await.unwrap();
    feed.subscribe(&alice(), Channel::Terminal).await.unwrap();
    fanout.set_marker(&epoch()).await.unwrap();
    assert!(fanout.has_marker(&epoch()).await.unwrap());
    let mut disruptions = fanout.disruptions();
    disruptions.mark_unchanged();

    cluster.move_slot_of("user:alice");
    deliver(&*fanout, 1).await;
    wait_for_disruption(&mut disruptions).await;
    // The first frame may be missed, which the gap reports.
    let gap = async {
        loop {
            if matches!(next_event(&mut events).await, FeedEvent::Gap) {
                break;
            }
        }
    };
    timeout(TIMEOUT, gap).await.unwrap();
    deliver(&*fanout, 2).await;
    receive_frame(&mut events, 2).await;
    assert_eq!(mailbox_end(&*fanout).await.offset, 2);

    // A marker is missing as soon as one of the masters has lost it.
    send_command(cluster.nodes[1].port, "FLUSHALL").unwrap();
    assert!(!fanout.has_marker(&epoch()).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn all_subscriptions_are_renewed_before_the_gap() {
    let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
    let _server = RedisServer::start(port, dir.path(), &[]);
    let fanout: Arc<dyn Fanout> = {
        let url = format!("redis://127.0.0.1:{port}");
        Arc::new(RedisFanout::connect(&redis_settings(&url, Bounds::default())).unwrap())
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

    send_command(port, "CLIENT KILL TYPE pubsub").unwrap();
    assert!(matches!(next_event(&mut events).await, FeedEvent::Gap));
    for user in &users {
        let mut request = delivery(0);
        request.user = user.clone();
        fanout.deliver(request).await.unwrap();
    }
    for expected in &users {
        let FeedEvent::Frame { user, .. } = next_event(&mut events).await else {
            panic!("expected a frame, got a second gap");
        };
        assert_eq!(user, *expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_lose_data_cause_warnings() {
    let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
    let _server = RedisServer::start(
        port,
        dir.path(),
        &["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"],
    );
    let fanout = connect(&format!("redis://127.0.0.1:{port}"));
    wait_until_available(&*fanout).await;
    let warnings = fanout.warnings().await.unwrap();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].contains("allkeys-lru"));
    assert!(warnings[1].contains("appendonly"));

    send_command(port, "CONFIG SET maxmemory-policy noeviction").unwrap();
    send_command(port, "CONFIG SET appendonly yes").unwrap();
    assert!(fanout.warnings().await.unwrap().is_empty());
    send_command(port, "ACL SETUSER default -info").unwrap();
    send_command(port, "CONFIG SET appendonly no").unwrap();
    assert!(fanout.warnings().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn password_in_the_url_is_used_and_never_shown() {
    let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
    let _server = RedisServer::start(port, dir.path(), &[]);
    send_command(port, "CONFIG SET requirepass s3cret").unwrap();
    let fanout = connect(&format!("redis://:s3cret@127.0.0.1:{port}"));
    wait_until_available(&*fanout).await;
    deliver(&*fanout, 0).await;
    let result = RedisFanout::connect(&redis_settings("nothing://:s3cret@x", Bounds::default()));
    if let Err(error) = result {
        assert!(!error.to_string().contains("s3cret"), "{error}");
    }
}
