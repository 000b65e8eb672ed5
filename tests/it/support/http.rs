//! Short HTTP calls to a role.

use std::sync::LazyLock;
use std::time::Duration;

use reqwest::Method;

/// The response to a call.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) body: String,
}

impl Reply {
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body)
            .unwrap_or_else(|e| panic!("a body is not JSON ({e}): {}", self.body))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// The client of all tests. It is created once, because a debug build needs long to read the
/// certificates of the machine. It pools no connections, because a connection belongs to the
/// runtime of the test that opened it.
static CLIENT: LazyLock<reqwest::Client> = LazyLock::new(|| {
    reqwest::Client::builder()
        .no_proxy()
        .timeout(Duration::from_secs(5))
        .pool_max_idle_per_host(0)
        .build()
        .expect("a client")
});

/// Sends a request without a body. Returns an error if no response arrives within five seconds.
pub(crate) async fn try_call(
    method: Method,
    url: &str,
    headers: &[(&str, &str)],
) -> Result<Reply, reqwest::Error> {
    let mut request = CLIENT.request(method, url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = request.send().await?;
    Ok(Reply {
        status: response.status().as_u16(),
        headers: response.headers().clone(),
        body: response.text().await?,
    })
}

pub(crate) async fn get(url: &str) -> Reply {
    try_call(Method::GET, url, &[])
        .await
        .unwrap_or_else(|e| panic!("GET {url}: {e:?}"))
}

pub(crate) async fn post(url: &str, headers: &[(&str, &str)]) -> Reply {
    try_call(Method::POST, url, headers)
        .await
        .unwrap_or_else(|e| panic!("POST {url}: {e:?}"))
}
