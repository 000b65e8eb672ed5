//! What was said before, over HTTP.

use reqwest::{Method, Response, StatusCode};
use secrecy::ExposeSecret as _;
use url::Url;

use super::Client;
use super::error::ClientError;
use crate::protocol::ids::{ConversationId, MessageId};
use crate::protocol::wire::http::{ConversationList, MessageList};

impl Client {
    /// A page of the user's conversations, newest turn first; `after` is the page before's `next`.
    ///
    /// # Errors
    /// The server can't be asked.
    pub async fn conversations(
        &self,
        after: Option<&ConversationId>,
    ) -> Result<ConversationList, ClientError> {
        let mut url = self.link.url(&["conversations"]);
        if let Some(after) = after {
            url.query_pairs_mut().append_pair("after", after.as_str());
        }
        let response = self.get(url).await?;
        if response.status() == StatusCode::OK {
            return self.link.body(response).await;
        }
        Err(self.link.refusal(response).await)
    }

    /// A page of a conversation's turns, newest first; `before` is the page before's `next`. An
    /// unknown conversation has none, and neither has what is before a turn that is gone.
    ///
    /// # Errors
    /// The server can't be asked.
    pub async fn messages(
        &self,
        conversation: &ConversationId,
        before: Option<&MessageId>,
        limit: usize,
    ) -> Result<MessageList, ClientError> {
        let mut url = self
            .link
            .url(&["conversations", conversation.as_str(), "messages"]);
        url.query_pairs_mut()
            .append_pair("limit", &limit.max(1).to_string());
        if let Some(before) = before {
            url.query_pairs_mut().append_pair("before", before.as_str());
        }
        let response = self.get(url).await?;
        match response.status() {
            StatusCode::OK => self.link.body(response).await,
            StatusCode::NOT_FOUND => Ok(MessageList {
                conversation_id: conversation.clone(),
                messages: Vec::new(),
                next: None,
            }),
            _ => Err(self.link.refusal(response).await),
        }
    }

    async fn get(&self, url: Url) -> Result<Response, ClientError> {
        let token = self.link.token().await?;
        let request = self.link.request(Method::GET, url);
        self.link
            .send(request.bearer_auth(token.expose_secret()))
            .await
    }
}
