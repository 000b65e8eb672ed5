//! Reads the user's history over HTTP: the methods of [`Client`] for pages of conversations and
//! turns.

use reqwest::{Method, Response, StatusCode};
use secrecy::ExposeSecret as _;
use url::Url;

use super::Client;
use super::error::ClientError;
use crate::protocol::ids::{ConversationId, MessageId};
use crate::protocol::wire::http::{ConversationList, MessageList};

impl Client {
    /// Returns a page of the user's conversations, the conversation with the newest turn first.
    /// `after` is the `next` of the previous page; `None` returns the first page.
    ///
    /// # Errors
    /// The server cannot be reached or rejects the request.
    pub async fn conversations(
        &self,
        after: Option<&ConversationId>,
    ) -> Result<ConversationList, ClientError> {
        let mut url = self.server.url(&["conversations"]);
        if let Some(after) = after {
            url.query_pairs_mut().append_pair("after", after.as_str());
        }
        let response = self.get(url).await?;
        if response.status() == StatusCode::OK {
            return self.server.body(response).await;
        }
        Err(self.server.error_from(response).await)
    }

    /// Returns a page of a conversation's turns, newest first. `before` is the `next` of the
    /// previous page; `None` returns the first page. The page is empty if the conversation does not
    /// exist, or the turn `before` no longer exists.
    ///
    /// # Errors
    /// The server cannot be reached or rejects the request.
    pub async fn messages(
        &self,
        conversation: &ConversationId,
        before: Option<&MessageId>,
        limit: usize,
    ) -> Result<MessageList, ClientError> {
        let path = ["conversations", conversation.as_str(), "messages"];
        let mut url = self.server.url(&path);
        url.query_pairs_mut()
            .append_pair("limit", &limit.max(1).to_string());
        if let Some(before) = before {
            url.query_pairs_mut().append_pair("before", before.as_str());
        }
        let response = self.get(url).await?;
        match response.status() {
            StatusCode::OK => self.server.body(response).await,
            StatusCode::NOT_FOUND => Ok(MessageList {
                conversation_id: conversation.clone(),
                messages: Vec::new(),
                next: None,
            }),
            _ => Err(self.server.error_from(response).await),
        }
    }

    async fn get(&self, url: Url) -> Result<Response, ClientError> {
        let token = self.server.token().await?;
        let request = self.server.request(Method::GET, url);
        self.server
            .send(request.bearer_auth(token.expose_secret()))
            .await
    }
}
