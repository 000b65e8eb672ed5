//! What all HTTP clients of chatmesh have in common.

use reqwest::{Client, ClientBuilder, redirect};
use url::{Host, Url};

/// A client for one server. It follows no redirect, so that keys and contents go nowhere else;
/// works with plain HTTP on a machine without certificates, since none is ever looked at; and asks
/// no proxy for what is on this machine.
pub(crate) fn for_server(url: &Url) -> ClientBuilder {
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
