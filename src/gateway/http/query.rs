//! Parses the query parameters of a request, for the handlers of the routes and for the WebSocket
//! handshake.

use std::borrow::Cow;

use hyper::{Request, Uri};

use super::response::HttpError;
use crate::protocol::ids::UserId;

/// A request without its body, because no route reads a body.
pub(in crate::gateway) type Head = Request<()>;

/// The decoded query parameters of a request. If a parameter is repeated, its last value counts.
pub(in crate::gateway) struct Query<'a> {
    userid: Option<Cow<'a, str>>,
    pub(in crate::gateway) token: Option<Cow<'a, str>>,
    /// The position to resume from. An empty parameter counts as absent.
    pub(in crate::gateway) since: Option<Cow<'a, str>>,
    /// The message id at which a page of older turns begins.
    pub(super) before: Option<Cow<'a, str>>,
    /// The conversation after which a page of conversations begins.
    pub(super) after: Option<Cow<'a, str>>,
    /// Maximum number of entries of a page.
    pub(super) limit: Option<Cow<'a, str>>,
}

impl<'a> Query<'a> {
    pub(in crate::gateway) fn parse(uri: &'a Uri) -> Self {
        let mut query = Self {
            userid: None,
            token: None,
            since: None,
            before: None,
            after: None,
            limit: None,
        };
        let raw = uri.query().unwrap_or_default();
        for (name, value) in url::form_urlencoded::parse(raw.as_bytes()) {
            match &*name {
                "userid" => query.userid = Some(value),
                "token" => query.token = Some(value),
                "since" => query.since = Some(value).filter(|value| !value.is_empty()),
                "before" => query.before = Some(value),
                "after" => query.after = Some(value),
                "limit" => query.limit = Some(value),
                _ => {}
            }
        }
        query
    }

    /// Whether the query has the parameter `userid`, valid or not.
    pub(in crate::gateway) fn has_userid(&self) -> bool {
        self.userid.is_some()
    }

    /// Returns the user that `userid` names, or an error if the parameter is absent or invalid.
    pub(in crate::gateway) fn user(&self) -> Result<UserId, HttpError> {
        let userid = self
            .userid
            .as_deref()
            .ok_or(HttpError::bad_request("`userid` is missing"))?;
        UserId::parse(userid).map_err(|_| {
            HttpError::bad_request(
                "`userid` must be 1 to 128 characters of A-Z a-z 0-9 . _ : @ | + -",
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parameters_are_decoded_before_they_are_validated() {
        let uri: Uri = "/ws?token=a%2Bb&userid=al%69ce%40x".parse().unwrap();
        let query = Query::parse(&uri);
        assert_eq!(query.user().unwrap().as_str(), "alice@x");
        assert_eq!(query.token.as_deref(), Some("a+b"));
        for bad in [
            "/ws",
            "/ws?userid=",
            "/ws?userid=a%0d%0ab",
            "/ws?userid=%ff",
            "/ws?userid=*",
        ] {
            let uri: Uri = bad.parse().unwrap();
            assert!(Query::parse(&uri).user().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn encoded_parameter_is_read_as_written(value in ".{1,60}") {
            let pairs = [("before", &value), ("since", &value), ("token", &value)];
            let text = url::form_urlencoded::Serializer::new(String::new())
                .extend_pairs(pairs)
                .finish();
            let uri: Uri = format!("/ws?{text}").parse().unwrap();
            let query = Query::parse(&uri);
            for read in [&query.before, &query.since, &query.token] {
                prop_assert_eq!(read.as_deref(), Some(&*value));
            }
        }
    }
}
