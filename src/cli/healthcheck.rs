//! `chatmesh healthcheck`: asks a process whether it is ready, for containers.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use anyhow::Context;

/// Limit of the whole health check, connecting included.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Fails unless `url` answers with status 200.
pub(super) fn run(url: &str) -> anyhow::Result<()> {
    let (status, body) = get(url).with_context(|| format!("{url} does not answer"))?;
    anyhow::ensure!(status == 200, "not ready: {url} answered {status}: {body}");
    Ok(())
}

/// Sends a GET over plain HTTP and returns status and body. It does not use the HTTP client library,
/// so that it works in images without certificates and without a runtime.
fn get(url: &str) -> anyhow::Result<(u16, String)> {
    let url = url::Url::parse(url).context("not a URL")?;
    anyhow::ensure!(url.scheme() == "http", "only http:// is supported here");
    let host = url.host_str().context("the URL has no host")?;
    let authority = &url[url::Position::BeforeHost..url::Position::AfterPort];
    let port = url.port_or_known_default().unwrap_or(80);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let deadline = Instant::now() + TIMEOUT;
    let remaining = || {
        let remaining = deadline.saturating_duration_since(Instant::now());
        anyhow::ensure!(!remaining.is_zero(), "no answer in time");
        Ok(remaining)
    };
    let mut last_error = anyhow::anyhow!("the host has no address");
    for address in (host, port).to_socket_addrs()? {
        let mut stream = match TcpStream::connect_timeout(&address, remaining()?) {
            Ok(stream) => stream,
            Err(error) => {
                last_error = error.into();
                continue;
            }
        };
        stream.set_write_timeout(Some(remaining()?))?;
        let target = &url[url::Position::BeforePath..url::Position::AfterQuery];
        let head =
            format!("GET {target} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes())?;
        let mut response = Vec::new();
        let mut chunk = [0; 4096];
        // The body is only shown to a person, and the gateway's own is far smaller.
        while response.len() < 64 * 1024 {
            stream.set_read_timeout(Some(remaining()?))?;
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
