//! Tests of the support code, on which the other tests rely.

use std::time::Duration;

use futures_util::StreamExt;

use super::model::{Answer, Script, ScriptedModel, StreamErrorFormat};
use super::redis::PrivateRedis;
use super::{TEST_TIMEOUT, wait_until};

async fn send_request(model: &ScriptedModel, prompt: &str) -> reqwest::Response {
    let body =
        serde_json::json!({"stream": true, "messages": [{"role": "user", "content": prompt}]});
    reqwest::Client::builder()
        .no_proxy()
        .build()
        .unwrap()
        .post(format!("{}/chat/completions", model.base_url()))
        .header("content-type", "application/json")
        .body(body.to_string())
        .send()
        .await
        .unwrap()
}

#[tokio::test]
async fn scripted_model_splits_chunks_within_characters() {
    let model = ScriptedModel::start().await;
    model.queue_answer("umlaut", Script::complete("grün 🦀").crlf().split_every(3));
    let mut body = send_request(&model, "umlaut").await.bytes_stream();
    let (mut bytes, mut pieces, mut has_split_character) = (Vec::new(), 0, false);
    while let Some(piece) = body.next().await {
        let piece = piece.unwrap();
        pieces += 1;
        has_split_character |= std::str::from_utf8(&piece).is_err();
        bytes.extend_from_slice(&piece);
    }
    let text = String::from_utf8(bytes).unwrap();
    assert!(pieces > 10, "{pieces} pieces");
    assert!(has_split_character);
    assert!(
        text.contains("grün ") && text.ends_with("data: [DONE]\r\n\r\n"),
        "{text}"
    );
    assert_eq!(model.request_count_for("umlaut"), 1);
    assert!(model.aborted_prompts().is_empty());
}

#[tokio::test]
async fn scripted_model_detects_closed_connections() {
    let model = ScriptedModel::start().await;
    model.queue_answer("middle", Script::new().token("a").hang());
    model.queue_answer("hang", Answer::Hang);
    let mut body = send_request(&model, "middle").await.bytes_stream();
    assert!(body.next().await.is_some());
    assert!(model.aborted_prompts().is_empty());
    drop(body);
    let response =
        tokio::time::timeout(Duration::from_millis(200), send_request(&model, "hang")).await;
    assert!(response.is_err());
    wait_until(
        "both closed connections are detected",
        TEST_TIMEOUT,
        || async { model.aborted_prompts().len() == 2 && model.open_requests() == 0 },
    )
    .await;
}

#[tokio::test]
async fn scripted_model_disconnects_after_the_sent_chunks() {
    let model = ScriptedModel::start().await;
    model.queue_answer("cut", Script::new().token("kept").disconnect());
    let mut body = send_request(&model, "cut").await.bytes_stream();
    let first = body.next().await.unwrap().unwrap();
    assert!(String::from_utf8_lossy(&first).contains("kept"));
    assert!(body.next().await.unwrap().is_err());
}

#[tokio::test]
async fn private_redis_restarts_with_or_without_its_data() {
    use fred::interfaces::KeysInterface;
    let mut redis = PrivateRedis::start().await;
    let client = super::redis::redis_client(&redis.url()).await;
    let _: () = client.set("k", "v", None, None, false).await.unwrap();
    redis.restart().await;
    let client = super::redis::redis_client(&redis.url()).await;
    let value: Option<String> = client.get("k").await.unwrap();
    assert_eq!(value.as_deref(), Some("v"));
    redis.restart_empty().await;
    let client = super::redis::redis_client(&redis.url()).await;
    let value: Option<String> = client.get("k").await.unwrap();
    assert_eq!(value, None);
}

#[tokio::test]
async fn scripted_model_sends_every_format_of_stream_error() {
    let model = ScriptedModel::start().await;
    for (format, expected) in [
        (StreamErrorFormat::Nested, r#"data: {"error":{"#),
        (StreamErrorFormat::Flat, r#""object":"error""#),
        (StreamErrorFormat::Line, "error: {"),
    ] {
        model.queue_answer("fail", Script::new().token("a").error(format, "broken"));
        let body = send_request(&model, "fail").await.text().await.unwrap();
        assert!(body.contains(expected), "{format:?}: {body}");
    }
}

#[tokio::test]
async fn private_kafka_keeps_its_records_over_a_crash() {
    let mut kafka = super::kafka_broker::KafkaBroker::start().await;
    let client = kafka.kafka_client();
    client.create_topic("t", 3).await;
    client.produce("t", Some("k"), "one", &[("h", "x")]).await;
    client.produce_with_kcat("t", "two");
    kafka.kill();
    kafka.spawn_and_wait().await;
    let mut records = kafka.kafka_client().read("t", 2, TEST_TIMEOUT).await;
    records.sort_by(|a, b| a.value.cmp(&b.value));
    assert_eq!(records.len(), 2, "{records:?}");
    assert_eq!(records[0].headers["h"], "x");
    assert_eq!(records[1].key, None);
    assert_eq!(kafka.kafka_client().lag("unused-group", "t").await, 2);
}
