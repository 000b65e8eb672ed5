//! Messages from clients: invalid input, order, faults of the log, slow and silent clients, and the
//! drain.

use std::sync::atomic::Ordering;

use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

use super::*;

#[tokio::test]
async fn invalid_frame_is_answered_and_not_produced() {
    let gateway = start(settings()).await;
    let mut client = gateway.connect("alice").await;
    let long = format!(r#"{{"type":"message","content":"{}"}}"#, "x".repeat(8001));
    for (frame, code) in [
        ("hello", "invalid_message"),
        (r#"{"type":"nonsense","content":"x"}"#, "invalid_message"),
        (r#"{"type":"message"}"#, "invalid_message"),
        (r#"{"type":"message","content":""}"#, "invalid_message"),
        (
            r#"{"type":"message","content":"x","userid":"bob"}"#,
            "invalid_message",
        ),
        (&long, "too_large"),
    ] {
        client.send_text(frame).await;
        let answer = client.next_json().await;
        assert_eq!(answer["type"], "error");
        assert_eq!(answer["code"], code, "{frame}");
        assert_eq!(answer["userid"], "alice");
        let text = answer["message"].as_str().unwrap();
        assert!(text.starts_with("Invalid message"), "{text}");
        let correlation_id = answer["correlation_id"].as_str().unwrap();
        assert!(correlation_id.starts_with(&client.correlation_id));
        assert_eq!(answer.as_object().unwrap().len(), 5, "{answer}");
    }
    client.send_message("a\0b\u{7}").await;
    let records = gateway.log.records(1).await;
    assert_eq!(records.len(), 1, "the invalid frames must not be produced");
    let value: Value = serde_json::from_slice(&records[0].1.value).unwrap();
    assert_eq!(value["content"], "ab\u{7}");
}

#[tokio::test]
async fn websocket_protocol_error_is_closed_with_its_code() {
    let gateway = start(settings()).await;
    let frame = |payload: &'static [u8], kind| {
        Message::Frame(Frame::message(payload, OpCode::Data(kind), true))
    };
    for (message, code) in [
        (Message::binary(vec![1, 2]), 1003),
        (Message::text("x".repeat(65_537)), 1009),
        (Message::text("x".repeat(3_000_000)), 1009),
        (frame(b"\xff\xfe", Data::Text), 1007),
        (frame(b"x", Data::Reserved(3)), 1002),
    ] {
        let client = gateway.connect("alice").await;
        // The client may still be writing a large message when the gateway closes.
        let (mut sink, stream) = client.stream.split();
        let sending = tokio::spawn(async move {
            let _ = sink.send(message).await;
            sink
        });
        let received = timeout(TEST_TIMEOUT, stream.collect::<Vec<_>>())
            .await
            .unwrap();
        drop(sending.await.unwrap());
        let close_frame = received.into_iter().find_map(|message| match message {
            Ok(Message::Close(frame)) => frame,
            _ => None,
        });
        assert_eq!(u16::from(close_frame.unwrap().code), code);
    }
    gateway.connect("alice").await.expect_no_frame().await;
}

#[tokio::test]
async fn messages_of_a_connection_are_produced_completely_and_in_order() {
    let gateway = start(settings()).await;
    gateway.connect("alice").await;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let headers = [
        ("traceparent", trace),
        ("tracestate", "vendor=x"),
        ("x-request-id", "r1"),
    ];
    let query = "?token=t&userid=alice";
    let mut client = gateway.upgrade(query, &headers).await.unwrap();
    for number in 0..300 {
        client.send_message(&number.to_string()).await;
    }
    let records = gateway.log.records(300).await;
    let mut ids = std::collections::HashSet::new();
    for (number, (topic, record)) in records.iter().enumerate() {
        assert_eq!(topic, "incoming_messages");
        assert_eq!(record.key.as_deref(), Some(&b"alice"[..]));
        let value: Value = serde_json::from_slice(&record.value).unwrap();
        assert_eq!(value["v"], 1);
        assert_eq!(value["type"], "message");
        assert_eq!(value["content"], number.to_string());
        assert_eq!(value["userid"], "alice");
        assert_eq!(value["server_id"], "server_1");
        assert_eq!(value["conversation_id"], "default");
        assert_eq!(value["stream"], true);
        let header = |name: &str| {
            let found = record.headers.iter().find(|(key, _)| key == name).unwrap();
            String::from_utf8(found.1.to_vec()).unwrap()
        };
        assert_eq!(value["message_id"], header("message_id"));
        assert_eq!(value["correlation_id"], header("correlation_id"));
        assert_eq!(header("traceparent"), trace);
        assert_eq!(header("tracestate"), "vendor=x");
        assert!(header("correlation_id").starts_with("r1-"));
        assert!(ids.insert(header("message_id")));
        assert!(ids.insert(header("correlation_id")));
    }
}

#[tokio::test]
async fn message_without_acknowledgement_in_time_is_answered_unavailable() {
    let gateway = start(GatewaySettings {
        produce_timeout: Duration::from_millis(300),
        open_check_interval: Duration::from_millis(50),
        ..settings()
    })
    .await;
    let mut client = gateway.connect("alice").await;
    gateway.log.set_acknowledging(false);
    client.send_message("x").await;
    let answer = client.next_json().await;
    assert_eq!(answer["code"], "unavailable");
    assert_eq!(answer["message"], "Service temporarily unavailable");
    // The record was appended, although its acknowledgement is missing.
    let records = gateway.log.records(1).await;
    let value: Value = serde_json::from_slice(&records[0].1.value).unwrap();
    let id = value["message_id"].as_str().unwrap();
    gateway
        .fanout
        .store_frame("alice", 1, &fakes::terminal_frame("alice", id, 1, "late"));
    assert_eq!(client.next_json().await["content"], "late");

    gateway.log.is_refusing.store(true, Ordering::SeqCst);
    client.send_message("x").await;
    assert_eq!(client.next_json().await["code"], "internal");
    gateway.fanout.is_unavailable.store(true, Ordering::SeqCst);
    client.send_message("x").await;
    assert_eq!(client.next_json().await["code"], "unavailable");
    assert_eq!(gateway.log.records(1).await.len(), 1);
}

#[tokio::test]
async fn unacknowledged_messages_are_bounded_and_later_ones_stay_in_the_socket() {
    let gateway = start(settings()).await;
    let mut client = gateway.connect("alice").await;
    gateway.log.set_acknowledging(false);
    for _ in 0..200 {
        client.send_message("x").await;
    }
    gateway.log.records(64).await;
    // The message of another client is not blocked.
    gateway.connect("bob").await.send_message("y").await;
    assert_eq!(gateway.log.records(65).await.len(), 65);
    gateway.log.set_acknowledging(true);
    assert_eq!(gateway.log.records(201).await.len(), 201);
}

#[tokio::test]
async fn client_that_does_not_read_is_closed_and_delays_no_other() {
    let gateway = start(GatewaySettings {
        outbound_queue_bytes: 65_536,
        ..settings()
    })
    .await;
    let mut slow = gateway.connect("slow").await;
    let mut quick = gateway.connect("quick").await;
    let big = "x".repeat(16_384);
    for number in 1..1000 {
        let id = format!("m{number}");
        gateway.fanout.deliver("slow", &id, number, &big).await;
    }
    gateway.fanout.deliver("quick", "q", 1, "here").await;
    assert_eq!(quick.next_json().await["content"], "here");
    assert_eq!(slow.close_code().await, 4409);
}

#[tokio::test]
async fn client_that_answers_no_ping_is_closed() {
    let gateway = start(GatewaySettings {
        ping_interval: Duration::from_millis(100),
        ping_timeout: Duration::from_millis(100),
        ..settings()
    })
    .await;
    // The client library sends pongs only while it reads, and this client reads only after the
    // gateway has closed the connection.
    let mut silent = gateway.connect("silent").await;
    while gateway.health().await["total_connections"] != 0 {}
    assert_eq!(silent.close_code().await, 4408);
}

#[tokio::test]
async fn client_that_answers_pings_stays_connected() {
    let gateway = start(GatewaySettings {
        ping_interval: Duration::from_millis(50),
        ping_timeout: Duration::from_secs(2),
        ..settings()
    })
    .await;
    let mut client = gateway.connect("alice").await;
    let mut pings = 0;
    while pings < 5 {
        if timeout(TEST_TIMEOUT, client.stream.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap()
            .is_ping()
        {
            pings += 1;
        }
    }
    client.expect_no_frame().await;
}

#[tokio::test]
async fn drain_acknowledges_received_messages_and_sends_close_frames() {
    let mut gateway = start(settings()).await;
    let mut idle = gateway.connect("idle").await;
    let mut busy = gateway.connect("busy").await;
    gateway.log.set_acknowledging(false);
    busy.send_message("last words").await;
    gateway.log.records(1).await;
    gateway.drain.cancel();
    assert_eq!(idle.close_code().await, 1001);
    // The busy connection stays open and still receives frames.
    assert!(!gateway.served.is_finished());
    gateway
        .fanout
        .deliver("busy", "b", 1, "before the end")
        .await;
    assert_eq!(busy.next_json().await["content"], "before the end");
    gateway.log.set_acknowledging(true);
    assert_eq!(busy.close_code().await, 1001);
    drop((idle, busy));
    let served = timeout(TEST_TIMEOUT, &mut gateway.served).await.unwrap();
    served.unwrap().unwrap();
    assert!(TcpStream::connect(gateway.addr).await.is_err());
}

#[tokio::test]
async fn drain_ends_in_time_without_acknowledgements() {
    let mut gateway = start(GatewaySettings {
        drain_timeout: Duration::from_millis(300),
        ..settings()
    })
    .await;
    let mut client = gateway.connect("alice").await;
    gateway.log.set_acknowledging(false);
    client.send_message("x").await;
    gateway.log.records(1).await;
    gateway.drain.cancel();
    let served = timeout(Duration::from_secs(8), &mut gateway.served).await;
    served.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn drain_does_not_wait_for_messages_that_were_never_appended() {
    let produce_timeout = Duration::from_secs(1);
    let mut gateway = start(GatewaySettings {
        produce_timeout,
        drain_timeout: Duration::from_secs(60),
        ..settings()
    })
    .await;
    let mut first = gateway.connect("alice").await;
    gateway.log.set_acknowledging(false);
    first.send_message("admitted, and not acknowledged").await;
    gateway.log.records(1).await;
    assert_eq!(first.next_json().await["code"], "unavailable");
    // A second connection finds the message pending.
    let mut second = gateway.connect("alice").await;
    let drain_start = std::time::Instant::now();
    gateway.drain.cancel();
    assert_eq!(first.close_code().await, 1001);
    assert_eq!(second.close_code().await, 1001);
    assert!(
        drain_start.elapsed() < produce_timeout * 5,
        "the drain took {:?}",
        drain_start.elapsed()
    );
    drop((first, second));
    let served = timeout(TEST_TIMEOUT, &mut gateway.served).await.unwrap();
    served.unwrap().unwrap();
}
