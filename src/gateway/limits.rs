//! Limits WebSocket connections per user, per address and per process, and new connections per
//! second (protocol.md section 7). Above a limit, the handshake refuses an upgrade with 503.

use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use hyper::HeaderMap;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::http::response::HttpError;
use crate::config::settings::ConnectionLimits;
use crate::protocol::ids::UserId;

/// The remote address of a TCP connection: that of the client, or that of a proxy in front of the
/// gateway.
#[derive(Debug, Clone, Copy)]
pub(super) struct PeerAddress(pub(super) SocketAddr);

/// A token bucket that limits new connections. It holds at most as many tokens as are added in one
/// second.
struct TokenBucket {
    tokens: f64,
    refilled_at: Instant,
}

/// Counts the WebSocket connections of this process, and refuses connections above a limit.
pub(super) struct ConnectionLimiter {
    settings: ConnectionLimits,
    per_user: DashMap<UserId, usize>,
    per_address: DashMap<IpAddr, usize>,
    total: AtomicUsize,
    new_connections: Mutex<TokenBucket>,
}

/// The right to one connection. Dropping it lowers the counts.
pub(super) struct ConnectionPermit {
    limiter: Arc<ConnectionLimiter>,
    user: UserId,
    address: IpAddr,
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        decrement(&self.limiter.per_user, &self.user);
        decrement(&self.limiter.per_address, &self.address);
        self.limiter.total.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Increments the count of `key` unless it has reached `max`, where 0 means no limit. Returns
/// whether the count was incremented.
fn try_increment<K: Eq + Hash>(counts: &DashMap<K, usize>, key: K, max: usize) -> bool {
    let mut count = counts.entry(key).or_insert(0);
    let has_capacity = max == 0 || *count < max;
    *count += usize::from(has_capacity);
    has_capacity
}

/// Decrements the count of `key` and removes it at zero.
fn decrement<K: Eq + Hash + Clone>(counts: &DashMap<K, usize>, key: &K) {
    if let Entry::Occupied(mut count) = counts.entry(key.clone()) {
        if *count.get() <= 1 {
            count.remove();
        } else {
            *count.get_mut() -= 1;
        }
    }
}

/// The address under which connections are counted: for IPv6 the first address of its /64 network,
/// because a client usually has all addresses of such a network.
pub(super) fn limit_key(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => v4.into(),
            None => Ipv6Addr::from(u128::from(v6) & !u128::from(u64::MAX)).into(),
        },
        v4 @ IpAddr::V4(_) => v4,
    }
}

impl ConnectionLimiter {
    pub(super) fn new(settings: ConnectionLimits) -> Arc<Self> {
        Arc::new(Self {
            new_connections: Mutex::new(TokenBucket {
                tokens: f64::from(settings.per_second),
                refilled_at: Instant::now(),
            }),
            settings,
            per_user: DashMap::new(),
            per_address: DashMap::new(),
            total: AtomicUsize::new(0),
        })
    }

    /// Whether the address belongs to a network of `TRUSTED_PROXIES`.
    pub(super) fn is_trusted_proxy(&self, address: IpAddr) -> bool {
        let networks = &self.settings.trusted_proxies;
        networks.iter().any(|network| network.contains(address))
    }

    /// The [`limit_key`] of a client: of the peer's address, or of the address that trusted proxies
    /// report in `X-Forwarded-For`. Each proxy appends the address of its own peer, so the list is
    /// read from its end. Entries before an untrusted address are ignored, because a client may
    /// have forged them.
    pub(super) fn client_address(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut address = peer;
        let values: Vec<_> = headers.get_all("x-forwarded-for").iter().collect();
        let hops = values
            .iter()
            .rev()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.rsplit(','));
        for hop in hops {
            if !self.is_trusted_proxy(address) {
                break;
            }
            match hop.trim().parse() {
                Ok(ip) => address = ip,
                Err(_) => break,
            }
        }
        limit_key(address)
    }

    /// Takes a token for a new connection (`MAX_NEW_CONNECTIONS` are added per second). Returns an
    /// error if there is none.
    pub(super) fn check_rate(&self) -> Result<(), HttpError> {
        let per_second = f64::from(self.settings.per_second);
        if per_second == 0.0 {
            return Ok(());
        }
        let mut bucket = self.new_connections.lock();
        let now = Instant::now();
        let added = now.duration_since(bucket.refilled_at).as_secs_f64() * per_second;
        bucket.tokens = (bucket.tokens + added).min(per_second);
        bucket.refilled_at = now;
        if bucket.tokens < 1.0 {
            return Err(HttpError::unavailable("too many new connections"));
        }
        bucket.tokens -= 1.0;
        Ok(())
    }

    /// Acquires a permit for one connection. The error names the limit that is reached.
    pub(super) fn acquire(
        self: &Arc<Self>,
        user: &UserId,
        address: IpAddr,
    ) -> Result<ConnectionPermit, HttpError> {
        let settings = &self.settings;
        let total = self.total.fetch_add(1, Ordering::Relaxed);
        if settings.per_process > 0 && total >= settings.per_process {
            self.total.fetch_sub(1, Ordering::Relaxed);
            return Err(HttpError::unavailable("this gateway is full"));
        }
        if !try_increment(&self.per_user, user.clone(), settings.per_user) {
            self.total.fetch_sub(1, Ordering::Relaxed);
            return Err(HttpError::unavailable("this user has too many connections"));
        }
        if !try_increment(&self.per_address, address, settings.per_address) {
            self.total.fetch_sub(1, Ordering::Relaxed);
            decrement(&self.per_user, user);
            return Err(HttpError::unavailable(
                "this address has too many connections",
            ));
        }
        Ok(ConnectionPermit {
            limiter: self.clone(),
            user: user.clone(),
            address,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hyper::header::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn user(name: &str) -> UserId {
        UserId::parse(name).unwrap()
    }

    fn limiter(change: impl FnOnce(&mut ConnectionLimits)) -> Arc<ConnectionLimiter> {
        let mut settings = ConnectionLimits::default();
        change(&mut settings);
        ConnectionLimiter::new(settings)
    }

    #[test]
    fn permit_is_released_when_its_connection_ends() {
        let limiter = limiter(|settings| {
            settings.per_user = 2;
            settings.per_address = 3;
            settings.per_process = 4;
        });
        let ip = |last| IpAddr::from([10, 0, 0, last]);
        let acquire = |name, last| limiter.acquire(&user(name), ip(last));
        let first = acquire("a", 1).ok().unwrap();
        let _second = acquire("a", 1).ok().unwrap();
        assert!(acquire("a", 2).is_err(), "limit per user");
        let _third = acquire("b", 1).ok().unwrap();
        assert!(acquire("c", 1).is_err(), "limit per address");
        let _fourth = acquire("b", 2).ok().unwrap();
        assert!(acquire("d", 3).is_err(), "limit per process");
        drop(first);
        let _fifth = acquire("a", 1).ok().unwrap();
        assert!(acquire("d", 3).is_err(), "limit per process");
    }

    #[test]
    fn released_permits_leave_no_counts() {
        let limiter = limiter(|settings| settings.per_user = 1);
        for n in 0..50_u8 {
            let permit = limiter.acquire(&user(&format!("u{n}")), IpAddr::from([10, 0, 0, n]));
            let refused = limiter.acquire(&user(&format!("u{n}")), IpAddr::from([10, 0, 1, n]));
            assert!(refused.is_err());
            drop(permit);
        }
        assert!(limiter.per_user.is_empty() && limiter.per_address.is_empty());
        assert_eq!(limiter.total.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn rate_of_new_connections_is_bounded() {
        let limiter = limiter(|settings| settings.per_second = 10);
        for _ in 0..10 {
            assert!(limiter.check_rate().is_ok());
        }
        assert!(limiter.check_rate().is_err());
        tokio::time::advance(Duration::from_millis(100)).await;
        assert!(limiter.check_rate().is_ok());
        assert!(limiter.check_rate().is_err());
    }

    #[test]
    fn only_addresses_added_by_trusted_proxies_count() {
        let limiter =
            limiter(|settings| settings.trusted_proxies = vec!["10.0.0.0/8".parse().unwrap()]);
        let address = |peer: &str, forwarded: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in forwarded {
                let value = HeaderValue::from_str(value).unwrap();
                headers.append("x-forwarded-for", value);
            }
            limiter
                .client_address(peer.parse().unwrap(), &headers)
                .to_string()
        };
        assert_eq!(address("1.2.3.4", &["9.9.9.9"]), "1.2.3.4");
        assert_eq!(address("10.0.0.1", &["9.9.9.9"]), "9.9.9.9");
        // The client has sent a forged entry, and the proxy has appended the client's address.
        assert_eq!(address("10.0.0.1", &["6.6.6.6, 9.9.9.9"]), "9.9.9.9");
        assert_eq!(address("10.0.0.1", &["6.6.6.6", "9.9.9.9"]), "9.9.9.9");
        assert_eq!(address("10.0.0.1", &["9.9.9.9, 10.0.0.2"]), "9.9.9.9");
        assert_eq!(address("10.0.0.1", &["nonsense"]), "10.0.0.1");
        assert_eq!(address("10.0.0.1", &[]), "10.0.0.1");
        assert_eq!(address("2001:db8::1", &[]), "2001:db8::");
        assert_eq!(address("::ffff:1.2.3.4", &[]), "1.2.3.4");
    }

    proptest! {
        #[test]
        fn no_forwarded_header_panics(text in "[ -~]{0,80}") {
            let limiter = limiter(|settings| settings.trusted_proxies = vec!["0.0.0.0/0".parse().unwrap()]);
            let mut headers = HeaderMap::new();
            headers.insert("x-forwarded-for", HeaderValue::from_str(&text).unwrap());
            limiter.client_address(IpAddr::from([127, 0, 0, 1]), &headers);
        }
    }
}
