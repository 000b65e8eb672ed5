//! Finds the token of a request, creates random tokens, and compares secrets.

use hyper::HeaderMap;
use hyper::header::{AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL};
use rand::Rng as _;
use subtle::ConstantTimeEq;

/// Compares two secrets in a time that does not depend on where they differ.
pub(crate) fn same_secret(presented: &str, expected: &str) -> bool {
    presented.as_bytes().ct_eq(expected.as_bytes()).into()
}

/// Creates a token in the format of the original server: 43 URL-safe characters, 258 random bits.
pub(crate) fn random_token() -> String {
    const URL_SAFE: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut random = rand::rng();
    (0..43)
        .map(|_| char::from(URL_SAFE[random.random_range(0..URL_SAFE.len())]))
        .collect()
}

/// Returns the token of the header `Authorization: Bearer`. `None` if that header is absent, has
/// another scheme or holds no token.
pub(in crate::gateway) fn bearer_token(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| token.trim())
        .filter(|token| !token.is_empty())
}

/// Returns the token of an upgrade request, from the first of three places that has a token: the
/// query parameter `token`, as the original server reads it; the header `Authorization`; an entry
/// `bearer.TOKEN` of the offered subprotocols, because scripts in a browser can't set headers on a
/// WebSocket.
pub(in crate::gateway) fn token_from_request<'a>(
    query_token: Option<&'a str>,
    headers: &'a HeaderMap,
) -> Option<&'a str> {
    let subprotocol_token = || {
        headers
            .get_all(SEC_WEBSOCKET_PROTOCOL)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .find_map(|entry| entry.trim().strip_prefix("bearer."))
    };
    query_token
        .filter(|token| !token.is_empty())
        .or_else(|| bearer_token(headers))
        .or_else(subprotocol_token)
        .filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    #[test]
    fn random_token_has_the_original_format_and_is_unique() {
        let token = random_token();
        assert_eq!(token.len(), 43);
        let is_url_safe = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        assert!(token.bytes().all(is_url_safe));
        assert_ne!(token, random_token());
    }

    #[test]
    fn token_is_found_in_query_header_and_subprotocol() {
        let headers = |name: &'static str, value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_static(value));
            headers
        };
        let none = HeaderMap::new();
        assert_eq!(token_from_request(None, &none), None);
        assert_eq!(token_from_request(Some(""), &none), None);
        assert_eq!(token_from_request(Some("q"), &none), Some("q"));
        let basic = headers("authorization", "Basic abc");
        assert_eq!(token_from_request(None, &basic), None);
        let header = headers("authorization", "bearer  h");
        assert_eq!(token_from_request(None, &header), Some("h"));
        assert_eq!(token_from_request(Some("q"), &header), Some("q"));
        let offered = headers("sec-websocket-protocol", "chatmesh.v1, bearer.a.b-c_d");
        assert_eq!(token_from_request(None, &offered), Some("a.b-c_d"));
        let empty = headers("sec-websocket-protocol", "bearer.");
        assert_eq!(token_from_request(None, &empty), None);
    }
}
