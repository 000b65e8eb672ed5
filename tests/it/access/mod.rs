//! Access control with real tokens on real processes: authentication, isolation of users,
//! revocation.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::http::Reply;
use crate::support::model::ScriptedModel;
use crate::support::process::{ChatmeshProcess, ProcessSpec};
use crate::support::v1::V1Client;
use crate::support::{
    QUIET_PERIOD, TEST_TIMEOUT, kafka_address, redis_url, unique_name, wait_until,
};

mod descriptors;
mod hostile;
mod revoked;
mod two_users;

const SECRET: &str = "a-secret-of-more-than-32-bytes-0123456789";
const ADMIN_KEY: &str = "the-operators-own-key";

/// A running system with signed tokens: everything in one process, or two gateways, a worker and a
/// relay on Kafka and Redis.
struct AccessSystem {
    gateways: Vec<ChatmeshProcess>,
    other_roles: Vec<ChatmeshProcess>,
    model: ScriptedModel,
    client: reqwest::Client,
}

/// A client without a connection pool, because idle connections would count against the limits.
fn unpooled_client() -> reqwest::Client {
    let client = reqwest::Client::builder()
        .no_proxy()
        .pool_max_idle_per_host(0);
    client.timeout(TEST_TIMEOUT).build().unwrap()
}

impl AccessSystem {
    async fn embedded() -> Self {
        let model = ScriptedModel::start().await;
        let spec = with_signed_tokens(ProcessSpec::ephemeral(), &model);
        Self {
            gateways: vec![spec.start().await],
            other_roles: Vec::new(),
            model,
            client: unpooled_client(),
        }
    }

    async fn scaled_out() -> Self {
        let model = ScriptedModel::start().await;
        let topic = unique_name("access");
        let role = |spec: ProcessSpec| {
            with_signed_tokens(spec, &model)
                .env("KAFKA_BOOTSTRAP_SERVERS", &kafka_address())
                .env("REDIS_URL", &redis_url())
                .env("MESSAGES_TOPIC", &format!("{topic}-in"))
                .env("RESPONSES_TOPIC", &format!("{topic}-out"))
                .env("KAFKA_TOPIC_PARTITIONS", "2")
        };
        let gateway = |name: &str| role(ProcessSpec::gateway()).env("SERVER_ID", name).spawn();
        let mut system = Self {
            gateways: vec![gateway("server_1"), gateway("server_2")],
            other_roles: vec![
                role(ProcessSpec::ai_worker()).spawn(),
                role(ProcessSpec::relay()).spawn(),
            ],
            model,
            client: unpooled_client(),
        };
        for process in system.gateways.iter_mut().chain(&mut system.other_roles) {
            process.wait_ready(TEST_TIMEOUT).await;
        }
        system
    }

    /// The port of gateway number `n`, modulo the number of gateways.
    fn port(&self, n: usize) -> u16 {
        self.gateways[n % self.gateways.len()].port()
    }

    async fn call(&self, method: Method, path: &str, bearer: Option<&str>) -> Reply {
        let url = self.gateways[0].url(path);
        let mut request = self.client.request(method.clone(), &url);
        if let Some(token) = bearer {
            request = request.bearer_auth(token);
        }
        let response = request.send().await;
        let response = response.unwrap_or_else(|error| panic!("{method} {path}: {error:?}"));
        Reply {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            body: response.text().await.unwrap(),
        }
    }

    async fn status(&self, method: Method, path: &str, bearer: Option<&str>) -> u16 {
        self.call(method, path, bearer).await.status
    }

    /// Issues a token, as the operator's backend does.
    async fn token(&self, user: &str) -> String {
        let path = format!("/token?userid={}", url_encoded(user));
        let reply = self.call(Method::POST, &path, Some(ADMIN_KEY)).await;
        assert_eq!(reply.status, 200, "{user}: {}", reply.body);
        reply.json()["token"].as_str().unwrap().to_owned()
    }

    async fn revoke(&self, user: &str) {
        let path = format!("/token?userid={}", url_encoded(user));
        let status = self.status(Method::DELETE, &path, Some(ADMIN_KEY)).await;
        assert_eq!(status, 200);
    }

    /// A `chatmesh.v1` device with a token of its own.
    async fn device(&self, n: usize, user: &str) -> V1Client {
        let mut device = V1Client::new(user);
        device.token = self.token(user).await;
        device.connect_with_retries(&[self.port(n)]).await;
        device
    }

    /// Questions and answers of a conversation over HTTP.
    async fn history(&self, user: &str, token: &str, conversation: &str) -> Vec<(String, String)> {
        let path = format!(
            "/conversations/{conversation}/messages?userid={}",
            url_encoded(user)
        );
        let reply = self.call(Method::GET, &path, Some(token)).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        let text = |turn: &Value, field: &str| turn[field].as_str().unwrap_or("").to_owned();
        let messages = reply.json()["messages"].as_array().unwrap().clone();
        let question_and_answer = |turn: &Value| (text(turn, "question"), text(turn, "answer"));
        messages.iter().map(question_and_answer).collect()
    }

    /// The logs of all processes, by address.
    fn logs(&self) -> BTreeMap<String, String> {
        let processes = self.gateways.iter().chain(&self.other_roles);
        processes
            .map(|process| (process.url(""), process.log()))
            .collect()
    }

    /// Asserts that no process has logged any of these texts.
    fn assert_not_logged(&self, secrets: &[(&str, &str)]) {
        for (process, log) in self.logs() {
            assert!(log.contains("started"), "{process} has no log");
            for (what, secret) in secrets {
                assert!(!log.contains(secret), "{process} logged {what}");
            }
        }
    }
}

fn with_signed_tokens(spec: ProcessSpec, model: &ScriptedModel) -> ProcessSpec {
    spec.env("AUTH_MODE", "jwt")
        .env("JWT_SECRET", SECRET)
        .env("ADMIN_KEY", ADMIN_KEY)
        .env("OPENAI_BASE_URL", &model.base_url())
        .env("OPENAI_TIMEOUT_MS", "20000")
        .env("OPENAI_IDLE_TIMEOUT_MS", "240000")
}

fn url_encoded(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

fn now_seconds() -> i64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(since_epoch.as_secs()).unwrap()
}

/// Signs claims with the right key, whether they are valid or not.
fn sign_claims(claims: &Value) -> String {
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    encode(&Header::new(Algorithm::HS256), claims, &key).unwrap()
}

fn token_for(user: &str) -> String {
    sign_claims(&json!({"sub": user, "exp": now_seconds() + 600, "iat": now_seconds() + 1}))
}
