//! Sends every documented WebSocket frame to a server, and validates every frame that it sends against its
//! schema.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::Document;
use crate::support::classic::ClassicClient;
use crate::support::model::{Answer, Script, ScriptedModel};
use crate::support::process::ProcessSpec;
use crate::support::v1::V1Client;

/// The messages of a channel that one side sends: by name, as they are documented.
fn messages<'a>(document: &'a Document, channel: &str, action: &str) -> Vec<(String, &'a Value)> {
    let channel = format!("#/channels/{channel}");
    let operations = document.root["operations"].as_object().unwrap().values();
    let of_channel = operations.filter(|operation| {
        operation["action"] == action && operation["channel"]["$ref"] == channel.as_str()
    });
    of_channel
        .flat_map(|operation| operation["messages"].as_array().unwrap())
        .map(|message| {
            let name = message["$ref"]
                .as_str()
                .unwrap()
                .rsplit('/')
                .next()
                .unwrap();
            (name.to_owned(), document.resolve(message))
        })
        .collect()
}

/// What a server sends on a channel: each frame must be one of these.
struct Expected<'a> {
    document: &'a Document,
    by_type: BTreeMap<String, &'a Value>,
    seen: BTreeSet<String>,
}

impl<'a> Expected<'a> {
    fn of(document: &'a Document, channel: &str) -> Self {
        let by_type = messages(document, channel, "send")
            .into_iter()
            .map(|(_, message)| {
                let kind = &document.resolve(&message["payload"])["properties"]["type"]["const"];
                (kind.as_str().unwrap().to_owned(), &message["payload"])
            });
        Self {
            document,
            by_type: by_type.collect(),
            seen: BTreeSet::new(),
        }
    }

    fn check(&mut self, frame: &Value) {
        let kind = frame["type"].as_str().unwrap_or_default();
        let schema = self.by_type.get(kind);
        let schema = schema.unwrap_or_else(|| panic!("{kind:?} is not documented: {frame}"));
        self.document.assert_valid(schema, frame, kind);
        self.seen.insert(kind.to_owned());
    }

    /// Every documented kind of frame was there.
    fn complete(self) {
        let all: BTreeSet<String> = self.by_type.into_keys().collect();
        let missing: Vec<&String> = all.difference(&self.seen).collect();
        assert!(
            missing.is_empty(),
            "documented, and never sent here: {missing:?}"
        );
    }
}

fn examples(message: &Value) -> Vec<Value> {
    let examples = message["examples"].as_array().map(Vec::as_slice);
    let examples = examples.unwrap_or_default().iter();
    examples.map(|example| example["payload"].clone()).collect()
}

async fn start(model: &ScriptedModel) -> crate::support::process::ChatmeshProcess {
    ProcessSpec::ephemeral()
        .env("OPENAI_BASE_URL", &model.base_url())
        .env("OPENAI_TIMEOUT_MS", "20000")
        .env("OPENAI_IDLE_TIMEOUT_MS", "20000")
        .start()
        .await
}

#[tokio::test]
async fn classic_examples_are_accepted_and_all_frames_match_their_schemas() {
    let document = Document::asyncapi();
    let model = ScriptedModel::start().await;
    model.queue_answer("fail", Answer::error(400, "bad", "no"));
    let server = start(&model).await;
    let mut expected = Expected::of(&document, "classic");
    let mut sent = 0;
    for (name, message) in messages(&document, "classic", "receive") {
        for example in examples(message) {
            let user = example["userid"].as_str().unwrap_or("user123");
            let mut client = ClassicClient::open(server.port(), user).await;
            client.send_text(&example.to_string()).await;
            let frame = client.next_frame().await;
            assert_eq!(frame["type"], "response", "{name}: {frame}");
            expected.check(&frame);
            sent += 1;
        }
    }
    assert!(sent >= 2, "there are examples");
    let mut client = ClassicClient::open(server.port(), "user123").await;
    // A refusal, and a failure.
    client.send_text("{}").await;
    expected.check(&client.next_frame().await);
    expected.check(&client.send_and_wait("fail").await);
    expected.complete();
}

#[tokio::test]
async fn v1_examples_are_accepted_and_all_frames_match_their_schemas() {
    let document = Document::asyncapi();
    let model = ScriptedModel::start().await;
    model.queue_answer("fail", Answer::error(400, "bad", "no"));
    model.queue_answer("again", Script::new().role().text("half ").disconnect());
    let slow = || Script::new().role().text("so far ").hang();
    model.queue_answer("slow", slow());
    let mut server = start(&model).await;
    let mut expected = Expected::of(&document, "v1");
    let mut sent = BTreeSet::new();

    for (name, message) in messages(&document, "v1", "receive") {
        for example in examples(message) {
            let kind = example["type"].as_str().unwrap();
            let mut device = V1Client::open(server.port(), "user123").await;
            if kind == "message" {
                let id = example["id"].as_str().unwrap().to_owned();
                device.send_message_frame(&example).await;
                let end = device.wait_for_terminal_frame(&id).await;
                assert_eq!(end["type"], "response", "{name}: {end}");
            } else {
                device.send_text(&example.to_string()).await;
                let answer = if kind == "cancel" {
                    "cancel_result"
                } else {
                    "pong"
                };
                device.wait_for_type(answer).await;
            }
            device.frames.iter().for_each(|frame| expected.check(frame));
            sent.insert(kind.to_owned());
        }
    }
    let kinds = ["message", "cancel", "ping"].map(str::to_owned);
    assert_eq!(sent, BTreeSet::from(kinds));

    // What no example brings: a failure, a refusal, another attempt; an answer that is being
    // written, seen by a second device, and cancelled; a server that stops.
    let mut device = V1Client::open(server.port(), "user123").await;
    device.send_and_wait("e1", "fail").await;
    device
        .send_text(&json!({"type": "message", "content": "x"}).to_string())
        .await;
    device.wait_for_type("error").await;
    device.send_and_wait("e2", "again").await;
    device.send_message("e3", "slow").await;
    device.wait_for_text("e3", "so far").await;
    let mut other = V1Client::open(server.port(), "user123").await;
    other.wait_for_type("snapshot").await;
    other.send_message("e4", "waits").await;
    device.cancel("e3").await;
    other.wait_for_terminal_frames(&["e3", "e4"]).await;
    device.wait_for_terminal_frames(&["e3", "e4"]).await;
    server.terminate();
    device.wait_for_type("closing").await;
    for frame in device.frames.iter().chain(&other.frames) {
        expected.check(frame);
    }
    expected.complete();
    server.wait_exit(crate::support::TEST_TIMEOUT).await;
}
