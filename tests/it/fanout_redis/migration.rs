//! Slots of a Redis cluster that migrate to another server while calls about their users are made.

use std::sync::Arc;
use std::time::Duration;

use chatmesh::config::bounds::Bounds;
use chatmesh::fanout::redis::RedisFanout;
use chatmesh::fanout::{Fanout, Owner};
use chatmesh::protocol::ids::UserId;
use fred::types::cluster::ClusterRouting;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::RedisBackend;
use super::clusters::{Cluster, Monitor, SlotMigration};
use super::load::{Load, TIMEOUT};
use crate::fanout_contract::Case;
use crate::settings::redis_settings;
use crate::support::redis_server::send_command;

/// Number of messages that are delivered before the first migration. Each of them has keys.
const DELIVERED_BEFORE: usize = 30;
/// Number of messages of the migrating user that are answered at the same time.
const CONCURRENT_MESSAGES: usize = 4;
/// How often the slot migrates to the other server.
const MIGRATIONS: usize = 3;
/// Delay between two steps of a migration.
const STEP_DELAY: Duration = Duration::from_millis(15);

fn slot_of(user: &UserId) -> u16 {
    ClusterRouting::hash_key(format!("user:{user}").as_bytes())
}

/// A user whose slot is another one, and at first on this node.
fn user_on(node: usize, other_than: u16) -> UserId {
    (0..1000)
        .map(|number| UserId::parse(&format!("user-{number}")).unwrap())
        .find(|user| {
            let slot = slot_of(user);
            Cluster::first_owner(slot) == node && slot != other_than
        })
        .unwrap()
}

fn connect(cluster: &Cluster) -> Arc<dyn Fanout> {
    let settings = redis_settings(&cluster.url(), Bounds::default());
    Arc::new(RedisFanout::connect(&settings).unwrap())
}

/// Panics with the message of a task that has panicked.
fn assert_no_task_failed(tasks: &mut JoinSet<()>) {
    while let Some(result) = tasks.try_join_next() {
        result.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn slot_migrates_under_load_without_a_second_outcome_or_a_mixed_up_reply() {
    let cluster = Cluster::start();
    let fanout = connect(&cluster);
    let migrating = Load::new(&fanout, UserId::parse("alice").unwrap());
    let slot = slot_of(&migrating.user);
    let bystanders = [0, 1].map(|node| Load::new(&fanout, user_on(node, slot)));
    migrating.prepare(DELIVERED_BEFORE).await;
    let mut tasks = JoinSet::new();
    migrating.start(&mut tasks, CONCURRENT_MESSAGES);
    for bystander in &bystanders {
        bystander.prepare(1).await;
        bystander.start(&mut tasks, 1);
    }

    let first_owner = Cluster::first_owner(slot);
    for round in 0..MIGRATIONS {
        migrating.wait_for_progress().await;
        let source = (first_owner + round) % 2;
        let migration = SlotMigration::start(&cluster, slot, source);
        let failures_before = migrating.failure_count();
        while migration.move_keys(3) {
            assert_no_task_failed(&mut tasks);
            sleep(STEP_DELAY).await;
        }
        let failures = migrating.failure_count() - failures_before;
        assert!(
            failures > 100,
            "expected calls during the migration, got {failures}"
        );
        for bystander in &bystanders {
            bystander.wait_for_progress().await;
        }
        migration.complete();
        for load in bystanders.iter().chain([&migrating]) {
            load.wait_for_progress().await;
        }
        assert_no_task_failed(&mut tasks);
    }
    for load in bystanders.iter().chain([&migrating]) {
        load.stop();
    }
    let stopping = async {
        while let Some(result) = tasks.join_next().await {
            result.unwrap();
        }
    };
    timeout(TIMEOUT, stopping)
        .await
        .expect("all calls end in time");
    for load in bystanders.iter().chain([&migrating]) {
        load.assert_complete().await;
    }
    // Only the calls about the user of the migrating slot failed.
    for bystander in &bystanders {
        assert_eq!(bystander.failure_count(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn call_after_a_migration_reaches_the_new_server() {
    let cluster = Cluster::start();
    let fanout = connect(&cluster);
    let load = Load::new(&fanout, UserId::parse("alice").unwrap());
    load.prepare(1).await;
    let slot = slot_of(&load.user);
    let first_owner = Cluster::first_owner(slot);
    for source in [first_owner, 1 - first_owner] {
        let migration = SlotMigration::start(&cluster, slot, source);
        while migration.move_keys(10) {}
        migration.complete();
        load.assert_complete().await;
    }
    let failures = load.failure_count();
    assert_eq!(failures, 0, "expected calls to follow the slot");
}

/// Makes each call about a user that runs a script on the user's keys.
async fn make_every_call(case: &Case<'_>) {
    let fanout = &*case.fanout;
    let (message, owner) = (case.message(), Owner::random());
    case.admit(&message).await;
    let accepted = r#"{"type":"accepted"}"#.to_owned();
    fanout.accept(&message, accepted).await.unwrap();
    case.begin(&message, &owner, 0).await;
    case.open_text(&message, &owner, 1, "a").await;
    case.renew(&message, &owner, 1, (1, 1)).await;
    case.keep(&message, &owner, 1, "a").await;
    case.deliver(&message, 0, "a").await;
    case.read(None).await;
    case.context(&message.conversation).await;
    let (user, id) = (&case.user, &message.message_id);
    fanout.cancel(user, id).await.unwrap();
    fanout.clear_pending(user, id).await.unwrap();
    let messages = std::slice::from_ref(id);
    fanout.delivered_outcomes(user, messages).await.unwrap();
    fanout.conversations(user, None, 9).await.unwrap();
    let history = fanout.history(user, &message.conversation, None, 9);
    history.await.unwrap();
    fanout.revoke(user).await.unwrap();
    fanout.revoked_at(user).await.unwrap();
    fanout.forget(user, None).await.unwrap();
}

/// Number of scripts that [`make_every_call`] runs on the user's keys.
const SCRIPTS: usize = 17;

#[tokio::test(flavor = "multi_thread")]
async fn script_that_follows_a_migrating_slot_is_refused_by_both_servers() {
    let cluster = Cluster::start();
    let backend = RedisBackend::with_url(cluster.url()).await;
    let user = UserId::parse("alice").unwrap();
    let case = Case::for_user(&backend, Bounds::default(), user).await;
    case.read(None).await;
    let slot = slot_of(&case.user);
    let source = Cluster::first_owner(slot);
    // The servers do not know the scripts yet, so the source of each is sent.
    let monitor = Monitor::start(cluster.nodes[source].port);
    for node in &cluster.nodes {
        send_command(node.port, "SCRIPT FLUSH").unwrap();
    }
    make_every_call(&case).await;
    case.answer(&case.message(), "text").await;
    let tag = format!("\"{{user:{}}}\"", case.user);
    let mut scripts = monitor.stop();
    scripts.retain(|command| command.starts_with("\"EVAL\"") && command.contains(&tag));
    assert_eq!(scripts.len(), SCRIPTS, "{scripts:#?}");

    let migration = SlotMigration::start(&cluster, slot, source);
    assert!(migration.move_keys(2));
    let key_count = migration.key_counts();
    assert!(key_count.iter().all(|count| *count > 0), "{key_count:?}");
    for script in &scripts {
        let name = script.chars().rev().take(300).collect::<String>();
        let reply = migration.send_to_source(script);
        assert!(reply.starts_with("-ASK"), "{reply}: {name}");
        let reply = migration.send_to_target_asking(script);
        assert!(reply.starts_with("-TRYAGAIN"), "{reply}: {name}");
    }
    assert_eq!(migration.key_counts(), key_count);
    while migration.move_keys(10) {}
    migration.complete();
}
