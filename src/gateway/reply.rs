//! HTTP answers of the gateway's own.

use std::borrow::Cow;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use serde_json::json;

use crate::protocol::error_code::ErrorCode;

pub(super) type Reply = Response<Full<Bytes>>;

/// Why a request is not served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    /// An `error` frame's, or one of those that only a route can have.
    pub(super) code: &'static str,
    pub(super) message: Cow<'static, str>,
    /// Of a 405: the methods that there are.
    pub(super) allow: Option<&'static str>,
}

impl Refusal {
    pub(super) const fn bad_request(message: &'static str) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            code: ErrorCode::InvalidMessage.as_str(),
            allow: None,
            message: Cow::Borrowed(message),
        }
    }

    pub(super) const fn not_found() -> Self {
        Self {
            status: StatusCode::NOT_FOUND,
            code: "not_found",
            allow: None,
            message: Cow::Borrowed("nothing is here"),
        }
    }

    /// `allow` are the methods that this route has.
    pub(super) const fn method(allow: &'static str) -> Self {
        Self {
            status: StatusCode::METHOD_NOT_ALLOWED,
            code: "method_not_allowed",
            allow: Some(allow),
            message: Cow::Borrowed("this method is not served here"),
        }
    }

    pub(super) const fn unauthorized(message: &'static str) -> Self {
        Self {
            status: StatusCode::UNAUTHORIZED,
            code: ErrorCode::Unauthorized.as_str(),
            allow: None,
            message: Cow::Borrowed(message),
        }
    }

    pub(super) const fn forbidden(message: &'static str) -> Self {
        Self {
            status: StatusCode::FORBIDDEN,
            code: ErrorCode::Unauthorized.as_str(),
            allow: None,
            message: Cow::Borrowed(message),
        }
    }

    pub(super) const fn unavailable(message: &'static str) -> Self {
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            code: ErrorCode::Unavailable.as_str(),
            allow: None,
            message: Cow::Borrowed(message),
        }
    }

    pub(super) fn reply(&self) -> Reply {
        let mut reply = json_reply(
            self.status,
            &json!({"type": "error", "code": self.code, "message": self.message}),
        );
        if let Some(allow) = self.allow {
            reply
                .headers_mut()
                .insert(ALLOW, HeaderValue::from_static(allow));
        }
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            reply
                .headers_mut()
                .insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        reply
    }
}

pub(super) fn json_reply(status: StatusCode, body: &serde_json::Value) -> Reply {
    let mut reply = Response::new(Full::new(Bytes::from(body.to_string())));
    *reply.status_mut() = status;
    reply
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_that_is_missing_and_a_method_that_is_wrong_have_codes_of_their_own() {
        let missing = Refusal::not_found();
        assert_eq!((missing.code, missing.status.as_u16()), ("not_found", 404));
        assert!(missing.reply().headers().get(ALLOW).is_none());
        let wrong = Refusal::method("GET, HEAD");
        let (code, status) = ("method_not_allowed", 405);
        assert_eq!((wrong.code, wrong.status.as_u16()), (code, status));
        assert_eq!(wrong.reply().headers()[ALLOW], "GET, HEAD");
    }
}
