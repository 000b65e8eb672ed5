//! Sends every documented HTTP request to a server, with the examples of its parameters, and
//! validates the response against its schema.

use reqwest::Method;
use serde_json::{Value, json};

use super::Document;
use crate::support::classic::ClassicClient;
use crate::support::http::{Reply, try_call};
use crate::support::model::{Answer, ScriptedModel};
use crate::support::process::{ChatmeshProcess, ProcessSpec};
use crate::support::{TEST_TIMEOUT, wait_until};

const ADMIN_KEY: &str = "an-admin-key-of-some-length";
const USER: &str = "user123";

/// The operations that settle or delete data, in the order in which the test sends them. All other
/// requests are sent before them, so every request finds the data that it needs.
const DESTRUCTIVE_OPERATIONS: [&str; 5] = [
    "replayDeadLetters",
    "dropDeadLetters",
    "deleteConversation",
    "deleteAllConversations",
    "revokeTokens",
];

/// Methods that the document does not list for each path. Every route with GET answers HEAD as
/// well, and browsers send OPTIONS before a request from another origin.
const GENERIC_METHODS: [&str; 2] = ["HEAD", "OPTIONS"];

/// A documented operation and the values to request it with.
struct Request<'a> {
    document: &'a Document,
    operation_id: &'a str,
    path: &'a str,
    method: Method,
    operation: &'a Value,
    /// Address of an existing dead letter, `topic/partition/offset`. If present, its values replace
    /// the examples of the parameters that address a dead letter.
    dead_letter_address: Option<&'a str>,
}

impl Request<'_> {
    /// The URL of the request, with a value for every parameter that has an example.
    fn url(&self, server: &ChatmeshProcess) -> String {
        let mut path = self.path.to_owned();
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        let parameters = self.operation["parameters"].as_array();
        for parameter in parameters.into_iter().flatten() {
            let parameter = self.document.resolve(parameter);
            let name = parameter["name"].as_str().unwrap();
            let example = match &parameter["example"] {
                Value::String(text) => text.clone(),
                Value::Null => continue,
                other => other.to_string(),
            };
            let value = self.dead_letter_parameter(name).unwrap_or(example);
            match parameter["in"].as_str() {
                Some("path") => path = path.replace(&format!("{{{name}}}"), &value),
                Some("query") => {
                    query.append_pair(name, &value);
                }
                _ => {}
            }
        }
        assert!(
            !path.contains('{'),
            "{}: a parameter of {path} has no example",
            self.operation_id
        );
        let query = query.finish();
        let separator = if query.is_empty() { "" } else { "?" };
        server.url(&format!("{path}{separator}{query}"))
    }

    /// The value of a parameter that addresses the dead letter: its address, or the part of the
    /// address that the parameter names. `None` for other parameters.
    fn dead_letter_parameter(&self, name: &str) -> Option<String> {
        let address = self.dead_letter_address?;
        let parts = ["topic", "partition", "offset"];
        match parts.iter().position(|part| *part == name) {
            Some(index) => address.split('/').nth(index).map(str::to_owned),
            None => (name == "address").then(|| address.to_owned()),
        }
    }

    /// Checks that the status of a response is documented, and that its body matches the schema.
    fn assert_documented(&self, reply: &Reply) {
        let status = reply.status.to_string();
        let documented = &self.operation["responses"][&status];
        assert!(
            !documented.is_null(),
            "{} answers {status}, which is not documented: {}",
            self.operation_id,
            reply.body
        );
        let documented = self.document.resolve(documented);
        let Some(content) = documented["content"].as_object() else {
            assert_eq!(
                reply.body, "",
                "{}: the body is not documented",
                self.operation_id
            );
            return;
        };
        let content_type = reply.header("content-type").unwrap_or_default();
        let content_type = content_type.split(';').next().unwrap_or_default();
        let documented_body = content.get(content_type);
        let documented_body = documented_body.unwrap_or_else(|| {
            panic!(
                "{} answers {content_type:?}, which is not documented",
                self.operation_id
            )
        });
        if content_type == "application/json" {
            self.document.assert_valid(
                &documented_body["schema"],
                &reply.json(),
                self.operation_id,
            );
        } else {
            assert!(
                !reply.body.is_empty(),
                "{} answers with an empty body",
                self.operation_id
            );
        }
    }

    /// The secret that the operation needs, if any: the admin key or the token of the user.
    fn secret<'a>(&self, user_token: &'a str) -> Option<&'a str> {
        let requires = |scheme: &str| {
            let requirements = self.operation["security"].as_array();
            requirements
                .into_iter()
                .flatten()
                .any(|requirement| requirement.get(scheme).is_some())
        };
        if requires("adminKey") {
            Some(ADMIN_KEY)
        } else {
            requires("userToken").then_some(user_token)
        }
    }
}

/// Sends a request with this bearer token.
async fn call(method: &Method, url: &str, secret: Option<&str>) -> Reply {
    let bearer = secret.map(|secret| format!("Bearer {secret}"));
    let headers: Vec<_> = bearer
        .iter()
        .map(|v| ("authorization", v.as_str()))
        .collect();
    try_call(method.clone(), url, &headers).await.unwrap()
}

#[tokio::test]
async fn documented_requests_get_documented_responses() {
    let document = Document::openapi();
    let model = ScriptedModel::start().await;
    model.queue_answer("bad", Answer::error(400, "bad", "not this"));
    let server = ProcessSpec::ephemeral()
        .env("OPENAI_BASE_URL", &model.base_url())
        .env("AUTH_MODE", "stored")
        .env("TOKEN_ENDPOINT", "admin")
        .env("ADMIN_KEY", ADMIN_KEY)
        .start()
        .await;
    let url = server.url(&format!("/token?userid={USER}"));
    let token = call(&Method::POST, &url, Some(ADMIN_KEY)).await.json()["token"]
        .as_str()
        .unwrap()
        .to_owned();
    let mut client = ClassicClient::connect(server.port(), &token, USER)
        .await
        .unwrap();
    client.send_and_wait("hello").await;
    client.send_and_wait("bad").await;
    let url = server.url("/dead-letters");
    wait_until(
        "the refused message is a dead letter",
        TEST_TIMEOUT,
        || async {
            let listed = call(&Method::GET, &url, Some(ADMIN_KEY)).await.json();
            listed["letters"][0].is_object()
        },
    )
    .await;
    let listed = call(&Method::GET, &url, Some(ADMIN_KEY)).await.json();
    let dead_letter_address = listed["letters"][0]["address"].as_str().unwrap();

    let mut requests = Vec::new();
    for (path, item) in document.root["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            if let "get" | "post" | "delete" = method.as_str() {
                requests.push(Request {
                    document: &document,
                    operation_id: operation["operationId"].as_str().unwrap(),
                    path,
                    method: method.to_uppercase().parse().unwrap(),
                    operation,
                    dead_letter_address: Some(dead_letter_address),
                });
            }
        }
    }
    requests.sort_by_key(|request| {
        DESTRUCTIVE_OPERATIONS
            .iter()
            .position(|id| *id == request.operation_id)
            .map_or(0, |index| index + 1)
    });
    assert!(requests.len() >= 10, "only {} requests", requests.len());
    for request in &requests {
        let url = request.url(&server);
        let secret = request.secret(&token);
        if secret.is_some() {
            // A wrong secret is refused.
            let refused = call(&request.method, &url, Some("wrong")).await;
            assert_eq!(refused.status, 401, "{}", request.operation_id);
            request.assert_documented(&refused);
        }
        let reply = call(&request.method, &url, secret).await;
        // Without the headers of an upgrade, `/ws` is refused.
        let expected_statuses = if request.path == "/ws" {
            400..401
        } else {
            200..205
        };
        assert!(
            expected_statuses.contains(&reply.status),
            "{}: {reply:?}",
            request.operation_id
        );
        request.assert_documented(&reply);
    }
    // Unknown paths and missing objects are answered with the documented error, too.
    let not_found = &document.root["components"]["responses"]["NotFound"];
    let schema = &not_found["content"]["application/json"]["schema"];
    for (path, secret) in [
        ("/nowhere", None),
        ("/favicon.ico", None),
        ("/app/nowhere.js", None),
        ("/dead-letters/nowhere", Some(ADMIN_KEY)),
    ] {
        let reply = call(&Method::GET, &server.url(path), secret).await;
        assert_eq!(reply.status, 404, "{path}");
        document.assert_valid(schema, &reply.json(), path);
        assert_eq!(reply.json()["code"], "not_found", "{path}");
    }
}

#[tokio::test]
async fn undocumented_method_is_rejected_and_the_allowed_methods_are_listed() {
    let document = Document::openapi();
    let server = ProcessSpec::ephemeral()
        .env("AUTH_MODE", "open")
        .env("ADMIN_KEY", ADMIN_KEY)
        .start()
        .await;
    for (path, item) in document.root["paths"].as_object().unwrap() {
        let methods = item.as_object().unwrap();
        let documented_method = methods.keys().next().unwrap();
        let request = Request {
            document: &document,
            operation_id: path,
            path,
            method: Method::PATCH,
            operation: &methods[documented_method],
            dead_letter_address: None,
        };
        let url = request.url(&server);
        let reply = call(&Method::PATCH, &url, request.secret("any")).await;
        assert_eq!(reply.status, 405, "{path}: {}", reply.body);
        assert_eq!(reply.json()["code"], "method_not_allowed", "{path}");
        let allow_header = reply.header("allow").unwrap_or_default().to_owned();
        let allowed_methods: Vec<&str> = allow_header.split(", ").collect();
        for method in methods.keys() {
            assert!(
                allowed_methods.contains(&&*method.to_uppercase()),
                "{path}: {allowed_methods:?}"
            );
        }
        for method in allowed_methods
            .iter()
            .filter(|method| !GENERIC_METHODS.contains(method))
        {
            let operation = &methods.get(&method.to_lowercase());
            assert!(operation.is_some(), "{path}: {method} is not documented");
        }
        for operation in methods.values() {
            Request {
                operation,
                method: Method::PATCH,
                ..request
            }
            .assert_documented(&reply);
        }
    }
    // These requests are typical mistakes of a person who tries out the server.
    for (method, path) in [(Method::GET, "/token"), (Method::POST, "/ws")] {
        let reply = call(&method, &server.url(path), None).await;
        assert_eq!(reply.json()["code"], "method_not_allowed", "{path}");
    }
    // The turn before which the client wants to read does not exist.
    let unknown_turn = "/conversations/default/messages?userid=u&before=nope";
    let mut client = ClassicClient::connect(server.port(), "any", "u")
        .await
        .unwrap();
    client.send_and_wait("hello").await;
    let reply = call(&Method::GET, &server.url(unknown_turn), Some("any")).await;
    assert_eq!(
        (reply.status, &reply.json()["code"]),
        (404, &json!("not_found"))
    );
}
