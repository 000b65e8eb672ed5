//! Resolves the servers under test, and chooses the local addresses that clients connect from.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context as _, bail};
use tokio::net::TcpStream;
use url::Url;

use crate::tools::http;

/// Maximum number of connections from one local address to one server. Linux has about 28,000
/// ephemeral ports, of which some may be in TIME_WAIT.
const PORTS_PER_ADDRESS: usize = 25_000;

/// Parses the URL of a gateway, `ws://host:port/ws`; `http://host:port` means the same.
pub(super) fn parse_url(text: &str) -> Result<Url, String> {
    let mut url: Url = match text.parse() {
        Ok(url) => url,
        Err(url::ParseError::RelativeUrlWithoutBase) => {
            return Err("is not a URL that begins with ws://".to_owned());
        }
        Err(error) => return Err(error.to_string()),
    };
    match url.scheme() {
        "http" => {
            let _ = url.set_scheme("ws");
        }
        "ws" => {}
        "wss" | "https" => {
            return Err(
                "a load test supports ws:// only, because TLS would dominate the measurement: name the \
                 gateway behind the proxy"
                    .to_owned(),
            );
        }
        other => return Err(format!("{other}: is not supported, use ws://")),
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err("the URL has no host".to_owned());
    }
    if url.path() == "/" {
        url.set_path("/ws");
    }
    Ok(url)
}

/// A server under test.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) url: Url,
    address: SocketAddr,
}

impl Target {
    /// Looks up the address of a URL that [`parse_url`] returned.
    pub(super) async fn resolve(url: &Url) -> anyhow::Result<Self> {
        let host = url.host_str().context("the URL has no host")?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let port = url.port_or_known_default().unwrap_or(80);
        let address = http::resolve(host, port).await;
        let address = address.with_context(|| format!("the host {host} is not known"))?;
        let url = url.clone();
        Ok(Self { url, address })
    }

    fn is_loopback(&self) -> bool {
        self.address.ip().is_loopback()
    }

    /// Returns the URL of the upgrade request. The client resumes after the position `since`, which
    /// is empty when the client has no position.
    pub(super) fn upgrade_url(&self, token: &str, user: &str, since: &str) -> String {
        let mut url = self.url.clone();
        url.query_pairs_mut()
            .append_pair("token", token)
            .append_pair("userid", user);
        if !since.is_empty() {
            url.query_pairs_mut().append_pair("since", since);
        }
        url.into()
    }

    /// Returns the URL of `POST /token` for a user.
    pub(super) fn token_url(&self, user: &str) -> Url {
        let mut url = self.url.clone();
        let _ = url.set_scheme("http");
        url.set_path("/token");
        url.query_pairs_mut().append_pair("userid", user);
        url
    }

    pub(super) async fn connect(&self, source: Option<IpAddr>) -> std::io::Result<TcpStream> {
        http::connect(self.address, source).await
    }
}

/// Fails if clients can't connect from this address, for example because it is not an address of
/// this machine.
pub(super) fn check_local_address(source: IpAddr) -> std::io::Result<()> {
    std::net::UdpSocket::bind(SocketAddr::new(source, 0)).map(drop)
}

/// Returns the local addresses that clients connect from, in turn; empty when the system chooses
/// the address. When the user gave no addresses and the ports of one address do not suffice for
/// `clients`, addresses of the loopback network are used if all targets are there; otherwise the
/// user must name addresses.
pub(super) fn source_addresses(
    given: &[IpAddr],
    targets: &[Target],
    clients: usize,
) -> anyhow::Result<Vec<IpAddr>> {
    let needed_addresses = clients
        .div_ceil(targets.len().max(1))
        .div_ceil(PORTS_PER_ADDRESS);
    let is_local = targets.iter().all(Target::is_loopback);
    if !given.is_empty() || needed_addresses <= 1 {
        return Ok(given.to_vec());
    }
    if !is_local || targets.iter().any(|target| target.address.is_ipv6()) {
        bail!(
            "one address has ports for {PORTS_PER_ADDRESS} connections to a server: name \
             {needed_addresses} addresses of this machine by --source"
        );
    }
    Ok((0..needed_addresses as u32)
        .map(|n| Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 0, 0, 2)) + n).into())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn resolve(text: &str) -> Target {
        Target::resolve(&parse_url(text).unwrap()).await.unwrap()
    }

    #[tokio::test]
    async fn websocket_and_http_urls_are_accepted() {
        for text in ["ws://127.0.0.1:8000/ws", "http://127.0.0.1:8000"] {
            let target = resolve(text).await;
            let expected = "ws://127.0.0.1:8000/ws?token=a%2Bb&userid=u";
            assert_eq!(target.upgrade_url("a+b", "u", ""), expected);
            let expected = "http://127.0.0.1:8000/token?userid=u";
            assert_eq!(target.token_url("u").as_str(), expected);
        }
        for text in [
            "wss://h/ws",
            "ftp://h",
            "127.0.0.1:8000",
            "localhost:8000",
            "nothing",
            "ws://h:99999",
            "ws://",
            "",
        ] {
            assert!(parse_url(text).is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn more_clients_than_ports_use_several_loopback_addresses() {
        let target = resolve("ws://127.0.0.1:1/").await;
        let targets = [target.clone(), target];
        assert!(
            source_addresses(&[], &targets, 2 * PORTS_PER_ADDRESS)
                .unwrap()
                .is_empty()
        );
        let sources = source_addresses(&[], &targets, 2 * PORTS_PER_ADDRESS + 1).unwrap();
        assert_eq!(sources.len(), 2);
        assert!(sources.iter().all(IpAddr::is_loopback), "{sources:?}");
        let remote = resolve("ws://192.0.2.1:1/").await;
        assert!(source_addresses(&[], &[remote], PORTS_PER_ADDRESS + 1).is_err());
    }
}
