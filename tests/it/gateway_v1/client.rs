//! The Rust client (`chatmesh::client`) against a gateway whose log and worker the test controls.

use std::time::Duration;

use chatmesh::client::{Client, Event, Options, Outcome, Question, State};
use chatmesh::config::settings::GatewaySettings;
use chatmesh::protocol::ids::ClientMessageId;
use tokio::time::timeout;

use super::{Gateway, start};
use crate::gateway_classic::settings;
use crate::support::TEST_TIMEOUT;

async fn connect_client(gateway: &Gateway) -> Client {
    // The gateway refuses connections until its feed is open.
    gateway.device("first").await;
    let server = format!("http://127.0.0.1:{}", gateway.port);
    let options = Options::new(&server, "alice").unwrap();
    Client::connect(options).await.unwrap()
}

#[tokio::test]
async fn unacknowledged_message_is_resent_with_the_same_id() {
    let gateway = start(GatewaySettings {
        produce_timeout: Duration::from_millis(200),
        ..settings()
    })
    .await;
    let client = connect_client(&gateway).await;
    gateway.log.set_acknowledging(false);
    let id = ClientMessageId::parse("a1").unwrap();
    let question = Question::new("x").with_id(id);
    let mut answer = client.ask(question).await.unwrap();
    // The client resends the message on its own, so the log receives it twice and the caller sees
    // no error.
    let records = timeout(TEST_TIMEOUT, gateway.log.records(2)).await.unwrap();
    assert_eq!(records[0].1.key, records[1].1.key);
    gateway.log.set_acknowledging(true);
    let accepted = timeout(TEST_TIMEOUT, answer.next()).await.unwrap();
    assert!(matches!(accepted, Some(Event::Accepted(_))), "{accepted:?}");
    gateway.answer("alice", "a1", &["one ", "two"]).await;
    let mut text = String::new();
    let outcome = loop {
        match timeout(TEST_TIMEOUT, answer.next()).await.unwrap().unwrap() {
            Event::Delta(delta) => text.push_str(&delta.text),
            Event::Ended(outcome) => break outcome,
            event => panic!("neither a delta nor the outcome: {event:?}"),
        }
    };
    assert!(
        matches!(&outcome, Outcome::Answered { content, .. } if content == "one two"),
        "{outcome:?}"
    );
    assert!("one two".starts_with(&text), "{text}");
}

#[tokio::test]
async fn client_reports_a_draining_server_and_reconnects() {
    let gateway = start(settings()).await;
    let client = connect_client(&gateway).await;
    let mut state = client.state();
    gateway.drain.cancel();
    let state_after_drain = timeout(
        TEST_TIMEOUT,
        state.wait_for(|state| *state != State::Connected),
    )
    .await;
    let state_after_drain = state_after_drain.unwrap().unwrap().clone();
    assert!(
        matches!(&state_after_drain, State::Reconnecting(reason) if reason.contains("stopped")),
        "{state_after_drain:?}"
    );
}
