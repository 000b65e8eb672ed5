//! Serves the chat page and the browser client: the files of `web/`, compiled into the executable.

use std::collections::HashMap;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{
    ACCESS_CONTROL_ALLOW_ORIGIN, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, HOST,
    HeaderName, HeaderValue, IF_NONE_MATCH, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use hyper::{HeaderMap, Method, Response, StatusCode};
use uuid::Uuid;

use super::response::{HttpError, HttpResponse};
use crate::config::settings::{AuthMode, GatewaySettings, JwtSettings, TokenEndpoint};

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const IMAGE: &str = "image/svg+xml";
const TEXT: &str = "text/plain; charset=utf-8";

macro_rules! files {
    ($( $kind:ident $path:literal; )*) => {
        &[$( (concat!("/", $path), $kind, include_bytes!(concat!("../../../web/", $path))) ),*]
    };
}

/// The path, content type and content of every served file except `index.html`.
const FILES: &[(&str, &str, &[u8])] = files! {
    SCRIPT "chatmesh.js";
    TEXT "chatmesh.d.ts";
    IMAGE "app/icon.svg";
    STYLE "app/theme.css";
    STYLE "app/layout.css";
    STYLE "app/parts.css";
    STYLE "app/thread.css";
    SCRIPT "app/composer.js";
    SCRIPT "app/connection-status.js";
    SCRIPT "app/conversations.js";
    SCRIPT "app/dom.js";
    SCRIPT "app/drawer.js";
    SCRIPT "app/identity.js";
    SCRIPT "app/main.js";
    SCRIPT "app/sidebar.js";
    SCRIPT "app/theme.js";
    SCRIPT "app/theme-boot.js";
    SCRIPT "app/thread.js";
    SCRIPT "app/turn.js";
    SCRIPT "app/markdown/blocks.js";
    SCRIPT "app/markdown/highlight.js";
    SCRIPT "app/markdown/inline.js";
    SCRIPT "app/markdown/view.js";
    SCRIPT "app/parts/blocks.js";
    SCRIPT "app/parts/view.js";
};

const INDEX_HTML: &str = include_str!("../../../web/index.html");

/// The part of `index.html` that tells the page's script how to get a token. The gateway replaces
/// `ask` by the value of [`token_source`].
const TOKEN_FIELD: &str = r#"name="chatmesh-token" content="ask""#;

/// Path of the browser client, which pages of other origins may import.
const CLIENT_PATH: &str = "/chatmesh.js";

const CROSS_ORIGIN_OPENER_POLICY: HeaderName =
    HeaderName::from_static("cross-origin-opener-policy");

/// A file of the chat page, with the values of its response's headers.
#[derive(Debug)]
pub(super) struct PageFile {
    content_type: &'static str,
    bytes: Bytes,
    etag: HeaderValue,
    /// Whether pages of other origins may read the file.
    is_public: bool,
}

/// The chat page: all its files by path, and the browser client.
#[derive(Debug)]
pub(in crate::gateway) struct Page {
    files: HashMap<&'static str, PageFile>,
}

/// Returns the word that tells the page how to get a token. `any`: the gateway accepts every text
/// as a token. `endpoint`: `POST /token` issues a token to everybody. `ask`: the page asks its user
/// for a token.
fn token_source(settings: &GatewaySettings) -> &'static str {
    let can_sign = || settings.jwt.as_ref().is_some_and(JwtSettings::can_sign);
    match (settings.auth, &settings.token_endpoint) {
        (AuthMode::Open, _) => "any",
        (AuthMode::Stored, TokenEndpoint::Open) => "endpoint",
        (AuthMode::Jwt, TokenEndpoint::Open) if can_sign() => "endpoint",
        _ => "ask",
    }
}

impl Page {
    pub(in crate::gateway) fn new(settings: &GatewaySettings) -> Self {
        let source = token_source(settings);
        let field = format!(r#"name="chatmesh-token" content="{source}""#);
        let index = INDEX_HTML.replacen(TOKEN_FIELD, &field, 1);
        let mut files: HashMap<_, _> = FILES
            .iter()
            .map(|(path, kind, bytes)| (*path, PageFile::new(kind, Bytes::from_static(bytes))))
            .collect();
        if let Some(client) = files.get_mut(CLIENT_PATH) {
            client.is_public = true;
        }
        for path in ["/", "/test-ui.html"] {
            files.insert(path, PageFile::new(HTML, Bytes::from(index.clone())));
        }
        Self { files }
    }

    pub(super) fn file(&self, path: &str) -> Option<&PageFile> {
        self.files.get(path)
    }
}

impl PageFile {
    fn new(content_type: &'static str, bytes: Bytes) -> Self {
        // The ETag is derived from the content alone, so that all gateways of a version send the
        // same ETag.
        let hash = Uuid::new_v5(&Uuid::NAMESPACE_URL, &bytes).simple();
        let etag = HeaderValue::try_from(format!("\"{hash}\""));
        Self {
            content_type,
            bytes,
            etag: etag.unwrap_or(HeaderValue::from_static("\"\"")),
            is_public: false,
        }
    }

    /// Answers a request for this file: with 304 if the client has the current version, and with
    /// 405 if the method is neither GET nor HEAD.
    pub(super) fn serve(&self, method: &Method, request: &HeaderMap) -> HttpResponse {
        if method != Method::GET && method != Method::HEAD {
            return HttpError::method_not_allowed("GET, HEAD").to_response();
        }
        let is_current = request
            .get_all(IF_NONE_MATCH)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .any(|etag| matches_weakly(etag.trim(), &self.etag));
        let mut response = if is_current {
            let mut response = Response::new(Full::new(Bytes::new()));
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            response
        } else {
            // If the method is HEAD, hyper omits the body and keeps `Content-Length`.
            Response::new(Full::new(self.bytes.clone()))
        };
        let host = request.get(HOST).and_then(|host| host.to_str().ok());
        let headers = response.headers_mut();
        let static_value = |text| HeaderValue::from_static(text);
        headers.insert(CONTENT_TYPE, static_value(self.content_type));
        headers.insert(ETAG, self.etag.clone());
        // Browsers must revalidate the file before each use (mostly answered by 304), so that they
        // use a new version at once.
        headers.insert(CACHE_CONTROL, static_value("no-cache"));
        headers.insert(CONTENT_SECURITY_POLICY, content_security_policy(host));
        headers.insert(X_CONTENT_TYPE_OPTIONS, static_value("nosniff"));
        headers.insert(REFERRER_POLICY, static_value("no-referrer"));
        headers.insert(CROSS_ORIGIN_OPENER_POLICY, static_value("same-origin"));
        if self.is_public {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, static_value("*"));
        }
        response
    }
}

/// Whether an entry of `If-None-Match` matches `etag`, by the weak comparison of RFC 9110. The
/// entry `*` matches every tag.
fn matches_weakly(candidate: &str, etag: &HeaderValue) -> bool {
    let opaque = candidate.strip_prefix("W/").unwrap_or(candidate);
    candidate == "*" || opaque.as_bytes() == etag.as_bytes()
}

/// Returns the value of `Content-Security-Policy` that allows the page to load files from, and to
/// connect to, this gateway only. `host` is the `Host` header of the request.
fn content_security_policy(host: Option<&str>) -> HeaderValue {
    // Some browsers don't count WebSockets of the same host as 'self', so their URLs are listed. A
    // host with any other character could add directives to the policy, so its URLs are left out.
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-:".contains(&byte);
    let sockets = match host {
        Some(host) if !host.is_empty() && host.bytes().all(is_plain) => {
            format!(" ws://{host} wss://{host}")
        }
        _ => String::new(),
    };
    let policy = format!(
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
         connect-src 'self'{sockets}; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'"
    );
    HeaderValue::try_from(policy).unwrap_or(HeaderValue::from_static("default-src 'none'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_has_exactly_one_field_for_the_token_source() {
        assert_eq!(INDEX_HTML.matches(TOKEN_FIELD).count(), 1);
    }

    #[test]
    fn host_that_could_change_the_policy_is_left_out() {
        let policy = |host| {
            let policy = content_security_policy(Some(host));
            policy.to_str().unwrap().to_owned()
        };
        assert!(policy("a.example:8000").contains("wss://a.example:8000;"));
        for bad in ["a; script-src *", "a 'unsafe-inline'", "*", "[::1]:80", ""] {
            let policy = policy(bad);
            assert!(policy.contains("connect-src 'self';"), "{policy}");
        }
    }

    #[test]
    fn every_file_of_the_page_is_served() {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/web/app");
        let mut folders = vec![std::path::PathBuf::from(root)];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let name = format!("/app{}", path.to_str().unwrap().replace(root, ""));
                assert!(FILES.iter().any(|(path, ..)| *path == name), "{name}");
            }
        }
    }
}
