//! Dead letters over HTTP, for the operator of an `all-in-one`: nobody else can look into its log
//! while it runs (protocol.md section 4).

use hyper::header::{CACHE_CONTROL, HeaderValue};
use hyper::http::request::Parts as RequestParts;
use hyper::{Method, StatusCode};
use secrecy::SecretString;
use serde_json::{Value, json};

use super::reply::{Refusal, Reply, json_reply};
use super::{Gateway, token};
use crate::pipeline::letters::{Address, Filter, Letters, LettersError, Opened};

/// Letters that one request may settle: each is a write.
const AT_ONCE: usize = 100;

/// The dead letters that only this process can reach, and who may.
pub struct Desk {
    /// The letters.
    pub letters: Letters,
    /// A key beside the admin key: that of who may read the data directory.
    pub key: Option<SecretString>,
}

pub(super) async fn serve(gateway: &Gateway, request: &RequestParts) -> Result<Reply, Refusal> {
    let Some(Desk { letters, key }) = &gateway.letters else {
        return Err(Refusal::not_found());
    };
    let local = key.as_ref().map(|key| token::admin(request, key));
    if !matches!(local, Some(Ok(()))) {
        let key = gateway.settings.admin_key.as_ref();
        token::admin(request, key.ok_or(Refusal::not_found())?)?;
    }
    let path = request
        .uri
        .path()
        .strip_prefix("/dead-letters")
        .unwrap_or_default();
    let body = match (&request.method, path.trim_matches('/')) {
        (&Method::POST, "replay") => settle(letters, request, true).await?,
        (&Method::POST, "drop") => settle(letters, request, false).await?,
        (_, "replay" | "drop") => return Err(Refusal::method("POST")),
        (&Method::GET, "") => list(letters, request).await?,
        (&Method::GET, address) => show(letters, address).await?,
        _ => return Err(Refusal::method("GET")),
    };
    let mut reply = json_reply(StatusCode::OK, &body);
    let headers = reply.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(reply)
}

fn away(error: LettersError) -> Refusal {
    if matches!(error, LettersError::NotOurs { .. }) {
        return Refusal {
            message: error.to_string().into(),
            ..Refusal::bad_request("")
        };
    }
    tracing::warn!(%error, "dead letters can't be read");
    Refusal::unavailable("the dead letters can't be read now")
}

fn parameters(request: &RequestParts) -> Vec<(String, String)> {
    let query = request.uri.query().unwrap_or_default().as_bytes();
    url::form_urlencoded::parse(query).into_owned().collect()
}

async fn list(letters: &Letters, request: &RequestParts) -> Result<Value, Refusal> {
    let mut filter = Filter::default();
    for (name, value) in parameters(request) {
        let bad = |_| Refusal::bad_request("`since_ms` and `limit` must be numbers");
        match name.as_str() {
            "topic" => filter.topic = Some(value),
            "code" => filter.code = Some(value),
            "since_ms" => filter.since_ms = Some(value.parse().map_err(bad)?),
            "limit" => filter.limit = Some(value.parse().map_err(bad)?),
            _ => {}
        }
    }
    let listed = letters.list(&filter).await.map_err(away)?;
    Ok(json!({"letters": listed}))
}

async fn show(letters: &Letters, address: &str) -> Result<Value, Refusal> {
    let address: Address = address.parse().map_err(|_: String| Refusal::not_found())?;
    let opened = letters.open(&address).await.map_err(away)?;
    opened
        .as_ref()
        .map(Opened::to_json)
        .ok_or(Refusal::not_found())
}

async fn settle(letters: &Letters, request: &RequestParts, replay: bool) -> Result<Value, Refusal> {
    let parameters = parameters(request).into_iter();
    let addresses: Result<Vec<Address>, String> = parameters
        .filter(|(name, _)| name == "address")
        .map(|(_, address)| address.parse())
        .collect();
    let addresses =
        addresses.map_err(|_| Refusal::bad_request("`address` must be topic/partition/offset"))?;
    if addresses.is_empty() || addresses.len() > AT_ONCE {
        return Err(Refusal::bad_request(
            "1 to 100 times `address` must be given",
        ));
    }
    let settled = letters.settle_at(&addresses, replay).await.map_err(away)?;
    tracing::info!(
        letters = settled.len(),
        replay,
        "dead letters settled by the operator"
    );
    Ok(json!({"settled": settled}))
}
