//! `chatmesh healthcheck`: asks a process over HTTP whether it is ready. Containers run it as their
//! health check.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use anyhow::Context;

/// Time limit for connecting, sending the request and reading the response together.
const HEALTHCHECK_TIMEOUT: Duration = Duration::from_secs(5);

/// Calls `url`, and fails unless it answers with status 200.
pub(super) fn run(url: &str) -> anyhow::Result<()> {
    let (status, body) = get(url).with_context(|| format!("{url} does not answer"))?;
    anyhow::ensure!(status == 200, "not ready: {url} answered {status}: {body}");
    Ok(())
}

/// Sends a GET over plain HTTP and returns the status and the body. It does not use the HTTP client
/// library, so that it works in images without certificates and without an async runtime.
fn get(url: &str) -> anyhow::Result<(u16, String)> {
    let url = url::Url::parse(url).context("not a URL")?;
    anyhow::ensure!(url.scheme() == "http", "only http:// is supported here");
    let host = url.host_str().context("the URL has no host")?;
    let authority = &url[url::Position::BeforeHost..url::Position::AfterPort];
    let port = url.port_or_known_default().unwrap_or(80);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let deadline = Instant::now() + HEALTHCHECK_TIMEOUT;
    let remaining_time = || {
        let remaining = deadline.saturating_duration_since(Instant::now());
        anyhow::ensure!(!remaining.is_zero(), "no answer in time");
        Ok(remaining)
    };
    let mut last_error = anyhow::anyhow!("the host has no address");
    for address in (host, port).to_socket_addrs()? {
        let mut stream = match TcpStream::connect_timeout(&address, remaining_time()?) {
            Ok(stream) => stream,
            Err(error) => {
                last_error = error.into();
                continue;
            }
        };
        stream.set_write_timeout(Some(remaining_time()?))?;
        let target = &url[url::Position::BeforePath..url::Position::AfterQuery];
        let head =
            format!("GET {target} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes())?;
        let mut response = Vec::new();
        let mut chunk = [0; 4096];
        // The response is read up to about 64 KiB: its body is only shown to a person, and the body
        // of a role's health endpoint is far smaller.
        while response.len() < 64 * 1024 {
            stream.set_read_timeout(Some(remaining_time()?))?;
            match stream.read(&mut chunk)? {
                0 => break,
                read => response.extend_from_slice(&chunk[..read]),
            }
        }
        let response = String::from_utf8_lossy(&response);
        let (head, body) = response.split_once("\r\n\r\n").unwrap_or((&response, ""));
        let status = head
            .strip_prefix("HTTP/1.")
            .and_then(|version| version.get(2..5));
        let status = status.and_then(|status| status.parse().ok());
        return Ok((status.context("the answer is not HTTP")?, body.to_owned()));
    }
    Err(last_error)
}
