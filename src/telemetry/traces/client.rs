//! The HTTP client through which the span exporter sends requests, with the settings that all HTTP
//! clients of chatmesh share.

use std::time::Duration;

use async_trait::async_trait;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};

use crate::http_client;

/// Maximum size of the body of a collector's response, in bytes.
const MAX_BODY_BYTES: usize = 64 << 10;

#[derive(Debug)]
pub(super) struct ExporterClient(reqwest::Client);

impl ExporterClient {
    pub(super) fn new(endpoint: &url::Url, timeout: Duration) -> Result<Self, reqwest::Error> {
        http_client::builder_for(endpoint)
            .timeout(timeout)
            .build()
            .map(Self)
    }
}

#[async_trait]
impl HttpClient for ExporterClient {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        // The URL may contain a password, so it must not appear in logs.
        let without_url = reqwest::Error::without_url;
        let request = reqwest::Request::try_from(request).map_err(without_url)?;
        let mut response = self.0.execute(request).await.map_err(without_url)?;
        let mut collected = Response::new(Bytes::new());
        *collected.status_mut() = response.status();
        *collected.headers_mut() = std::mem::take(response.headers_mut());
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(without_url)? {
            if body.len() + chunk.len() > MAX_BODY_BYTES {
                return Err("the collector's response is too large".into());
            }
            body.extend_from_slice(&chunk);
        }
        *collected.body_mut() = body.into();
        Ok(collected)
    }
}
