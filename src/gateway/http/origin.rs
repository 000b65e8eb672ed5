//! Decides by the headers `Host` and `Origin` which web pages may use the gateway, and adds the
//! CORS headers of responses. Pages are allowed by `ALLOW_ORIGINS`. A gateway that accepts any
//! token on a loopback address allows only its own page.

use std::net::IpAddr;

use hyper::HeaderMap;
use hyper::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_MAX_AGE, HOST, HeaderName, HeaderValue, ORIGIN,
    VARY,
};

use super::response::{HttpError, HttpResponse, no_content};
use crate::config::settings::AuthMode;
use crate::gateway::context::Gateway;

/// Returns the value of a header, or `None` if the request has no such header. A repeated header is
/// refused, because proxies and browsers disagree which of its values counts.
fn single_value(headers: &HeaderMap, name: HeaderName) -> Result<Option<&str>, HttpError> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(HttpError::forbidden(
            "`Host` and `Origin` must not be repeated",
        ));
    }
    match value.to_str() {
        Ok(value) => Ok(Some(value)),
        Err(_) => Err(HttpError::forbidden(
            "`Host` and `Origin` must be visible ASCII text",
        )),
    }
}

/// Whether the gateway accepts any token and listens on a loopback address, which only programs on
/// this machine reach. A web page could still reach the gateway through a browser on this machine:
/// by a DNS name that resolves to the loopback address (DNS rebinding, visible in `Host`) or
/// directly (visible in `Origin`).
fn is_private(gateway: &Gateway) -> bool {
    gateway.settings.auth == AuthMode::Open && gateway.is_loopback
}

/// Refuses DNS rebinding on a private gateway: `Host` must be a loopback address. This holds for
/// routes without a token too, such as health and metrics.
pub(super) fn check_host(gateway: &Gateway, headers: &HeaderMap) -> Result<(), HttpError> {
    if !is_private(gateway) {
        return Ok(());
    }
    let host = single_value(headers, HOST)?.unwrap_or_default();
    if is_loopback(host) {
        Ok(())
    } else {
        Err(HttpError::forbidden("the host must be a loopback address"))
    }
}

/// Refuses web pages of origins that are not allowed. A request without `Origin` is allowed: of the
/// requests by pages of other origins, browsers omit that header only where the method is GET or
/// HEAD and the page can't read the response.
pub(in crate::gateway) fn check(gateway: &Gateway, headers: &HeaderMap) -> Result<(), HttpError> {
    check_host(gateway, headers)?;
    let Some(origin) = single_value(headers, ORIGIN)? else {
        return Ok(());
    };
    let is_allowed = if is_private(gateway) {
        is_same_origin(origin, single_value(headers, HOST)?.unwrap_or_default())
    } else {
        is_in_list(origin, &gateway.settings.allow_origins)
    };
    if is_allowed {
        Ok(())
    } else {
        Err(HttpError::forbidden("this origin is not allowed"))
    }
}

fn is_in_list(origin: &str, allowed: &[String]) -> bool {
    allowed
        .iter()
        .any(|entry| entry == "*" || entry.trim_end_matches('/').eq_ignore_ascii_case(origin))
}

/// Whether `host`, with or without a port, is `localhost` or a loopback address in its usual form.
fn is_loopback(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[') {
        Some(bracketed) => match bracketed.split_once(']') {
            Some((name, "")) => (name, None),
            Some((name, suffix)) => match suffix.strip_prefix(':') {
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

fn is_same_origin(origin: &str, host: &str) -> bool {
    origin
        .strip_prefix("http://")
        .or_else(|| origin.strip_prefix("https://"))
        .is_some_and(|authority| authority.eq_ignore_ascii_case(host))
}

/// Adds the CORS headers that let a page of another origin read the response. Call it only after
/// [`check`] has allowed the request.
pub(super) fn add_cors(gateway: &Gateway, request: &HeaderMap, response: &mut HttpResponse) {
    let Some(origin) = request.get(ORIGIN) else {
        return;
    };
    let settings = &gateway.settings;
    let allows_any_origin = settings.allow_origins.iter().any(|entry| entry == "*");
    let headers = response.headers_mut();
    if allows_any_origin && !settings.allow_credentials {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    } else {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        headers.insert(VARY, HeaderValue::from_static("Origin"));
    }
    if settings.allow_credentials {
        headers.insert(
            ACCESS_CONTROL_ALLOW_CREDENTIALS,
            HeaderValue::from_static("true"),
        );
    }
}

/// Answers a CORS preflight with the methods and headers that a page may send. Call it only after
/// [`check`] has allowed the request.
pub(super) fn preflight(
    gateway: &Gateway,
    request: &HeaderMap,
    methods: &'static str,
) -> HttpResponse {
    let mut response = no_content();
    let headers = response.headers_mut();
    headers.insert(
        ACCESS_CONTROL_ALLOW_METHODS,
        HeaderValue::from_static(methods),
    );
    headers.insert(
        ACCESS_CONTROL_ALLOW_HEADERS,
        HeaderValue::from_static("authorization, content-type, x-correlation-id, x-request-id"),
    );
    headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    add_cors(gateway, request, &mut response);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_that_only_resembles_loopback_is_not_loopback() {
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
    fn same_origin_has_the_same_host_and_port() {
        assert!(is_same_origin("http://localhost:8000", "localhost:8000"));
        for bad in [
            "http://localhost:8001",
            "null",
            "http://localhost",
            "localhost:8000",
        ] {
            assert!(!is_same_origin(bad, "localhost:8000"), "{bad}");
        }
    }

    #[test]
    fn origin_is_allowed_only_if_the_whole_of_it_matches() {
        let allowed = ["https://chat.example".to_owned()];
        assert!(is_in_list("https://chat.example", &allowed));
        for bad in [
            "https://chat.example.evil",
            "http://chat.example",
            "null",
            "",
        ] {
            assert!(!is_in_list(bad, &allowed), "{bad}");
        }
        assert!(is_in_list("null", &["*".to_owned()]));
    }
}
