//! Sends the examples of all documented WebSocket frames to a server, and validates every frame
//! that the server sends against its schema.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::Document;
use crate::support::classic::ClassicClient;
use crate::support::model::{Answer, Script, ScriptedModel};
use crate::support::process::ProcessSpec;
use crate::support::v1::V1Client;

/// The documented messages of a channel that the server sends or receives (`action`), with their
/// names.
fn messages<'a>(document: &'a Document, channel: &str, action: &str) -> Vec<(String, &'a Value)> {
    let channel = format!("#/channels/{channel}");
    let operations = document.root["operations"].as_object().unwrap().values();
    let operations = operations.filter(|operation| {
        operation["action"] == action && operation["channel"]["$ref"] == channel.as_str()
    });
    operations
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

/// The documented frames that a server sends on a channel. Every frame must be one of them, and a
/// test must have received each of them.
struct DocumentedFrames<'a> {
    document: &'a Document,
    schema_by_type: BTreeMap<String, &'a Value>,
    received_types: BTreeSet<String>,
}

impl<'a> DocumentedFrames<'a> {
    fn from_channel(document: &'a Document, channel: &str) -> Self {
        let schema_by_type = messages(document, channel, "send")
            .into_iter()
            .map(|(_, message)| {
                let frame_type =
                    &document.resolve(&message["payload"])["properties"]["type"]["const"];
                (frame_type.as_str().unwrap().to_owned(), &message["payload"])
            });
        Self {
            document,
            schema_by_type: schema_by_type.collect(),
            received_types: BTreeSet::new(),
        }
    }

    /// Validates a frame against the schema of its type.
    fn assert_documented(&mut self, frame: &Value) {
        let frame_type = frame["type"].as_str().unwrap_or_default();
        let schema = self.schema_by_type.get(frame_type);
        let schema = schema.unwrap_or_else(|| panic!("{frame_type:?} is not documented: {frame}"));
        self.document.assert_valid(schema, frame, frame_type);
        self.received_types.insert(frame_type.to_owned());
    }

    /// Checks that a frame of each documented type was received.
    fn assert_all_received(self) {
        let documented_types: BTreeSet<String> = self.schema_by_type.into_keys().collect();
        let missing: Vec<&String> = documented_types.difference(&self.received_types).collect();
        assert!(
            missing.is_empty(),
            "documented, but not received in this test: {missing:?}"
        );
    }
}

/// The payloads of the examples of a message.
fn examples(message: &Value) -> Vec<Value> {
    let examples = message["examples"].as_array().map(Vec::as_slice);
    let examples = examples.unwrap_or_default().iter();
    examples.map(|example| example["payload"].clone()).collect()
}

/// Starts a process with all roles that uses this model.
async fn start_embedded(model: &ScriptedModel) -> crate::support::process::ChatmeshProcess {
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
    let server = start_embedded(&model).await;
    let mut documented = DocumentedFrames::from_channel(&document, "classic");
    let mut sent_examples = 0;
    for (name, message) in messages(&document, "classic", "receive") {
        for example in examples(message) {
            let user = example["userid"].as_str().unwrap_or("user123");
            let mut client = ClassicClient::open(server.port(), user).await;
            client.send_text(&example.to_string()).await;
            let frame = client.next_frame().await;
            assert_eq!(frame["type"], "response", "{name}: {frame}");
            documented.assert_documented(&frame);
            sent_examples += 1;
        }
    }
    assert!(sent_examples >= 2, "only {sent_examples} examples");
    let mut client = ClassicClient::open(server.port(), "user123").await;
    // No example leads to a refusal or to a failed model call.
    client.send_text("{}").await;
    documented.assert_documented(&client.next_frame().await);
    documented.assert_documented(&client.send_and_wait("fail").await);
    documented.assert_all_received();
}

#[tokio::test]
async fn v1_examples_are_accepted_and_all_frames_match_their_schemas() {
    let document = Document::asyncapi();
    let model = ScriptedModel::start().await;
    model.queue_answer("fail", Answer::error(400, "bad", "no"));
    model.queue_answer("retried", Script::new().role().text("half ").disconnect());
    let endless_answer = Script::new().role().text("so far ").hang();
    model.queue_answer("endless", endless_answer);
    let mut server = start_embedded(&model).await;
    let mut documented = DocumentedFrames::from_channel(&document, "v1");
    let mut sent_types = BTreeSet::new();

    for (name, message) in messages(&document, "v1", "receive") {
        for example in examples(message) {
            let frame_type = example["type"].as_str().unwrap();
            let mut device = V1Client::open(server.port(), "user123").await;
            if frame_type == "message" {
                let id = example["id"].as_str().unwrap().to_owned();
                device.send_message_frame(&example).await;
                let terminal = device.wait_for_terminal_frame(&id).await;
                assert_eq!(terminal["type"], "response", "{name}: {terminal}");
            } else {
                device.send_text(&example.to_string()).await;
                let reply_type = if frame_type == "cancel" {
                    "cancel_result"
                } else {
                    "pong"
                };
                device.wait_for_type(reply_type).await;
            }
            device
                .frames
                .iter()
                .for_each(|frame| documented.assert_documented(frame));
            sent_types.insert(frame_type.to_owned());
        }
    }
    let client_types = ["message", "cancel", "ping"].map(str::to_owned);
    assert_eq!(sent_types, BTreeSet::from(client_types));

    // The examples do not lead to the other frames that a server sends. These need: a failed model
    // call; a refusal; a second attempt; an answer in flight that a second device receives and that
    // is cancelled; and a drain.
    let mut device = V1Client::open(server.port(), "user123").await;
    device.send_and_wait("e1", "fail").await;
    device
        .send_text(&json!({"type": "message", "content": "x"}).to_string())
        .await;
    device.wait_for_type("error").await;
    device.send_and_wait("e2", "retried").await;
    device.send_message("e3", "endless").await;
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
        documented.assert_documented(frame);
    }
    documented.assert_all_received();
    server.wait_exit(crate::support::TEST_TIMEOUT).await;
}
