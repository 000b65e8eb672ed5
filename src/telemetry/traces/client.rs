//! The HTTP client of the exporter: the one that the model's API is asked with.

use std::time::Duration;

use async_trait::async_trait;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};

use crate::http_client;

/// The most that is read of a collector's answer.
const MAX_BODY: usize = 64 << 10;

#[derive(Debug)]
pub(super) struct Client(reqwest::Client);

impl Client {
    pub(super) fn new(endpoint: &url::Url, timeout: Duration) -> Result<Self, reqwest::Error> {
        http_client::for_server(endpoint)
            .timeout(timeout)
            .build()
            .map(Self)
    }
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        // The address may hold a password.
        let bare = reqwest::Error::without_url;
        let request = reqwest::Request::try_from(request).map_err(bare)?;
        let mut response = self.0.execute(request).await.map_err(bare)?;
        let mut reply = Response::new(Bytes::new());
        *reply.status_mut() = response.status();
        *reply.headers_mut() = std::mem::take(response.headers_mut());
        let mut body = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(bare)? {
            if body.len() + piece.len() > MAX_BODY {
                return Err("the collector's answer is too long".into());
            }
            body.extend_from_slice(&piece);
        }
        *reply.body_mut() = body.into();
        Ok(reply)
    }
}
