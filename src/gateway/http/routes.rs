//! Finds the handler of each HTTP request in the table of routes, checks the request's origin as
//! the route demands, and calls the handler. [`server`](super::server) calls [`dispatch`].

use std::convert::Infallible;
use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
use serde_json::json;

use super::query::Head;
use super::response::{HttpError, HttpResponse, json_response};
use super::{dead_letters, history, origin, tokens};
use crate::gateway::connection;
use crate::gateway::context::Gateway;
use crate::gateway::handshake::{self, Upgrade};

type Handler =
    for<'a> fn(&'a Arc<Gateway>, &'a mut Head) -> BoxFuture<'a, Result<HttpResponse, HttpError>>;

/// The paths that a route matches.
enum Paths {
    /// This path only.
    Exact(&'static str),
    /// This path and every path below it.
    Subtree(&'static str),
}

/// Which headers of a request are checked before the handler of its route runs. Tokens and admin
/// keys are checked by the handlers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum OriginCheck {
    /// Checks only the header `Host`, because the response is the same for every caller and holds
    /// no secret.
    Host,
    /// Checks the headers `Host` and `Origin`. Adds no CORS headers, so web pages of other origins
    /// can't read the response. (The handlers of preflights add CORS headers themselves.)
    Origin,
    /// Checks the headers `Host` and `Origin`, and adds CORS headers, so that web pages of allowed
    /// origins can read the response.
    Cors,
    /// Checks nothing. The handler checks the headers itself if the response depends on them,
    /// because another reason to refuse the request takes precedence.
    ByHandler,
}

struct Route {
    /// The method that the route matches. `None` matches every method; the handler then refuses
    /// the methods that it does not serve.
    method: Option<Method>,
    paths: Paths,
    origin_check: OriginCheck,
    handler: Handler,
}

impl Route {
    const fn new(
        method: Option<Method>,
        paths: Paths,
        origin_check: OriginCheck,
        handler: Handler,
    ) -> Self {
        Self {
            method,
            paths,
            origin_check,
            handler,
        }
    }

    fn matches(&self, method: &Method, path: &str) -> bool {
        let path_matches = match self.paths {
            Paths::Exact(exact) => path == exact,
            Paths::Subtree(root) => path
                .strip_prefix(root)
                .is_some_and(|below| below.is_empty() || below.starts_with('/')),
        };
        path_matches && self.method.as_ref().is_none_or(|only| only == method)
    }
}

/// The routes in the order in which they are tried: the first that matches serves the request. A
/// request that no route matches goes to [`fallback`].
static ROUTES: [Route; 9] = {
    use OriginCheck::{ByHandler, Cors, Host, Origin};
    use Paths::{Exact, Subtree};
    const OPTIONS: Option<Method> = Some(Method::OPTIONS);
    const GET: Option<Method> = Some(Method::GET);
    const POST: Option<Method> = Some(Method::POST);
    const DELETE: Option<Method> = Some(Method::DELETE);
    const ANY: Option<Method> = None;
    [
        Route::new(ANY, Exact("/ws"), ByHandler, |gateway, request| {
            upgrade(gateway, request).boxed()
        }),
        Route::new(OPTIONS, Exact("/token"), ByHandler, |gateway, request| {
            async { tokens::preflight(gateway, request) }.boxed()
        }),
        Route::new(POST, Exact("/token"), Cors, |gateway, request| {
            tokens::issue(gateway, request).boxed()
        }),
        Route::new(DELETE, Exact("/token"), Origin, |gateway, request| {
            tokens::revoke(gateway, request).boxed()
        }),
        Route::new(ANY, Exact("/token"), ByHandler, |_, _| {
            async { Err(HttpError::method_not_allowed("POST, DELETE, OPTIONS")) }.boxed()
        }),
        Route::new(
            OPTIONS,
            Subtree("/conversations"),
            Origin,
            |gateway, request| async { Ok(history::preflight(gateway, request)) }.boxed(),
        ),
        Route::new(ANY, Subtree("/conversations"), Cors, |gateway, request| {
            history::serve(gateway, request).boxed()
        }),
        Route::new(ANY, Subtree("/dead-letters"), Origin, |gateway, request| {
            dead_letters::serve(gateway, request).boxed()
        }),
        Route::new(GET, Exact("/health"), Host, |gateway, _| {
            async { Ok(health(gateway)) }.boxed()
        }),
    ]
};

pub(super) async fn dispatch(
    gateway: Arc<Gateway>,
    request: Request<Incoming>,
) -> Result<HttpResponse, Infallible> {
    let (head, _body) = request.into_parts();
    let mut request = Request::from_parts(head, ());
    let result = serve(&gateway, &mut request).await;
    Ok(result.unwrap_or_else(|error| error.to_response()))
}

async fn serve(gateway: &Arc<Gateway>, request: &mut Head) -> Result<HttpResponse, HttpError> {
    let (method, path) = (request.method(), request.uri().path());
    let Some(route) = ROUTES.iter().find(|route| route.matches(method, path)) else {
        return fallback(gateway, request);
    };
    match route.origin_check {
        OriginCheck::Host => origin::check_host(gateway, request.headers())?,
        OriginCheck::Origin | OriginCheck::Cors => origin::check(gateway, request.headers())?,
        OriginCheck::ByHandler => {}
    }
    let result = (route.handler)(gateway, request).await;
    if route.origin_check != OriginCheck::Cors {
        return result;
    }
    // An error gets CORS headers too: a page that may send the request may read why it was refused.
    let mut response = result.unwrap_or_else(|error| error.to_response());
    origin::add_cors(gateway, request.headers(), &mut response);
    Ok(response)
}

/// Serves the files of the chat page, and the routes for health and metrics that every role has.
/// Any other path is a 404.
fn fallback(gateway: &Gateway, request: &Head) -> Result<HttpResponse, HttpError> {
    origin::check_host(gateway, request.headers())?;
    let (method, path) = (request.method(), request.uri().path());
    if let Some(file) = gateway.page.as_ref().and_then(|page| page.file(path)) {
        return Ok(file.serve(method, request.headers()));
    }
    (gateway.admin)(method, path).ok_or_else(HttpError::not_found)
}

/// Performs the WebSocket handshake and starts the task of the connection. If the client may not
/// connect, either refuses the request, or upgrades it and starts a task that closes the connection
/// with the reason.
async fn upgrade(gateway: &Arc<Gateway>, request: &mut Head) -> Result<HttpResponse, HttpError> {
    let upgrade = handshake::upgrade(gateway, request)
        .await
        .inspect_err(|error| gateway.metrics.count_refusal(error.status.as_u16()))?;
    match upgrade {
        Upgrade::Accepted {
            response,
            session,
            permit,
            stream,
        } => {
            let connection = connection::run(gateway.clone(), session, permit, stream);
            gateway.tasks.spawn(connection);
            Ok(response)
        }
        Upgrade::Rejected {
            response,
            error,
            reason,
            stream,
        } => {
            gateway.metrics.count_refusal(error.status.as_u16());
            let closing = connection::reject(gateway.clone(), stream, reason);
            gateway.tasks.spawn(closing);
            Ok(response)
        }
    }
}

/// The gateway's `/health`, with the fields of the original server.
fn health(gateway: &Gateway) -> HttpResponse {
    json_response(
        StatusCode::OK,
        &json!({
            "status": "healthy",
            "service": "websocket-server",
            "server_id": gateway.settings.server_id,
            "active_users": gateway.registry.users(),
            "total_connections": gateway.registry.connections(),
        }),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route_number(method: &Method, path: &str) -> Option<usize> {
        ROUTES.iter().position(|route| route.matches(method, path))
    }

    #[test]
    fn request_is_matched_by_method_and_by_whole_path_segments() {
        for (method, path, expected) in [
            (Method::POST, "/ws", Some(0)),
            (Method::OPTIONS, "/token", Some(1)),
            (Method::POST, "/token", Some(2)),
            (Method::DELETE, "/token", Some(3)),
            (Method::PUT, "/token", Some(4)),
            (Method::GET, "/token/", None),
            (Method::OPTIONS, "/conversations/a", Some(5)),
            (Method::GET, "/conversations", Some(6)),
            (Method::PUT, "/conversations/", Some(6)),
            (Method::GET, "/conversations/a/messages", Some(6)),
            (Method::GET, "/conversationsx", None),
            (Method::GET, "/dead-letters", Some(7)),
            (Method::POST, "/dead-letters/replay", Some(7)),
            (Method::GET, "/health", Some(8)),
            (Method::POST, "/health", None),
            (Method::GET, "/", None),
        ] {
            assert_eq!(route_number(&method, path), expected, "{method} {path}");
        }
    }
}
