//! Configures every HTTP client of chatmesh alike. The servers are the model's API, a key set's
//! URL, the trace collector, and other chatmesh processes.

use reqwest::{Client, ClientBuilder, redirect};
use url::{Host, Url};

/// Returns a builder of a client for the server at `url`.
///
/// - The client follows no redirects, so that keys and contents reach no other server.
/// - For plain HTTP, the client loads no certificates, so that it works in images without
///   certificates.
/// - For a loopback address, the client uses no proxy.
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
