//! The routes under `/dead-letters` of an `all-in-one` (protocol.md section 4): list, show, replay
//! and drop dead letters. Only this process can read its embedded log while it runs, so operators
//! need these routes. With Kafka, operators read the topic themselves, and the routes don't exist.

use hyper::{Method, StatusCode};
use serde_json::{Value, json};

use super::query::Head;
use super::response::{HttpError, HttpResponse, forbid_caching, json_response};
use super::tokens::check_admin_key;
use crate::dead_letters::{
    Address, DeadLetterDetail, DeadLetterError, DeadLetterQueue, Filter, SettleAction,
};
use crate::gateway::context::{DeadLetterAccess, Gateway};

/// Maximum number of dead letters that one request may settle. Each settlement costs an append to
/// the log.
const MAX_SETTLED_PER_REQUEST: usize = 100;

/// Serves a request with the admin key or the local key. A 404 if this process has no access to
/// dead letters, or if there is no admin key and the local key was not presented.
pub(super) async fn serve(gateway: &Gateway, request: &Head) -> Result<HttpResponse, HttpError> {
    let Some(DeadLetterAccess { queue, local_key }) = &gateway.dead_letters else {
        return Err(HttpError::not_found());
    };
    let has_local_key = local_key
        .as_ref()
        .is_some_and(|key| check_admin_key(request, key).is_ok());
    if !has_local_key {
        let admin_key = gateway.settings.admin_key.as_ref();
        check_admin_key(request, admin_key.ok_or(HttpError::not_found())?)?;
    }
    let path = request.uri().path().strip_prefix("/dead-letters");
    let body = match (request.method(), path.unwrap_or_default().trim_matches('/')) {
        (&Method::POST, "replay") => settle(queue, request, SettleAction::Replay).await?,
        (&Method::POST, "drop") => settle(queue, request, SettleAction::Drop).await?,
        (_, "replay" | "drop") => return Err(HttpError::method_not_allowed("POST")),
        (&Method::GET, "") => list(queue, request).await?,
        (&Method::GET, address) => show(queue, address).await?,
        _ => return Err(HttpError::method_not_allowed("GET")),
    };
    let mut response = json_response(StatusCode::OK, &body);
    forbid_caching(&mut response);
    Ok(response)
}

fn to_http_error(error: DeadLetterError) -> HttpError {
    if matches!(error, DeadLetterError::UnknownTopic { .. }) {
        return HttpError {
            message: error.to_string().into(),
            ..HttpError::bad_request("")
        };
    }
    tracing::warn!(%error, "dead letters can't be read; check the log");
    HttpError::unavailable("the dead letters can't be read now")
}

fn parameters(request: &Head) -> impl Iterator<Item = (String, String)> {
    let query = request.uri().query().unwrap_or_default().as_bytes();
    url::form_urlencoded::parse(query).into_owned()
}

async fn list(queue: &DeadLetterQueue, request: &Head) -> Result<Value, HttpError> {
    let mut filter = Filter::default();
    for (name, value) in parameters(request) {
        let not_a_number = |_| HttpError::bad_request("`since_ms` and `limit` must be numbers");
        match name.as_str() {
            "topic" => filter.topic = Some(value),
            "code" => filter.code = Some(value),
            "since_ms" => filter.since_ms = Some(value.parse().map_err(not_a_number)?),
            "limit" => filter.limit = Some(value.parse().map_err(not_a_number)?),
            _ => {}
        }
    }
    let listed = queue.list(&filter).await.map_err(to_http_error)?;
    Ok(json!({"letters": listed}))
}

async fn show(queue: &DeadLetterQueue, address: &str) -> Result<Value, HttpError> {
    let address: Address = address
        .parse()
        .map_err(|_: String| HttpError::not_found())?;
    let detail = queue.detail(&address).await.map_err(to_http_error)?;
    detail
        .as_ref()
        .map(DeadLetterDetail::to_json)
        .ok_or(HttpError::not_found())
}

/// Replays or drops the dead letters named by the parameter `address`, which may be repeated.
async fn settle(
    queue: &DeadLetterQueue,
    request: &Head,
    action: SettleAction,
) -> Result<Value, HttpError> {
    let addresses: Result<Vec<Address>, String> = parameters(request)
        .filter(|(name, _)| name == "address")
        .map(|(_, address)| address.parse())
        .collect();
    let addresses = addresses
        .map_err(|_| HttpError::bad_request("`address` must be topic/partition/offset"))?;
    if addresses.is_empty() || addresses.len() > MAX_SETTLED_PER_REQUEST {
        return Err(HttpError::bad_request(
            "1 to 100 times `address` must be given",
        ));
    }
    let settled = queue
        .settle_at(&addresses, action)
        .await
        .map_err(to_http_error)?;
    let count = settled
        .iter()
        .filter(|result| result.error.is_none())
        .count();
    if count > 0 {
        let action = action.as_str();
        tracing::info!(count, action, "dead letters settled by the operator");
    }
    Ok(json!({"settled": settled}))
}
