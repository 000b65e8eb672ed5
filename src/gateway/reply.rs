//! HTTP answers of the gateway's own.

use std::borrow::Cow;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use serde_json::json;

use crate::protocol::error_code::ErrorCode;

pub(super) type Reply = Response<Full<Bytes>>;

/// Why a request is not served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) code: ErrorCode,
    pub(super) message: Cow<'static, str>,
}

impl Refusal {
    pub(super) const fn bad_request(message: &'static str) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            code: ErrorCode::InvalidMessage,
            message: Cow::Borrowed(message),
        }
    }

    pub(super) const fn not_found() -> Self {
        Self {
            status: StatusCode::NOT_FOUND,
            code: ErrorCode::InvalidMessage,
            message: Cow::Borrowed("nothing is here"),
        }
    }

    pub(super) const fn method() -> Self {
        Self {
            status: StatusCode::METHOD_NOT_ALLOWED,
            code: ErrorCode::InvalidMessage,
            message: Cow::Borrowed("this method is not served here"),
        }
    }

    pub(super) const fn unauthorized(message: &'static str) -> Self {
        Self {
            status: StatusCode::UNAUTHORIZED,
            code: ErrorCode::Unauthorized,
            message: Cow::Borrowed(message),
        }
    }

    pub(super) const fn forbidden(message: &'static str) -> Self {
        Self {
            status: StatusCode::FORBIDDEN,
            code: ErrorCode::Unauthorized,
            message: Cow::Borrowed(message),
        }
    }

    pub(super) const fn unavailable(message: &'static str) -> Self {
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            code: ErrorCode::Unavailable,
            message: Cow::Borrowed(message),
        }
    }

    pub(super) fn reply(&self) -> Reply {
        let mut reply = json_reply(
            self.status,
            &json!({"type": "error", "code": self.code, "message": self.message}),
        );
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
