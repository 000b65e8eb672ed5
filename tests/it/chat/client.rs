//! The client library.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use chatmesh::client::{Client, ClientError, Event, Options, Outcome, Question, State, Token};
use chatmesh::protocol::ids::ClientMessageId;
use futures_util::{SinkExt as _, StreamExt as _};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::{WebSocketStream, accept_hdr_async};

use super::proxy::Proxy;
use super::server;
use crate::support::TEST_TIMEOUT;
use crate::support::http::{post, try_call};
use crate::support::model::{Script, ScriptedModel};

fn options(port: u16) -> Options {
    Options::new(&format!("ws://127.0.0.1:{port}/ws"), "alice").unwrap()
}

fn content(outcome: &Outcome) -> &str {
    match outcome {
        Outcome::Answered { content, .. } => content,
        other => panic!("expected an answer, got {other:?}"),
    }
}

#[tokio::test]
async fn question_asked_while_disconnected_is_answered_once() {
    let model = ScriptedModel::start().await;
    let server = server(&model).start().await;
    let mut proxy = Proxy::start(server.port()).await;
    let client = Client::connect(options(proxy.port())).await.unwrap();
    let first = client.ask(Question::new("first")).await.unwrap();
    assert_eq!(content(&first.outcome().await), "echo: first");
    let mut state = client.state();
    proxy.interrupt().await;
    let disconnected = state.wait_for(|state| matches!(state, State::Reconnecting(_)));
    assert!(timeout(TEST_TIMEOUT, disconnected).await.unwrap().is_ok());
    let answer = client.ask(Question::new("meanwhile")).await.unwrap();
    proxy.resume().await;
    let outcome = timeout(TEST_TIMEOUT, answer.outcome()).await.unwrap();
    assert_eq!(content(&outcome), "echo: meanwhile");
    assert_eq!(model.request_count_for("meanwhile"), 1);
}

#[tokio::test]
async fn outcome_is_unknown_after_the_retry_timeout() {
    let model = ScriptedModel::start().await;
    model.queue_answer("never", Script::new().role().text("some ").hang());
    let server = server(&model).start().await;
    let mut proxy = Proxy::start(server.port()).await;
    let options = options(proxy.port()).retry_timeout(Duration::from_millis(300));
    let client = Client::connect(options).await.unwrap();
    let mut answer = client.ask(Question::new("never")).await.unwrap();
    loop {
        match timeout(TEST_TIMEOUT, answer.next()).await.unwrap() {
            Some(Event::Delta(_)) => break,
            Some(Event::Accepted(_)) => {}
            other => panic!("expected a delta, got {other:?}"),
        }
    }
    proxy.interrupt().await;
    let outcome = timeout(TEST_TIMEOUT, answer.outcome()).await.unwrap();
    assert!(matches!(outcome, Outcome::Unknown { .. }), "{outcome:?}");
}

#[tokio::test]
async fn repeated_id_gets_the_same_answer_without_a_model_call() {
    let model = ScriptedModel::start().await;
    let server = server(&model).start().await;
    let id = ClientMessageId::parse("order-1").unwrap();
    for _ in 0..2 {
        let client = Client::connect(options(server.port())).await.unwrap();
        let question = Question::new("once").with_id(id.clone());
        let answer = client.ask(question).await.unwrap();
        assert_eq!(
            content(&timeout(TEST_TIMEOUT, answer.outcome()).await.unwrap()),
            "echo: once"
        );
    }
    assert_eq!(model.request_count_for("once"), 1);
}

/// Accepts one `chatmesh.v1` connection and sends `welcome`.
#[expect(
    clippy::result_large_err,
    reason = "the callback's type is the library's"
)]
async fn accept_and_welcome(listener: &TcpListener) -> WebSocketStream<TcpStream> {
    let (stream, _) = listener.accept().await.unwrap();
    let mut socket = accept_hdr_async(stream, |_: &Request, mut response: Response| {
        let name = HeaderValue::from_static("chatmesh.v1");
        response
            .headers_mut()
            .insert("sec-websocket-protocol", name);
        Ok(response)
    })
    .await
    .unwrap();
    let welcome = json!({
        "type": "welcome", "userid": "alice", "server_id": "s", "position": "p0",
        "recovered": false, "pending": [], "heartbeat_ms": 25000,
        "limits": {"max_content_chars": 100, "max_frame_bytes": 1000, "max_pending": 8},
    });
    socket
        .send(Message::text(welcome.to_string()))
        .await
        .unwrap();
    socket
}

/// A server that sends every answer before the `accepted` of its message.
async fn serve_out_of_order(listener: TcpListener) {
    let mut socket = accept_and_welcome(&listener).await;
    let mut number = 0;
    while let Some(Ok(Message::Text(text))) = socket.next().await {
        let message: Value = serde_json::from_str(&text).unwrap();
        number += 1;
        let frame = |kind: &str| {
            json!({
                "type": kind, "userid": "alice", "message_id": format!("m{number}"),
                "id": message["id"], "conversation_id": "default", "correlation_id": "c",
                "position": format!("p{number}"), "content": message["content"],
            })
        };
        for kind in ["response", "accepted"] {
            let text = frame(kind).to_string();
            socket.send(Message::text(text)).await.unwrap();
        }
    }
}

#[tokio::test]
async fn client_closes_the_socket_before_it_reconnects() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let token = Token::Fixed("any".to_owned().into());
    let connecting = Client::connect(options(port).token(token));
    let (client, mut socket) = tokio::join!(connecting, accept_and_welcome(&listener));
    let client = client.unwrap();
    // From here on, every attempt to reconnect is refused.
    drop(listener);
    let going_away = CloseFrame {
        code: CloseCode::Away,
        reason: "going_away".into(),
    };
    socket.close(Some(going_away)).await.unwrap();
    let reply = timeout(TEST_TIMEOUT, socket.next()).await.unwrap();
    assert!(matches!(reply, Some(Ok(Message::Close(_)))), "{reply:?}");
    let end_of_stream = timeout(TEST_TIMEOUT, socket.get_mut().read(&mut [0])).await;
    assert_eq!(end_of_stream.unwrap().unwrap(), 0);
    assert!(matches!(*client.state().borrow(), State::Reconnecting(_)));
}

#[tokio::test]
async fn answer_before_its_accepted_is_reported_once() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = tokio::spawn(serve_out_of_order(listener));
    let token = Token::Fixed("any".to_owned().into());
    let client = Client::connect(options(port).token(token)).await.unwrap();
    for text in ["one", "two"] {
        let answer = client.ask(Question::new(text)).await.unwrap();
        let outcome = timeout(TEST_TIMEOUT, answer.outcome()).await.unwrap();
        assert_eq!(content(&outcome), text);
    }
    client.close().await;
    timeout(TEST_TIMEOUT, server).await.unwrap().unwrap();
}

#[tokio::test]
async fn cancelled_answer_ends_with_the_text_so_far() {
    let model = ScriptedModel::start().await;
    model.queue_answer("long", Script::new().role().text("so far ").hang());
    let server = server(&model).start().await;
    let client = Client::connect(options(server.port())).await.unwrap();
    let mut answer = client.ask(Question::new("long")).await.unwrap();
    while !matches!(
        timeout(TEST_TIMEOUT, answer.next()).await.unwrap(),
        Some(Event::Delta(_))
    ) {}
    answer.cancel().await;
    let Outcome::Cancelled { content, .. } = timeout(TEST_TIMEOUT, answer.outcome()).await.unwrap()
    else {
        panic!("expected a cancelled answer");
    };
    assert_eq!(content.as_deref(), Some("so far "));
}

#[tokio::test]
async fn revoked_token_is_replaced_if_another_can_be_obtained() {
    let model = ScriptedModel::start().await;
    let server = server(&model)
        .env("AUTH_MODE", "stored")
        .env("TOKEN_ENDPOINT", "admin")
        .env("ADMIN_KEY", "an-admin-key-of-some-length")
        .start()
        .await;
    let key = [("authorization", "Bearer an-admin-key-of-some-length")];
    let url = server.url("/token?userid=alice");
    let fetch_count = Arc::new(AtomicUsize::new(0));
    let (count, token_url) = (fetch_count.clone(), url.clone());
    let callback = Token::Callback(Arc::new(move || {
        count.fetch_add(1, Ordering::SeqCst);
        let token_url = token_url.clone();
        Box::pin(async move {
            let issued = post(&token_url, &key).await.json();
            Ok(issued["token"]
                .as_str()
                .unwrap_or_default()
                .to_owned()
                .into())
        })
    }));
    let renewing_client = Client::connect(options(server.port()).token(callback))
        .await
        .unwrap();
    let token = post(&url, &key).await.json()["token"]
        .as_str()
        .unwrap()
        .to_owned();
    let fixed_options = options(server.port()).token(Token::Fixed(token.into()));
    let fixed_client = Client::connect(fixed_options).await.unwrap();

    let revocation = try_call(Method::DELETE, &url, &key).await.unwrap();
    assert_eq!(revocation.status, 200);
    let mut state = fixed_client.state();
    let closed = state.wait_for(|state| matches!(state, State::Closed(_)));
    assert!(timeout(TEST_TIMEOUT, closed).await.unwrap().is_ok());
    let refused = fixed_client.ask(Question::new("more")).await;
    assert!(matches!(refused, Err(ClientError::Closed(_))));

    let mut state = renewing_client.state();
    let reconnected = async {
        while fetch_count.load(Ordering::SeqCst) < 2 {
            state.changed().await.unwrap();
        }
    };
    timeout(TEST_TIMEOUT, reconnected).await.unwrap();
    let answer = renewing_client.ask(Question::new("more")).await.unwrap();
    assert_eq!(
        content(&timeout(TEST_TIMEOUT, answer.outcome()).await.unwrap()),
        "echo: more"
    );
}

#[tokio::test]
async fn missing_token_is_rejected_unless_the_server_accepts_every_token() {
    let model = ScriptedModel::start().await;
    // With an admin key, `POST /token` is not open to the client.
    let open_server = server(&model).env("ADMIN_KEY", "operator").start().await;
    let client = Client::connect(options(open_server.port())).await.unwrap();
    let answer = client.ask(Question::new("hello")).await.unwrap();
    let outcome = timeout(TEST_TIMEOUT, answer.outcome()).await.unwrap();
    assert_eq!(content(&outcome), "echo: hello");
    let closed_server = server(&model)
        .env("AUTH_MODE", "stored")
        .env("ADMIN_KEY", "operator")
        .start()
        .await;
    let error = Client::connect(options(closed_server.port()))
        .await
        .unwrap_err();
    let expected = ClientError::Unauthorized("none was given".into());
    assert_eq!(error, expected);
    // A wrong admin key is reported as such, not as a missing token.
    let wrong_key = options(closed_server.port()).token(Token::Server(Some("wrong".into())));
    let error = Client::connect(wrong_key).await.unwrap_err();
    assert!(error.to_string().contains("admin key"), "{error}");
}
