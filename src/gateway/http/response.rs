//! Creates the responses of the gateway's own routes, and defines the error that every route can
//! return.

use std::borrow::Cow;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use serde::Serialize;
use serde_json::json;

use crate::protocol::error_code::ErrorCode;

pub(in crate::gateway) type HttpResponse = Response<Full<Bytes>>;

/// The refusal of a request. Its response has the same body as an `error` frame, so that clients
/// need only one parser.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::gateway) struct HttpError {
    pub(in crate::gateway) status: StatusCode,
    /// A code of `error` frames, or `not_found` or `method_not_allowed`, which only routes have.
    pub(in crate::gateway) code: &'static str,
    pub(in crate::gateway) message: Cow<'static, str>,
    /// The value of the header `Allow` of a 405: the methods that the route serves.
    pub(in crate::gateway) allow: Option<&'static str>,
}

impl HttpError {
    const fn new(status: StatusCode, code: &'static str, message: &'static str) -> Self {
        Self {
            status,
            code,
            message: Cow::Borrowed(message),
            allow: None,
        }
    }

    pub(in crate::gateway) const fn bad_request(message: &'static str) -> Self {
        let code = ErrorCode::InvalidMessage.as_str();
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    pub(in crate::gateway) const fn not_found() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "not_found",
            "there is no resource at this path",
        )
    }

    /// `allow` lists the methods of the route, separated by commas.
    pub(in crate::gateway) const fn method_not_allowed(allow: &'static str) -> Self {
        Self {
            status: StatusCode::METHOD_NOT_ALLOWED,
            code: "method_not_allowed",
            message: Cow::Borrowed("this method is not served here"),
            allow: Some(allow),
        }
    }

    pub(in crate::gateway) const fn unauthorized(message: &'static str) -> Self {
        let code = ErrorCode::Unauthorized.as_str();
        Self::new(StatusCode::UNAUTHORIZED, code, message)
    }

    pub(in crate::gateway) const fn forbidden(message: &'static str) -> Self {
        let code = ErrorCode::Unauthorized.as_str();
        Self::new(StatusCode::FORBIDDEN, code, message)
    }

    pub(in crate::gateway) const fn unavailable(message: &'static str) -> Self {
        let code = ErrorCode::Unavailable.as_str();
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, message)
    }

    pub(in crate::gateway) fn to_response(&self) -> HttpResponse {
        let mut response = json_response(
            self.status,
            &json!({"type": "error", "code": self.code, "message": self.message}),
        );
        let headers = response.headers_mut();
        if let Some(allow) = self.allow {
            headers.insert(ALLOW, HeaderValue::from_static(allow));
        }
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

pub(in crate::gateway) fn json_response(status: StatusCode, body: &impl Serialize) -> HttpResponse {
    // The default is never used: serialization fails only for maps whose keys are not strings.
    let encoded = serde_json::to_vec(body).unwrap_or_default();
    let mut response = Response::new(Full::new(Bytes::from(encoded)));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

/// Creates a 204, a response without a body.
pub(super) fn no_content() -> HttpResponse {
    let mut response = Response::new(Full::new(Bytes::new()));
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

/// Forbids caches to store `response`, which holds a user's data or a token.
pub(super) fn forbid_caching(response: &mut HttpResponse) {
    let no_store = HeaderValue::from_static("no-store");
    response.headers_mut().insert(CACHE_CONTROL, no_store);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_route_and_wrong_method_have_their_own_codes() {
        let not_found = HttpError::not_found();
        let wrong_method = HttpError::method_not_allowed("GET, HEAD");

        assert_eq!(
            (not_found.code, not_found.status.as_u16()),
            ("not_found", 404)
        );
        assert!(not_found.to_response().headers().get(ALLOW).is_none());
        assert_eq!(
            (wrong_method.code, wrong_method.status.as_u16()),
            ("method_not_allowed", 405)
        );
        assert_eq!(wrong_method.to_response().headers()[ALLOW], "GET, HEAD");
    }
}
