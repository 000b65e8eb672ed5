//! Which web pages may talk to the gateway: `ALLOW_ORIGINS`, CORS, and the loopback rule of the
//! open mode.

use std::net::IpAddr;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_MAX_AGE, HOST, HeaderValue, ORIGIN, VARY,
};
use hyper::{HeaderMap, Response, StatusCode};

use super::Gateway;
use super::reply::{Refusal, Reply};
use crate::config::settings::AuthMode;

fn text(headers: &HeaderMap, name: hyper::header::HeaderName) -> Option<Result<&str, Refusal>> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    if values.next().is_some() {
        // Which of them counts is nothing to argue about.
        return Some(Err(Refusal::forbidden("a header is there twice")));
    }
    Some(
        value
            .to_str()
            .map_err(|_| Refusal::forbidden("a header is not readable")),
    )
}

/// Anybody on this machine may come in, and so could any web page by the browser of this machine:
/// through a name of its own that points here (Host), or straight (Origin).
fn is_private(gateway: &Gateway) -> bool {
    gateway.settings.auth == AuthMode::Open && gateway.loopback
}

/// Refuses requests that came by a name of somebody else's that points to this machine. What needs
/// no token (health, metrics) is as little for such a page as the rest.
pub(super) fn check_host(gateway: &Gateway, headers: &HeaderMap) -> Result<(), Refusal> {
    if !is_private(gateway) {
        return Ok(());
    }
    let host = text(headers, HOST).transpose()?.unwrap_or_default();
    if is_loopback(host) {
        Ok(())
    } else {
        Err(Refusal::forbidden("the host must be a loopback address"))
    }
}

/// Refuses requests of web pages that are not allowed. An absent `Origin` is no browser's.
pub(super) fn check(gateway: &Gateway, headers: &HeaderMap) -> Result<(), Refusal> {
    check_host(gateway, headers)?;
    let origin = text(headers, ORIGIN).transpose()?;
    if is_private(gateway) {
        let host = text(headers, HOST).transpose()?.unwrap_or_default();
        return match origin {
            Some(origin) if !same_origin(origin, host) => {
                Err(Refusal::forbidden("this origin is not allowed"))
            }
            _ => Ok(()),
        };
    }
    match origin {
        Some(origin) if !is_allowed(origin, &gateway.settings.allow_origins) => {
            Err(Refusal::forbidden("this origin is not allowed"))
        }
        _ => Ok(()),
    }
}

fn is_allowed(origin: &str, allowed: &[String]) -> bool {
    allowed
        .iter()
        .any(|one| one == "*" || one.trim_end_matches('/').eq_ignore_ascii_case(origin))
}

fn is_loopback(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((name, "")) => (name, None),
            Some((name, port)) => match port.strip_prefix(':') {
                Some(port) => (name, Some(port)),
                None => return false,
            },
            None => return false,
        },
        None => match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        },
    };
    if port.is_some_and(|port| port.parse::<u16>().is_err()) {
        return false;
    }
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn same_origin(origin: &str, host: &str) -> bool {
    origin
        .strip_prefix("http://")
        .or_else(|| origin.strip_prefix("https://"))
        .is_some_and(|rest| rest.eq_ignore_ascii_case(host))
}

/// Adds what a browser needs to let a page read the answer. Only after [`check`] let it pass.
pub(super) fn add_cors(gateway: &Gateway, headers: &HeaderMap, reply: &mut Reply) {
    let Some(origin) = headers.get(ORIGIN) else {
        return;
    };
    let settings = &gateway.settings;
    let any = settings.allow_origins.iter().any(|one| one == "*");
    let to = reply.headers_mut();
    if any && !settings.allow_credentials {
        to.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    } else {
        to.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        to.insert(VARY, HeaderValue::from_static("Origin"));
    }
    if settings.allow_credentials {
        to.insert(
            ACCESS_CONTROL_ALLOW_CREDENTIALS,
            HeaderValue::from_static("true"),
        );
    }
}

/// Tells a browser what a page may send. Only after [`check`] let it pass.
pub(super) fn preflight(gateway: &Gateway, headers: &HeaderMap, methods: &'static str) -> Reply {
    let mut reply = Response::new(Full::new(Bytes::new()));
    *reply.status_mut() = StatusCode::NO_CONTENT;
    let to = reply.headers_mut();
    to.insert(
        ACCESS_CONTROL_ALLOW_METHODS,
        HeaderValue::from_static(methods),
    );
    to.insert(
        ACCESS_CONTROL_ALLOW_HEADERS,
        HeaderValue::from_static("authorization, content-type, x-correlation-id, x-request-id"),
    );
    to.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    add_cors(gateway, headers, &mut reply);
    reply
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_only_looks_like_loopback_is_not() {
        for good in [
            "localhost",
            "localhost:8000",
            "127.0.0.1:1",
            "[::1]:8000",
            "127.1.2.3",
        ] {
            assert!(is_loopback(good), "{good}");
        }
        for bad in [
            "",
            "localhost.evil.example",
            "127.0.0.1.evil",
            "10.0.0.1:80",
            "[::2]",
            "::",
            "localhost.",
            "localhost@evil.example",
            "evil.example#localhost",
            "127.0.0.1.nip.io:8000",
            "0.0.0.0:8000",
            "0x7f000001",
            "2130706433",
            "127.1",
            "[::1",
            "[::1]evil.example",
            "[::ffff:127.0.0.1].evil.example",
            "localhost:80:evil.example",
        ] {
            assert!(!is_loopback(bad), "{bad}");
        }
    }

    #[test]
    fn the_same_origin_has_the_same_host_and_port() {
        assert!(same_origin("http://localhost:8000", "localhost:8000"));
        for bad in [
            "http://localhost:8001",
            "null",
            "http://localhost",
            "localhost:8000",
        ] {
            assert!(!same_origin(bad, "localhost:8000"), "{bad}");
        }
    }

    #[test]
    fn an_origin_is_allowed_whole_or_not_at_all() {
        let allowed = ["https://chat.example".to_owned()];
        assert!(is_allowed("https://chat.example", &allowed));
        for bad in [
            "https://chat.example.evil",
            "http://chat.example",
            "null",
            "",
        ] {
            assert!(!is_allowed(bad, &allowed), "{bad}");
        }
        assert!(is_allowed("null", &["*".to_owned()]));
    }
}
