//! Sends every documented request to a server, with the examples of its parameters, and validates the
//! response against its schema.

use reqwest::Method;
use serde_json::{Value, json};

use super::Document;
use crate::support::classic::ClassicClient;
use crate::support::http::{Reply, try_call};
use crate::support::model::{Answer, ScriptedModel};
use crate::support::process::{ChatmeshProcess, ProcessSpec};
use crate::support::{TEST_TIMEOUT, wait_until};

const KEY: &str = "an-admin-key-of-some-length";
const USER: &str = "user123";

/// In an order in which each finds what it needs; what is not named here goes before the deletes.
const LAST: [&str; 5] = [
    "replayDeadLetters",
    "dropDeadLetters",
    "deleteConversation",
    "deleteAllConversations",
    "revokeTokens",
];

/// Every route answers the first like GET, and browsers use the second before they call.
const OTHERS: [&str; 2] = ["HEAD", "OPTIONS"];

struct Request<'a> {
    document: &'a Document,
    id: &'a str,
    path: &'a str,
    method: Method,
    operation: &'a Value,
    /// In place of the example's address in the parameters of dead letters.
    letter: Option<&'a str>,
}

impl Request<'_> {
    /// The address with every parameter's example in it.
    fn address(&self, server: &ChatmeshProcess) -> String {
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
            let example = self.of_letter(name).unwrap_or(example);
            match parameter["in"].as_str() {
                Some("path") => path = path.replace(&format!("{{{name}}}"), &example),
                Some("query") => {
                    query.append_pair(name, &example);
                }
                _ => {}
            }
        }
        assert!(
            !path.contains('{'),
            "{}: a parameter of {path} has no example",
            self.id
        );
        let query = query.finish();
        let separator = if query.is_empty() { "" } else { "?" };
        server.url(&format!("{path}{separator}{query}"))
    }

    /// Its part of the letter's address, `topic/partition/offset`.
    fn of_letter(&self, parameter: &str) -> Option<String> {
        let letter = self.letter?;
        let parts = ["topic", "partition", "offset"];
        match parts.iter().position(|part| *part == parameter) {
            Some(at) => letter.split('/').nth(at).map(str::to_owned),
            None => (parameter == "address").then(|| letter.to_owned()),
        }
    }

    fn check(&self, reply: &Reply) {
        let status = reply.status.to_string();
        let documented = &self.operation["responses"][&status];
        assert!(
            !documented.is_null(),
            "{} answers {status}, which is not documented: {}",
            self.id,
            reply.body
        );
        let documented = self.document.resolve(documented);
        let Some(content) = documented["content"].as_object() else {
            assert_eq!(reply.body, "", "{}: a body that is not documented", self.id);
            return;
        };
        let kind = reply.header("content-type").unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default();
        let body = content.get(kind);
        let body = body.unwrap_or_else(|| panic!("{} answers {kind:?}", self.id));
        if kind == "application/json" {
            self.document
                .assert_valid(&body["schema"], &reply.json(), self.id);
        } else {
            assert!(!reply.body.is_empty(), "{} answers nothing", self.id);
        }
    }

    /// Which secret it needs, if any.
    fn secret<'a>(&self, token: &'a str) -> Option<&'a str> {
        let needs = |scheme: &str| {
            let all = self.operation["security"].as_array().into_iter().flatten();
            all.into_iter().any(|one| one.get(scheme).is_some())
        };
        if needs("adminKey") {
            Some(KEY)
        } else {
            needs("userToken").then_some(token)
        }
    }
}

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
        .env("ADMIN_KEY", KEY)
        .start()
        .await;
    let url = server.url(&format!("/token?userid={USER}"));
    let token = call(&Method::POST, &url, Some(KEY)).await.json()["token"]
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
            let listed = call(&Method::GET, &url, Some(KEY)).await.json();
            listed["letters"][0].is_object()
        },
    )
    .await;
    let listed = call(&Method::GET, &url, Some(KEY)).await.json();
    let letter = listed["letters"][0]["address"].as_str().unwrap();

    let mut requests = Vec::new();
    for (path, item) in document.root["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            if let "get" | "post" | "delete" = method.as_str() {
                requests.push(Request {
                    document: &document,
                    id: operation["operationId"].as_str().unwrap(),
                    path,
                    method: method.to_uppercase().parse().unwrap(),
                    operation,
                    letter: Some(letter),
                });
            }
        }
    }
    requests.sort_by_key(|one| {
        LAST.iter()
            .position(|id| *id == one.id)
            .map_or(0, |at| at + 1)
    });
    assert!(requests.len() >= 10, "only {} requests", requests.len());
    for one in &requests {
        let address = one.address(&server);
        let secret = one.secret(&token);
        if secret.is_some() {
            // Not with a wrong one.
            let refused = call(&one.method, &address, Some("wrong")).await;
            assert_eq!(refused.status, 401, "{}", one.id);
            one.check(&refused);
        }
        let reply = call(&one.method, &address, secret).await;
        // An upgrade is none here.
        let expected = if one.path == "/ws" {
            400..401
        } else {
            200..205
        };
        assert!(expected.contains(&reply.status), "{}: {reply:?}", one.id);
        one.check(&reply);
    }
    // Paths that are none, and what is not there, have the documented form too.
    let not_found = &document.root["components"]["responses"]["NotFound"];
    let schema = &not_found["content"]["application/json"]["schema"];
    for (path, secret) in [
        ("/nowhere", None),
        ("/favicon.ico", None),
        ("/app/nowhere.js", None),
        ("/dead-letters/nowhere", Some(KEY)),
    ] {
        let reply = call(&Method::GET, &server.url(path), secret).await;
        assert_eq!(reply.status, 404, "{path}");
        document.assert_valid(schema, &reply.json(), path);
        assert_eq!(reply.json()["code"], "not_found", "{path}");
    }
}

/// The test above takes its token away.
#[tokio::test]
async fn undocumented_methods_are_rejected_with_the_allowed_ones() {
    let document = Document::openapi();
    let server = ProcessSpec::ephemeral()
        .env("AUTH_MODE", "open")
        .env("ADMIN_KEY", KEY)
        .start()
        .await;
    for (path, item) in document.root["paths"].as_object().unwrap() {
        let methods = item.as_object().unwrap();
        let some = methods.keys().next().unwrap();
        let request = Request {
            document: &document,
            id: path,
            path,
            method: Method::PATCH,
            operation: &methods[some],
            letter: None,
        };
        let address = request.address(&server);
        let reply = call(&Method::PATCH, &address, request.secret("any")).await;
        assert_eq!(reply.status, 405, "{path}: {}", reply.body);
        assert_eq!(reply.json()["code"], "method_not_allowed", "{path}");
        let allow = reply.header("allow").unwrap_or_default().to_owned();
        let allow: Vec<&str> = allow.split(", ").collect();
        for method in methods.keys() {
            assert!(
                allow.contains(&&*method.to_uppercase()),
                "{path}: {allow:?}"
            );
        }
        for method in allow.iter().filter(|method| !OTHERS.contains(method)) {
            let operation = &methods.get(&method.to_lowercase());
            assert!(operation.is_some(), "{path}: {method} is not documented");
        }
        for operation in methods.values() {
            Request {
                operation,
                method: Method::PATCH,
                ..request
            }
            .check(&reply);
        }
    }
    // What a person tries first.
    for (method, path) in [(Method::GET, "/token"), (Method::POST, "/ws")] {
        let reply = call(&method, &server.url(path), None).await;
        assert_eq!(reply.json()["code"], "method_not_allowed", "{path}");
    }
    let gone = "/conversations/default/messages?userid=u&before=nope";
    let mut client = ClassicClient::connect(server.port(), "any", "u")
        .await
        .unwrap();
    client.send_and_wait("hello").await;
    let reply = call(&Method::GET, &server.url(gone), Some("any")).await;
    assert_eq!(
        (reply.status, &reply.json()["code"]),
        (404, &json!("not_found"))
    );
}
