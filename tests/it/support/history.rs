//! A client of the HTTP routes of the history.

use reqwest::Method;
use serde_json::Value;
use tokio::time::{Duration, Instant, sleep};

use super::TEST_TIMEOUT;
use super::http::{Reply, try_call};

/// A turn of a conversation as the history returns it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HistoryTurn {
    pub(crate) message_id: String,
    pub(crate) question: Option<String>,
    pub(crate) answer: String,
    /// The parts of the answer; null if the turn has no such field.
    pub(crate) parts: Value,
    pub(crate) status: String,
}

impl HistoryTurn {
    fn from_json(turn: &Value) -> Self {
        let text = |field: &str| turn[field].as_str().unwrap_or("").to_owned();
        Self {
            message_id: text("message_id"),
            question: turn["question"].as_str().map(str::to_owned),
            answer: text("answer"),
            parts: turn["parts"].clone(),
            status: text("status"),
        }
    }
}

/// Reads and deletes the history of one user at one gateway, as that user.
pub(crate) struct HistoryClient {
    port: u16,
    user: String,
}

impl HistoryClient {
    pub(crate) fn new(port: u16, user: &str) -> Self {
        Self {
            port,
            user: user.to_owned(),
        }
    }

    async fn try_call(&self, method: Method, path: &str) -> Result<Reply, reqwest::Error> {
        let separator = if path.contains('?') { '&' } else { '?' };
        let url = format!(
            "http://127.0.0.1:{}{path}{separator}userid={}",
            self.port, self.user
        );
        try_call(method, &url, &[("authorization", "Bearer any-token")]).await
    }

    async fn call(&self, method: Method, path: &str) -> Reply {
        self.try_call(method.clone(), path)
            .await
            .unwrap_or_else(|e| panic!("{method} {path}: {e:?}"))
    }

    async fn list(&self, path: &str, field: &str) -> Vec<Value> {
        let reply = self.call(Method::GET, path).await;
        assert_eq!(reply.status, 200, "{path}: {}", reply.body);
        let body = reply.json();
        let entries = body[field].as_array();
        entries
            .unwrap_or_else(|| panic!("{path} has no {field}: {body}"))
            .clone()
    }

    /// The names of the conversations, in the order of the listing.
    pub(crate) async fn conversations(&self) -> Vec<String> {
        let entries = self.list("/conversations", "conversations").await;
        let name = |entry: &Value| entry["conversation_id"].as_str().map(str::to_owned);
        entries
            .iter()
            .map(|entry| name(entry).unwrap_or_else(|| panic!("no conversation_id: {entry}")))
            .collect()
    }

    /// One page of at most `limit` turns that are older than the turn `before`, newest first.
    pub(crate) async fn page(
        &self,
        conversation: &str,
        before: Option<&str>,
        limit: usize,
    ) -> Vec<HistoryTurn> {
        let turns = self
            .list(&page_path(conversation, before, limit), "messages")
            .await;
        turns.iter().map(HistoryTurn::from_json).collect()
    }

    /// The newest 100 turns, newest first.
    pub(crate) async fn turns(&self, conversation: &str) -> Vec<HistoryTurn> {
        self.page(conversation, None, 100).await
    }

    /// All stored turns, newest first. Retries while a gateway or a backend is unavailable.
    pub(crate) async fn all_turns(&self, conversation: &str) -> Vec<HistoryTurn> {
        let deadline = Instant::now() + TEST_TIMEOUT;
        let mut turns: Vec<HistoryTurn> = Vec::new();
        let mut before: Option<String> = None;
        loop {
            let path = page_path(conversation, before.as_deref(), 200);
            let reply = self.try_call(Method::GET, &path).await;
            let Some(reply) = reply.ok().filter(|reply| reply.status == 200) else {
                assert!(
                    Instant::now() < deadline,
                    "the history of {} is unavailable",
                    self.user
                );
                sleep(Duration::from_millis(100)).await;
                continue;
            };
            let body = reply.json();
            let page = body["messages"].as_array().cloned().unwrap_or_default();
            turns.extend(page.iter().map(HistoryTurn::from_json));
            match body["next"].as_str() {
                Some(next) => before = Some(next.to_owned()),
                None => return turns,
            }
        }
    }

    /// The turn of one message, or `None` if it is not among the newest 100 turns.
    pub(crate) async fn turn(&self, conversation: &str, message_id: &str) -> Option<HistoryTurn> {
        let turns = self.turns(conversation).await;
        turns.into_iter().find(|turn| turn.message_id == message_id)
    }

    /// Deletes one conversation and returns the status.
    pub(crate) async fn delete(&self, conversation: &str) -> u16 {
        let path = format!("/conversations/{conversation}");
        self.call(Method::DELETE, &path).await.status
    }

    /// Deletes all conversations of the user and returns the status.
    pub(crate) async fn delete_all(&self) -> u16 {
        self.call(Method::DELETE, "/conversations").await.status
    }
}

fn page_path(conversation: &str, before: Option<&str>, limit: usize) -> String {
    let mut path = format!("/conversations/{conversation}/messages?limit={limit}");
    if let Some(before) = before {
        path.push_str("&before=");
        path.push_str(before);
    }
    path
}
