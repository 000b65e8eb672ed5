//! How many connections there may be: of a user, from an address, in this process, and new ones in
//! a second (protocol.md section 1.3). Over it an upgrade is refused with 503.

use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use hyper::HeaderMap;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::reply::Refusal;
use crate::config::settings::ConnectionLimits;
use crate::protocol::ids::UserId;

/// The address that a connection comes from, before any proxy's word is heard.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub(super) SocketAddr);

/// Tokens that come back with time: bursts of a second's worth, and no more on average.
struct Bucket {
    level: f64,
    at: Instant,
}

pub(super) struct Limits {
    settings: ConnectionLimits,
    users: DashMap<UserId, usize>,
    addresses: DashMap<IpAddr, usize>,
    all: AtomicUsize,
    bucket: Mutex<Bucket>,
}

/// A connection's place; it is free again when this is dropped.
pub(super) struct Place {
    limits: Arc<Limits>,
    user: UserId,
    address: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        leave(&self.limits.users, &self.user);
        leave(&self.limits.addresses, &self.address);
        self.limits.all.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One more of `key`, unless there are `most` (0: without a bound).
fn enter<K: Eq + Hash>(map: &DashMap<K, usize>, key: K, most: usize) -> bool {
    let mut count = map.entry(key).or_insert(0);
    let room = most == 0 || *count < most;
    *count += usize::from(room);
    room
}

fn leave<K: Eq + Hash + Clone>(map: &DashMap<K, usize>, key: &K) {
    if let Entry::Occupied(mut count) = map.entry(key.clone()) {
        if *count.get() <= 1 {
            count.remove();
        } else {
            *count.get_mut() -= 1;
        }
    }
}

/// Whoever has an IPv6 address mostly has its whole /64.
pub(super) fn counted(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => v4.into(),
            None => Ipv6Addr::from(u128::from(v6) & !u128::from(u64::MAX)).into(),
        },
        v4 @ IpAddr::V4(_) => v4,
    }
}

impl Limits {
    pub(super) fn new(settings: ConnectionLimits) -> Arc<Self> {
        Arc::new(Self {
            bucket: Mutex::new(Bucket {
                level: f64::from(settings.per_second),
                at: Instant::now(),
            }),
            settings,
            users: DashMap::new(),
            addresses: DashMap::new(),
            all: AtomicUsize::new(0),
        })
    }

    /// Whether it is one of `TRUSTED_PROXIES`.
    pub(super) fn is_proxy(&self, peer: IpAddr) -> bool {
        let nets = &self.settings.trusted_proxies;
        nets.iter().any(|net| net.contains(peer))
    }

    /// The client's address: the peer's, or what trusted proxies say of it. Each of them adds the
    /// address that it sees at the end of the list, so what stands before an untrusted one is only
    /// that one's claim.
    pub(super) fn address(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut address = peer;
        let values: Vec<_> = headers.get_all("x-forwarded-for").iter().collect();
        let hops = values
            .iter()
            .rev()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.rsplit(','));
        for hop in hops {
            if !self.is_proxy(address) {
                break;
            }
            match hop.trim().parse() {
                Ok(ip) => address = ip,
                Err(_) => break,
            }
        }
        counted(address)
    }

    /// Whether one more may begin now. Asked before anything is done for it.
    pub(super) fn pace(&self) -> Result<(), Refusal> {
        let most = f64::from(self.settings.per_second);
        if most == 0.0 {
            return Ok(());
        }
        let mut bucket = self.bucket.lock();
        let now = Instant::now();
        let came = now.duration_since(bucket.at).as_secs_f64() * most;
        bucket.level = (bucket.level + came).min(most);
        bucket.at = now;
        if bucket.level < 1.0 {
            return Err(Refusal::unavailable("too many new connections"));
        }
        bucket.level -= 1.0;
        Ok(())
    }

    /// Takes a place, or says which limit is reached.
    pub(super) fn place(
        self: &Arc<Self>,
        user: &UserId,
        address: IpAddr,
    ) -> Result<Place, Refusal> {
        let settings = &self.settings;
        let before = self.all.fetch_add(1, Ordering::Relaxed);
        if settings.per_process > 0 && before >= settings.per_process {
            self.all.fetch_sub(1, Ordering::Relaxed);
            return Err(Refusal::unavailable("this gateway is full"));
        }
        if !enter(&self.users, user.clone(), settings.per_user) {
            self.all.fetch_sub(1, Ordering::Relaxed);
            return Err(Refusal::unavailable("this user has too many connections"));
        }
        if !enter(&self.addresses, address, settings.per_address) {
            self.all.fetch_sub(1, Ordering::Relaxed);
            leave(&self.users, user);
            return Err(Refusal::unavailable(
                "this address has too many connections",
            ));
        }
        Ok(Place {
            limits: self.clone(),
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

    fn limits(change: impl FnOnce(&mut ConnectionLimits)) -> Arc<Limits> {
        let mut settings = ConnectionLimits::default();
        change(&mut settings);
        Limits::new(settings)
    }

    #[test]
    fn a_place_is_free_again_when_its_connection_ends() {
        let limits = limits(|it| {
            it.per_user = 2;
            it.per_address = 3;
            it.per_process = 4;
        });
        let ip = |last| IpAddr::from([10, 0, 0, last]);
        let take = |name, last| limits.place(&user(name), ip(last));
        let first = take("a", 1).ok().unwrap();
        let _second = take("a", 1).ok().unwrap();
        assert!(take("a", 2).is_err(), "of the user");
        let _third = take("b", 1).ok().unwrap();
        assert!(take("c", 1).is_err(), "of the address");
        let _fourth = take("b", 2).ok().unwrap();
        assert!(take("d", 3).is_err(), "of the process");
        drop(first);
        let _again = take("a", 1).ok().unwrap();
        assert!(take("d", 3).is_err());
    }

    #[test]
    fn nothing_is_left_of_users_who_went() {
        let limits = limits(|it| it.per_user = 1);
        for n in 0..50_u8 {
            let place = limits.place(&user(&format!("u{n}")), IpAddr::from([10, 0, 0, n]));
            let refused = limits.place(&user(&format!("u{n}")), IpAddr::from([10, 0, 1, n]));
            assert!(refused.is_err());
            drop(place);
        }
        assert!(limits.users.is_empty() && limits.addresses.is_empty());
        assert_eq!(limits.all.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn new_connections_are_paced() {
        let limits = limits(|it| it.per_second = 10);
        for _ in 0..10 {
            assert!(limits.pace().is_ok());
        }
        assert!(limits.pace().is_err());
        tokio::time::advance(Duration::from_millis(100)).await;
        assert!(limits.pace().is_ok());
        assert!(limits.pace().is_err());
    }

    #[test]
    fn only_a_trusted_proxy_is_believed_and_only_its_own_word() {
        let limits = limits(|it| it.trusted_proxies = vec!["10.0.0.0/8".parse().unwrap()]);
        let address = |peer: &str, forwarded: &[&str]| {
            let mut headers = HeaderMap::new();
            for one in forwarded {
                let value = HeaderValue::from_str(one).unwrap();
                headers.append("x-forwarded-for", value);
            }
            limits.address(peer.parse().unwrap(), &headers).to_string()
        };
        assert_eq!(address("1.2.3.4", &["9.9.9.9"]), "1.2.3.4");
        assert_eq!(address("10.0.0.1", &["9.9.9.9"]), "9.9.9.9");
        // The client's own claim stands before what the proxy saw.
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
        fn no_forwarded_header_breaks_anything(text in "[ -~]{0,80}") {
            let limits = limits(|it| it.trusted_proxies = vec!["0.0.0.0/0".parse().unwrap()]);
            let mut headers = HeaderMap::new();
            headers.insert("x-forwarded-for", HeaderValue::from_str(&text).unwrap());
            limits.address(IpAddr::from([127, 0, 0, 1]), &headers);
        }
    }
}
