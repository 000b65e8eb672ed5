//! The common configuration of all HTTP clients.

use reqwest::{Client, ClientBuilder, redirect};
use url::{Host, Url};

/// A client for the server at `url`.
///
/// - It follows no redirects, so that keys and contents reach no other server.
/// - For plain HTTP it loads no certificates, so it works in images that have none.
/// - For a loopback address it uses no proxy.
pub(crate) fn builder_for(url: &Url) -> ClientBuilder {
    let mut builder = Client::builder()
        .user_agent(concat!("chatmesh/", env!("CARGO_PKG_VERSION")))
        .redirect(redirect::Policy::none())
        .referer(false);
    if url.scheme() == "http" {
        builder = builder.tls_certs_only([]);
    }
    if is_loopback(url) {
        builder = builder.no_proxy();
    }
    builder
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}
