//! Where to connect, as whom, and what to ask.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use secrecy::SecretString;
use url::Url;

use super::error::ClientError;
use crate::protocol::ids::{ClientMessageId, ConversationId, UserId};

type Fetch = Arc<dyn Fn() -> BoxFuture<'static, Result<SecretString, String>> + Send + Sync>;

/// From where tokens come.
#[derive(Clone)]
pub enum Token {
    /// This one, as long as it is good.
    Given(SecretString),
    /// The server's `POST /token`, with the admin key where one is given. A server that has no
    /// such route, or wants a key for it where none is given, is tried without a real token,
    /// which one with `AUTH_MODE=open` takes.
    Server(Option<SecretString>),
    /// Asked for one at the start, and again when the server does not take it any more.
    Callback(Fetch),
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Given(_) => "Given",
            Self::Server(_) => "Server",
            Self::Callback(_) => "Callback",
        })
    }
}

/// How to connect.
#[derive(Debug, Clone)]
pub struct Options {
    pub(super) server: Url,
    pub(super) user: UserId,
    pub(super) token: Token,
    pub(super) patience: Duration,
}

impl Options {
    /// To this server, as this user. The server is `http://`, `https://`, `ws://` or `wss://`, with
    /// or without the path `/ws`; without a scheme it is `http://`. A `token` in its query is taken
    /// as [`Token::Given`].
    ///
    /// # Errors
    /// It is no address, or no user.
    pub fn new(server: &str, user: &str) -> Result<Self, ClientError> {
        let wrong = || {
            // What follows the question mark may be a secret.
            let shown = server.split('?').next().unwrap_or_default();
            ClientError::Address(shown.to_owned())
        };
        let text = if server.contains("://") {
            server.to_owned()
        } else {
            format!("http://{server}")
        };
        let mut text = text.as_str();
        let scheme = match text.split_once("://") {
            Some((scheme @ ("http" | "https"), rest)) => {
                text = rest;
                scheme
            }
            Some(("ws", rest)) => {
                text = rest;
                "http"
            }
            Some(("wss", rest)) => {
                text = rest;
                "https"
            }
            _ => return Err(wrong()),
        };
        let mut server = Url::parse(&format!("{scheme}://{text}")).map_err(|_| wrong())?;
        let token = server.query_pairs().find(|(name, _)| name == "token");
        let token = token.map_or(Token::Server(None), |(_, token)| {
            Token::Given(token.into_owned().into())
        });
        server.set_query(None);
        server.set_fragment(None);
        let path = server.path().trim_end_matches('/');
        let path = path.strip_suffix("/ws").unwrap_or(path).to_owned();
        server.set_path(&format!("{path}/"));
        Ok(Self {
            server,
            user: UserId::parse(user).map_err(|_| ClientError::User)?,
            token,
            patience: Duration::from_secs(60),
        })
    }

    /// With tokens from there.
    #[must_use]
    pub fn token(mut self, token: Token) -> Self {
        self.token = token;
        self
    }

    /// How long a question may wait for a lost connection, or for a server that can't take it,
    /// before it ends as lost. One minute where it is not said.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }
}

/// What is asked.
#[derive(Debug, Clone)]
pub struct Question {
    pub(super) id: ClientMessageId,
    pub(super) content: String,
    pub(super) conversation: Option<ConversationId>,
    pub(super) interrupt: bool,
}

impl Question {
    /// In the conversation `default`, with a new `id`.
    pub fn new(content: impl Into<String>) -> Self {
        Self {
            id: ClientMessageId::random(),
            content: content.into(),
            conversation: None,
            interrupt: false,
        }
    }

    /// In this conversation.
    #[must_use]
    pub fn in_conversation(mut self, conversation: ConversationId) -> Self {
        self.conversation = Some(conversation);
        self
    }

    /// With this `id`: one that was asked before brings the same answer again.
    #[must_use]
    pub fn with_id(mut self, id: ClientMessageId) -> Self {
        self.id = id;
        self
    }

    /// Cancels what is pending in its conversation first.
    #[must_use]
    pub fn interrupting(mut self) -> Self {
        self.interrupt = true;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_usual_way_to_write_an_address_is_understood() {
        for (given, base) in [
            ("127.0.0.1:8000", "http://127.0.0.1:8000/"),
            ("http://localhost:8000", "http://localhost:8000/"),
            ("ws://localhost:8000/ws", "http://localhost:8000/"),
            ("wss://chat.example/ws/", "https://chat.example/"),
            ("https://example.org/chat", "https://example.org/chat/"),
            ("[::1]:8000", "http://[::1]:8000/"),
        ] {
            let options = Options::new(given, "me").unwrap();
            assert_eq!(options.server.as_str(), base, "{given}");
        }
        for bad in ["", "ftp://x", "http://", "http://a b"] {
            assert!(Options::new(bad, "me").is_err(), "{bad}");
        }
    }

    #[test]
    fn a_token_in_the_address_is_used_and_never_shown() {
        let options = Options::new("ws://h:1/ws?token=sec%2Bret&userid=x", "me").unwrap();
        assert!(matches!(options.token, Token::Given(_)));
        assert!(!format!("{options:?}").contains("sec"));
        let error = Options::new("ftp://h/?token=secret", "me").unwrap_err();
        assert!(!error.to_string().contains("secret"));
    }
}
