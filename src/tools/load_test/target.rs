//! Where clients connect to, from which address, and with which token.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context as _, bail};
use serde::Deserialize;
use tokio::net::{TcpSocket, TcpStream};
use url::Url;

/// Connections from one address to one server; a little below what Linux has ports for.
const PORTS: usize = 25_000;

/// Reads `ws://host:port/ws`; `http://host:port` means the same.
pub(super) fn url(text: &str) -> Result<Url, String> {
    let mut url: Url = match text.parse() {
        Ok(url) => url,
        Err(url::ParseError::RelativeUrlWithoutBase) => {
            return Err("is no URL, which begins with ws://".to_owned());
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
                "a load test speaks ws:// only, as TLS would be most of what it measures: name the \
                 gateway behind the proxy"
                    .to_owned(),
            );
        }
        other => return Err(format!("{other}: is not known, ws:// is")),
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
    /// Finds the address of a URL that [`url`] took.
    pub(super) async fn resolve(url: &Url) -> anyhow::Result<Self> {
        let host = url.host_str().context("the URL has no host")?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let port = url.port_or_known_default().unwrap_or(80);
        let address = tokio::net::lookup_host((host, port)).await;
        let address = address.ok().and_then(|mut found| found.next());
        let address = address.with_context(|| format!("{host} is not known"))?;
        let url = url.clone();
        Ok(Self { url, address })
    }

    fn is_loopback(&self) -> bool {
        self.address.ip().is_loopback()
    }

    /// Of a client that wants what comes after the position `since`; empty: after none.
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

    fn token_url(&self, user: &str) -> Url {
        let mut url = self.url.clone();
        let _ = url.set_scheme("http");
        url.set_path("/token");
        url.query_pairs_mut().append_pair("userid", user);
        url
    }

    pub(super) async fn connect(&self, source: Option<IpAddr>) -> std::io::Result<TcpStream> {
        let socket = match self.address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        if let Some(source) = source {
            // Ports in TIME_WAIT of an earlier test may be taken.
            socket.set_reuseaddr(true)?;
            socket.bind(SocketAddr::new(source, 0))?;
        }
        let stream = socket.connect(self.address).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// Whether connections can come from this address: it is this machine's.
pub(super) fn is_ours(source: IpAddr) -> std::io::Result<()> {
    std::net::UdpSocket::bind(SocketAddr::new(source, 0)).map(drop)
}

/// The addresses that clients connect from, in turn; empty where the system may choose. One
/// address has ports for about 28,000 connections to a server; loopback has 16 million addresses.
pub(super) fn sources(
    given: &[IpAddr],
    targets: &[Target],
    clients: usize,
) -> anyhow::Result<Vec<IpAddr>> {
    let needed = clients.div_ceil(targets.len().max(1)).div_ceil(PORTS);
    let local = targets.iter().all(Target::is_loopback);
    if !given.is_empty() || needed <= 1 {
        return Ok(given.to_vec());
    }
    if !local || targets.iter().any(|target| target.address.is_ipv6()) {
        bail!(
            "one address has ports for {PORTS} connections to a server: name {needed} addresses of \
             this machine by --source"
        );
    }
    Ok((0..needed as u32)
        .map(|n| Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 0, 0, 2)) + n).into())
        .collect())
}

/// How clients get their tokens.
#[derive(Debug, Clone)]
pub(super) enum Tokens {
    /// All have this one.
    Given(String),
    /// Each asks the server for its own.
    Fetched {
        client: reqwest::Client,
        admin_key: Option<String>,
    },
}

#[derive(Deserialize)]
struct Issued {
    token: String,
}

impl Tokens {
    /// Finds out what the server wants.
    pub(super) async fn find(
        target: &Target,
        given: Option<String>,
        admin_key: Option<String>,
        user: &str,
    ) -> anyhow::Result<Self> {
        if let Some(token) = given {
            return Ok(Self::Given(token));
        }
        let client = reqwest::Client::builder()
            .no_proxy()
            .tls_certs_only([])
            .connect_timeout(std::time::Duration::from_secs(5))
            .timeout(std::time::Duration::from_secs(30))
            .build()?;
        let place = target.url.authority();
        let mut request = client.post(target.token_url(user));
        if let Some(key) = &admin_key {
            request = request.bearer_auth(key);
        }
        let response = request.send().await;
        let response = response.with_context(|| format!("{place} does not answer"))?;
        match response.status().as_u16() {
            200 => Ok(Self::Fetched { client, admin_key }),
            401 | 403 if admin_key.is_some() => {
                bail!("{place} does not take this admin key for POST /token")
            }
            401 | 403 => bail!("{place} gives tokens for its admin key only: --admin-key"),
            // The server doesn't give any: perhaps it takes any.
            404 | 405 => Ok(Self::Given("load-test".to_owned())),
            status => bail!("{place} answers POST /token with {status}"),
        }
    }

    pub(super) async fn of(&self, target: &Target, user: &str) -> anyhow::Result<String> {
        match self {
            Self::Given(token) => Ok(token.clone()),
            Self::Fetched { client, admin_key } => {
                let mut request = client.post(target.token_url(user));
                if let Some(key) = admin_key {
                    request = request.bearer_auth(key);
                }
                let response = request.send().await.context("POST /token failed")?;
                let response = response.error_for_status().map_err(|error| {
                    let status = error.status().map_or(0, |status| status.as_u16());
                    anyhow::anyhow!("POST /token: {status}")
                })?;
                let issued: Issued = response.json().await.context("POST /token failed")?;
                Ok(issued.token)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn resolved(text: &str) -> Target {
        Target::resolve(&url(text).unwrap()).await.unwrap()
    }

    #[tokio::test]
    async fn urls_are_taken_in_their_usual_forms() {
        for text in ["ws://127.0.0.1:8000/ws", "http://127.0.0.1:8000"] {
            let target = resolved(text).await;
            let want = "ws://127.0.0.1:8000/ws?token=a%2Bb&userid=u";
            assert_eq!(target.upgrade_url("a+b", "u", ""), want);
            let want = "http://127.0.0.1:8000/token?userid=u";
            assert_eq!(target.token_url("u").as_str(), want);
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
            assert!(url(text).is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn more_clients_than_ports_come_from_more_addresses() {
        let target = resolved("ws://127.0.0.1:1/").await;
        let targets = [target.clone(), target];
        assert!(sources(&[], &targets, 2 * PORTS).unwrap().is_empty());
        let many = sources(&[], &targets, 2 * PORTS + 1).unwrap();
        assert_eq!(many.len(), 2);
        assert!(many.iter().all(IpAddr::is_loopback), "{many:?}");
        let far = resolved("ws://192.0.2.1:1/").await;
        assert!(sources(&[], &[far], PORTS + 1).is_err());
    }
}
