//! The replies to what clients send (protocol.md section 1.2).

use tokio::time::timeout;

use super::*;
use crate::support::TEST_TIMEOUT;
use crate::support::classic::{ClassicClient, ClientEvent};

#[tokio::test]
async fn offered_subprotocol_is_selected_and_echoed() {
    let gateway = start(settings()).await;
    let mut device = gateway.device("alice").await;
    // The client offers several subprotocols. The WebSocket library rejects a response that selects
    // none of them.
    let offered = [("sec-websocket-protocol", "other, chatmesh.v1")];
    let path = "/ws?token=t&userid=alice";
    device.upgrade(gateway.port, path, &offered).await.unwrap();
    assert_eq!(device.next_frame().await["type"], "welcome");
    let mut classic = ClassicClient::connect_with(gateway.port, path, &[], "alice")
        .await
        .unwrap();
    classic.send_text(r#"{"type":"ping"}"#).await;
    assert_eq!(classic.next_frame().await["code"], "invalid_message");
}

#[tokio::test]
async fn malformed_position_is_refused_and_a_foreign_one_is_not_recovered() {
    let gateway = start(settings()).await;
    gateway.device("alice").await;
    let mut device = V1Client::new("alice");
    let path = "/ws?token=t&userid=alice&since=nonsense";
    let refused = device.upgrade(gateway.port, path, &[]).await.unwrap_err();
    assert_eq!(refused.status, 400);
    let path = "/ws?token=t&userid=alice&since=foreign~0~1.7";
    device.upgrade(gateway.port, path, &[]).await.unwrap();
    assert_eq!(device.next_frame().await["recovered"], false);
}

#[tokio::test]
async fn message_is_accepted_streamed_and_answered_on_all_devices() {
    let gateway = start(settings()).await;
    let mut phone = gateway.device("alice").await;
    let mut laptop = gateway.device("alice").await;
    let mut classic = ClassicClient::open(gateway.port, "alice").await;
    // A classic client gets no `welcome`; its first reply shows that it is subscribed.
    assert_eq!(classic.send_and_wait("").await["code"], "invalid_message");
    let mut other = gateway.device("bob").await;

    phone.send_message("a1", "the question").await;
    let accepted = phone.wait_for_type("accepted").await;
    let fields: Vec<&String> = accepted.as_object().unwrap().keys().collect();
    let expected = ["conversation_id", "id", "message_id", "type", "userid"];
    assert_eq!(fields, expected, "{accepted}");
    let announced = laptop.wait_for_type("accepted").await;
    let fields: Vec<&String> = announced.as_object().unwrap().keys().collect();
    let expected = [
        "content",
        "conversation_id",
        "id",
        "message_id",
        "type",
        "userid",
    ];
    assert_eq!(fields, expected, "{announced}");
    assert_eq!(announced["content"], "the question");
    let records = gateway.log.records(1).await;
    let value: Value = serde_json::from_slice(&records[0].1.value).unwrap();
    assert_eq!(
        (&value["stream"], &value["id"]),
        (&json!(true), &json!("a1"))
    );
    assert_eq!(value["message_id"], accepted["message_id"]);

    gateway.answer("alice", "a1", &["one ", "two"]).await;
    for device in [&mut phone, &mut laptop] {
        let terminal_frame = device.wait_for_terminal_frame("a1").await;
        assert_eq!(terminal_frame["content"], "one two");
        assert_eq!(terminal_frame["position"], position(0).to_string());
        assert_eq!(device.message("a1").deltas, 2);
        for internal_field in ["n", "n_id", "origin", "v"] {
            assert!(
                device
                    .frames
                    .iter()
                    .all(|frame| frame.get(internal_field).is_none())
            );
        }
    }
    let terminal_frame = classic.next_frame().await;
    assert_eq!(
        (&terminal_frame["type"], &terminal_frame["content"]),
        (&json!("response"), &json!("one two"))
    );
    assert!(terminal_frame.get("position").is_none());
    // The devices of both users receive no further frame.
    for device in [&mut phone, &mut laptop, &mut other] {
        device.send_text(r#"{"type":"ping"}"#).await;
        assert_eq!(device.next_frame().await["type"], "pong");
    }
    assert_eq!(classic.send_and_wait("").await["code"], "invalid_message");
}

#[tokio::test]
async fn question_of_a_classic_client_is_announced_to_the_other_devices() {
    let gateway = start(settings()).await;
    let mut phone = gateway.device("alice").await;
    let mut classic = ClassicClient::open(gateway.port, "alice").await;
    classic.send_message("from the old client").await;
    let accepted = phone.wait_for_type("accepted").await;
    assert_eq!(accepted["content"], "from the old client");
    assert!(accepted.get("id").is_none());
}

#[tokio::test]
async fn unacknowledged_message_is_answered_with_a_retryable_error() {
    let gateway = start(GatewaySettings {
        produce_timeout: Duration::from_millis(200),
        ..settings()
    })
    .await;
    let mut device = gateway.device("alice").await;
    gateway.log.set_acknowledging(false);
    device.send_message("a1", "x").await;
    let error = device.wait_for_type("error").await;
    assert_eq!(
        (&error["code"], &error["id"]),
        (&json!("unavailable"), &json!("a1"))
    );
    assert_eq!(
        (&error["retryable"], error.get("message_id")),
        (&json!(true), None)
    );
    // The log has appended the message without an acknowledgement, and appends the resend.
    gateway.log.set_acknowledging(true);
    device.send_message("a1", "x").await;
    device.wait_for_accepted("a1").await;
    gateway.answer("alice", "a1", &["y"]).await;
    assert_eq!(device.wait_for_terminal_frame("a1").await["content"], "y");
}

#[tokio::test]
async fn resent_message_repeats_its_answer_only_to_the_connection_that_resent_it() {
    let gateway = start(settings()).await;
    let mut phone = gateway.device("alice").await;
    let mut laptop = gateway.device("alice").await;
    phone.send_message("a1", "x").await;
    phone.wait_for_accepted("a1").await;
    let answer = gateway.begin("alice", "a1").await;
    gateway.keep(&answer).await;
    // The outcome is stored and not delivered yet, so nothing is appended.
    phone.send_message("a1", "x").await;
    assert_eq!(phone.wait_for_type("accepted").await["id"], "a1");
    gateway.deliver(&answer).await;
    phone.wait_for_terminal_frame("a1").await;
    laptop.wait_for_terminal_frame("a1").await;
    phone.send_message("a1", "x").await;
    assert_eq!(phone.next_frame().await["type"], "accepted");
    assert_eq!(phone.next_frame().await["type"], "response");
    assert_eq!(gateway.log.records(1).await.len(), 1);
    laptop.send_text(r#"{"type":"ping"}"#).await;
    assert_eq!(laptop.next_frame().await["type"], "pong");
}

#[tokio::test]
async fn resent_message_with_an_undelivered_answer_receives_it_once() {
    let gateway = start(settings()).await;
    let mut device = gateway.device("alice").await;
    for id in ["a1", "a2"] {
        device.send_message(id, "x").await;
        device.wait_for_accepted(id).await;
    }
    gateway.fanout.start_losing_frames();
    gateway.answer("alice", "a1", &["one"]).await;
    gateway.answer("alice", "a2", &["two"]).await;
    gateway.fanout.stop_losing_after(4).await;
    device.send_message("a2", "x").await;
    // The earlier answer is sent first because of its lower position, and each is sent once.
    device.wait_for_terminal_frames(&["a1", "a2"]).await;
    assert_eq!(device.message("a2").repeated_outcomes, 0);
    device.send_text(r#"{"type":"ping"}"#).await;
    assert_eq!(device.wait_for_type("pong").await["type"], "pong");
    let terminal_frames = device
        .frames
        .iter()
        .filter(|frame| frame["type"] == "response");
    assert_eq!(terminal_frames.count(), 2);
}

#[tokio::test]
async fn cancel_reports_its_result() {
    let gateway = start(settings()).await;
    let mut device = gateway.device("alice").await;
    let mut other = gateway.device("alice").await;
    device.send_message("a1", "x").await;
    device.wait_for_accepted("a1").await;
    gateway.begin("alice", "a1").await;
    other.cancel("a1").await;
    let result = other.wait_for_type("cancel_result").await;
    assert_eq!(
        (&result["result"], &result["id"]),
        (&json!("cancelling"), &json!("a1"))
    );
    let message_id = result["message_id"].as_str().unwrap().to_owned();
    assert_eq!(
        device.transcript.message_id("a1"),
        Some(message_id.as_str())
    );
    device.send_message("a2", "x").await;
    device.wait_for_accepted("a2").await;
    gateway.answer("alice", "a2", &["y"]).await;
    device.wait_for_terminal_frame("a2").await;
    device.cancel("a2").await;
    assert_eq!(
        device.wait_for_type("cancel_result").await["result"],
        "already_done"
    );
    device.cancel_message("no-such-message").await;
    let result = device.wait_for_type("cancel_result").await;
    assert_eq!(result["result"], "unknown");
    assert_eq!(result["message_id"], "no-such-message");
    // A cancel that is sent directly after its message does not overtake the message.
    device.send_message("a3", "x").await;
    device.cancel("a3").await;
    assert_eq!(
        device.wait_for_type("cancel_result").await["result"],
        "cancelling"
    );
}

#[tokio::test]
async fn interrupt_cancels_earlier_messages_and_its_resend_cancels_none() {
    let gateway = start(settings()).await;
    let mut device = gateway.device("alice").await;
    device.send_message("a1", "x").await;
    device.send_message_in("elsewhere", "b1", "x").await;
    device.send_interrupting_message("a2", "y").await;
    device.send_message("a3", "z").await;
    device.send_interrupting_message("a2", "y").await;
    for id in ["a1", "b1", "a2", "a3"] {
        device.wait_for_accepted(id).await;
    }
    device.send_text(r#"{"type":"ping"}"#).await;
    device.wait_for_type("pong").await;
    for (id, conversation, cancelled) in [
        ("a1", "default", true),
        ("b1", "elsewhere", false),
        ("a2", "default", false),
        ("a3", "default", false),
    ] {
        let user = UserId::parse("alice").unwrap();
        let client_id = ClientMessageId::parse(id).unwrap();
        let message = MessageRef {
            message_id: MessageId::from_client_id(&user, &client_id),
            user,
            id: Some(client_id),
            conversation: ConversationId::parse(conversation).unwrap(),
        };
        let request = BeginRequest {
            message: message.clone(),
            owner: Owner::random(),
            last_attempt: 0,
            cancelled_outcome: empty_outcome(&message).into(),
            history: None,
        };
        let response = gateway.fanout.inner().begin(request).await.unwrap();
        assert_eq!(
            matches!(response, BeginResponse::Ended(_)),
            cancelled,
            "{id}: {response:?}"
        );
    }
}

#[tokio::test]
async fn draining_gateway_accepts_the_messages_it_has_read_and_announces_the_close() {
    let mut gateway = start(settings()).await;
    let mut idle = gateway.device("idle").await;
    let mut busy = gateway.device("busy").await;
    gateway.log.set_acknowledging(false);
    busy.send_message("a1", "last words").await;
    gateway.log.records(1).await;
    gateway.drain.cancel();
    assert_eq!(idle.expect_close().await, Some(1001));
    assert_eq!(idle.frames.last().unwrap()["type"], "closing");
    gateway.log.set_acknowledging(true);
    assert_eq!(busy.expect_close().await, Some(1001));
    assert!(busy.message("a1").is_accepted());
    drop((idle, busy));
    timeout(TEST_TIMEOUT, &mut gateway.served)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn expired_token_closes_its_connection_but_not_a_classic_one() {
    use chatmesh::config::settings::AuthMode;
    use chatmesh::fanout::Tokens as _;
    let gateway = start(GatewaySettings {
        auth: AuthMode::Stored,
        allow_origins: vec!["*".into()],
        ..settings()
    })
    .await;
    let user = UserId::parse("alice").unwrap();
    let ttl = Duration::from_secs(2);
    let (token, _) = gateway
        .fanout
        .issue_token(&user, "secret", ttl)
        .await
        .unwrap();
    let mut rejected = V1Client::new("alice");
    let path = "/ws?token=wrong&userid=alice";
    rejected.upgrade(gateway.port, path, &[]).await.unwrap();
    assert_eq!(rejected.expect_close().await, Some(4401));
    let mut classic = ClassicClient::connect(gateway.port, &token, "alice")
        .await
        .unwrap();
    let mut device = V1Client::new("alice");
    device.token = token;
    device.connect(gateway.port).await;
    assert_eq!(device.expect_close().await, Some(4401));
    assert!(matches!(
        classic.next_event(Duration::ZERO).await,
        ClientEvent::TimedOut
    ));
}
