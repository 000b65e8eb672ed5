//! The chat page and the browser client: the files of `web/`, which are part of the executable.

use std::collections::HashMap;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{
    ACCESS_CONTROL_ALLOW_ORIGIN, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, HOST,
    HeaderName, HeaderValue, IF_NONE_MATCH, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use hyper::{HeaderMap, Method, Response, StatusCode};
use uuid::Uuid;

use super::reply::{Refusal, Reply};
use crate::config::settings::{AuthMode, GatewaySettings, JwtSettings, TokenEndpoint};

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const IMAGE: &str = "image/svg+xml";
const TEXT: &str = "text/plain; charset=utf-8";

macro_rules! files {
    ($( $kind:ident $path:literal; )*) => {
        &[$( (concat!("/", $path), $kind, include_bytes!(concat!("../../web/", $path))) ),*]
    };
}

/// Path, type and bytes of everything but the page itself.
const FILES: &[(&str, &str, &[u8])] = files! {
    SCRIPT "chatmesh.js";
    TEXT "chatmesh.d.ts";
    IMAGE "app/icon.svg";
    STYLE "app/theme.css";
    STYLE "app/layout.css";
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
};

const INDEX: &str = include_str!("../../web/index.html");

/// Where the page reads how it gets a token; the gateway writes it there.
const TOKEN_FIELD: &str = r#"name="chatmesh-token" content="ask""#;

/// Another page may import the client from here.
const CLIENT: &str = "/chatmesh.js";

const OPENER_POLICY: HeaderName = HeaderName::from_static("cross-origin-opener-policy");

/// One file as it is sent.
#[derive(Debug)]
pub(super) struct File {
    kind: &'static str,
    bytes: Bytes,
    etag: HeaderValue,
    /// Whether pages of other origins may read it.
    shared: bool,
}

/// The files by their paths.
#[derive(Debug)]
pub(super) struct Page(HashMap<&'static str, File>);

/// How the page gets a token: `any` will do, from the `endpoint`, or it has to `ask` the person.
fn token_source(settings: &GatewaySettings) -> &'static str {
    let signs = || settings.jwt.as_ref().is_some_and(JwtSettings::signs);
    match (settings.auth, &settings.token_endpoint) {
        (AuthMode::Open, _) => "any",
        (AuthMode::Stored, TokenEndpoint::Open) => "endpoint",
        (AuthMode::Jwt, TokenEndpoint::Open) if signs() => "endpoint",
        _ => "ask",
    }
}

impl Page {
    pub(super) fn new(settings: &GatewaySettings) -> Self {
        let source = token_source(settings);
        let field = format!(r#"name="chatmesh-token" content="{source}""#);
        let index = INDEX.replacen(TOKEN_FIELD, &field, 1);
        let mut files: HashMap<_, _> = FILES
            .iter()
            .map(|(path, kind, bytes)| (*path, File::new(kind, Bytes::from_static(bytes))))
            .collect();
        if let Some(client) = files.get_mut(CLIENT) {
            client.shared = true;
        }
        for path in ["/", "/test-ui.html"] {
            files.insert(path, File::new(HTML, Bytes::from(index.clone())));
        }
        Self(files)
    }

    pub(super) fn find(&self, path: &str) -> Option<&File> {
        self.0.get(path)
    }
}

impl File {
    fn new(kind: &'static str, bytes: Bytes) -> Self {
        // Made of the content alone, so every gateway of a version says the same.
        let hash = Uuid::new_v5(&Uuid::NAMESPACE_URL, &bytes).simple();
        let etag = HeaderValue::try_from(format!("\"{hash}\""));
        Self {
            kind,
            bytes,
            etag: etag.unwrap_or(HeaderValue::from_static("\"\"")),
            shared: false,
        }
    }

    /// Answers a request for it.
    pub(super) fn serve(&self, method: &Method, headers: &HeaderMap) -> Reply {
        if method != Method::GET && method != Method::HEAD {
            return Refusal::method("GET, HEAD").reply();
        }
        let known = headers
            .get_all(IF_NONE_MATCH)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .any(|one| is_same(one.trim(), &self.etag));
        let mut reply = if known {
            let mut reply = Response::new(Full::new(Bytes::new()));
            *reply.status_mut() = StatusCode::NOT_MODIFIED;
            reply
        } else {
            // The body of an answer to HEAD is left out by hyper, its length is not.
            Response::new(Full::new(self.bytes.clone()))
        };
        let host = headers.get(HOST).and_then(|host| host.to_str().ok());
        let to = reply.headers_mut();
        let fixed = |text| HeaderValue::from_static(text);
        to.insert(CONTENT_TYPE, fixed(self.kind));
        to.insert(ETAG, self.etag.clone());
        // Asked for each time, and mostly answered by 304: a new version is there at once.
        to.insert(CACHE_CONTROL, fixed("no-cache"));
        to.insert(CONTENT_SECURITY_POLICY, policy(host));
        to.insert(X_CONTENT_TYPE_OPTIONS, fixed("nosniff"));
        to.insert(REFERRER_POLICY, fixed("no-referrer"));
        to.insert(OPENER_POLICY, fixed("same-origin"));
        if self.shared {
            to.insert(ACCESS_CONTROL_ALLOW_ORIGIN, fixed("*"));
        }
        reply
    }
}

/// By the weak comparison of RFC 9110.
fn is_same(given: &str, etag: &HeaderValue) -> bool {
    given == "*" || given.strip_prefix("W/").unwrap_or(given).as_bytes() == etag.as_bytes()
}

/// What the page may do: run and show what comes from here, talk to here, and nothing else.
fn policy(host: Option<&str>) -> HeaderValue {
    // Browsers used to disagree whether 'self' is a WebSocket too, so it is named where it can be.
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-:".contains(&byte);
    let sockets = match host {
        Some(host) if !host.is_empty() && host.bytes().all(plain) => {
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
    fn the_gateway_finds_the_place_where_it_says_how_a_token_is_got() {
        assert_eq!(INDEX.matches(TOKEN_FIELD).count(), 1);
    }

    #[test]
    fn a_host_that_could_change_the_policy_is_left_out() {
        let of = |host| policy(host).to_str().unwrap().to_owned();
        assert!(of(Some("a.example:8000")).contains("wss://a.example:8000;"));
        for bad in ["a; script-src *", "a 'unsafe-inline'", "*", "[::1]:80", ""] {
            let policy = of(Some(bad));
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
