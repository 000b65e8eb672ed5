//! The options of a client, the source of its token, and the questions that it sends.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use secrecy::SecretString;
use url::Url;

use super::error::ClientError;
use crate::protocol::ids::{ClientMessageId, ConversationId, UserId};

type FetchToken = Arc<dyn Fn() -> BoxFuture<'static, Result<SecretString, String>> + Send + Sync>;

/// The source of the user's token.
#[derive(Clone)]
pub enum Token {
    /// A fixed token. The client ends when the server rejects the token, for example after it has
    /// expired.
    Fixed(SecretString),
    /// A token that the server's `POST /token` issues, requested with this admin key if there is a
    /// key. If that route is disabled, or needs a key and there is no key, the client connects with
    /// a placeholder, which a server with `AUTH_MODE=open` accepts.
    Server(Option<SecretString>),
    /// A function that returns a token. The client calls it at the start, and again after the
    /// server has rejected the token.
    Callback(FetchToken),
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fixed(_) => "Fixed",
            Self::Server(_) => "Server",
            Self::Callback(_) => "Callback",
        })
    }
}

/// Options of a client.
#[derive(Debug, Clone)]
pub struct Options {
    pub(super) server: Url,
    pub(super) user: UserId,
    pub(super) token: Token,
    pub(super) retry_timeout: Duration,
}

impl Options {
    /// Options to connect to a server as a user. The server's address has the scheme `http`,
    /// `https`, `ws` or `wss` (`http` if absent) and may end with the path `/ws`. A `token` in its
    /// query becomes [`Token::Fixed`].
    ///
    /// # Errors
    /// The address or the user is invalid.
    pub fn new(server: &str, user: &str) -> Result<Self, ClientError> {
        let invalid = || {
            // The query may contain a token.
            let without_query = server.split('?').next().unwrap_or_default();
            ClientError::InvalidAddress(without_query.to_owned())
        };
        let address = if server.contains("://") {
            server.to_owned()
        } else {
            format!("http://{server}")
        };
        let mut address = address.as_str();
        let scheme = match address.split_once("://") {
            Some((scheme @ ("http" | "https"), authority_and_path)) => {
                address = authority_and_path;
                scheme
            }
            Some(("ws", authority_and_path)) => {
                address = authority_and_path;
                "http"
            }
            Some(("wss", authority_and_path)) => {
                address = authority_and_path;
                "https"
            }
            _ => return Err(invalid()),
        };
        let mut server = Url::parse(&format!("{scheme}://{address}")).map_err(|_| invalid())?;
        let token = server.query_pairs().find(|(name, _)| name == "token");
        let token = token.map_or(Token::Server(None), |(_, token)| {
            Token::Fixed(token.into_owned().into())
        });
        server.set_query(None);
        server.set_fragment(None);
        let path = server.path().trim_end_matches('/');
        let path = path.strip_suffix("/ws").unwrap_or(path).to_owned();
        server.set_path(&format!("{path}/"));
        Ok(Self {
            server,
            user: UserId::parse(user).map_err(|_| ClientError::InvalidUser)?,
            token,
            retry_timeout: Duration::from_secs(60),
        })
    }

    /// Sets the source of the user's token.
    #[must_use]
    pub fn token(mut self, token: Token) -> Self {
        self.token = token;
        self
    }

    /// Sets how long a question may wait, while there is no connection or the server cannot accept
    /// it, before its outcome counts as unknown. The default is one minute.
    #[must_use]
    pub fn retry_timeout(mut self, retry_timeout: Duration) -> Self {
        self.retry_timeout = retry_timeout;
        self
    }
}

/// A question to the model.
#[derive(Debug, Clone)]
pub struct Question {
    pub(super) id: ClientMessageId,
    pub(super) content: String,
    pub(super) conversation: Option<ConversationId>,
    pub(super) interrupt: bool,
}

impl Question {
    /// A question in the conversation `default`, with a new `id`.
    pub fn new(content: impl Into<String>) -> Self {
        Self {
            id: ClientMessageId::random(),
            content: content.into(),
            conversation: None,
            interrupt: false,
        }
    }

    /// Sets the conversation.
    #[must_use]
    pub fn in_conversation(mut self, conversation: ConversationId) -> Self {
        self.conversation = Some(conversation);
        self
    }

    /// Sets the `id`. A question with the `id` of an earlier question gets that question's answer
    /// again.
    #[must_use]
    pub fn with_id(mut self, id: ClientMessageId) -> Self {
        self.id = id;
        self
    }

    /// Makes the server cancel the conversation's pending messages before it accepts this question.
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
    fn common_forms_of_an_address_are_accepted() {
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
    fn token_in_the_address_is_used_and_never_printed() {
        let options = Options::new("ws://h:1/ws?token=sec%2Bret&userid=x", "me").unwrap();
        assert!(matches!(options.token, Token::Fixed(_)));
        assert!(!format!("{options:?}").contains("sec"));
        let error = Options::new("ftp://h/?token=secret", "me").unwrap_err();
        assert!(!error.to_string().contains("secret"));
    }
}
