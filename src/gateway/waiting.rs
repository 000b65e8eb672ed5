//! Connections that are no WebSocket, or not yet: how many there may be, and how long each may be
//! silent.
//!
//! Whoever only opens connections and says nothing, or says it one byte at a time, gets no further
//! than these bounds. At the bound the one that has been silent for longest makes room, if it had a
//! moment to speak; otherwise accepting waits, so that a crowd that comes back at once is taken in
//! turn and nobody of it is cut off.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

/// Nobody is cut off to make room before it had so much time to send its request's head.
const GRACE: Duration = Duration::from_secs(1);

/// What a client gets to read an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

struct Silent {
    address: IpAddr,
    since: Instant,
    until: Instant,
    evicted: CancellationToken,
}

#[derive(Default)]
struct List {
    /// Connections that are open, silent or not.
    all: usize,
    addresses: HashMap<IpAddr, usize>,
    /// Numbers those that are silent, so that the first is the one that is so for longest.
    next: u64,
    silent: BTreeMap<u64, Silent>,
}

impl List {
    /// Cuts off the one that has been silent for longest, of one address or of all. Otherwise how
    /// long to wait until one may be cut off, if there is any.
    fn evict(&mut self, of: Option<IpAddr>) -> Result<(), Option<Duration>> {
        let fits = |silent: &Silent| of.is_none_or(|address| silent.address == address);
        let Some((&number, oldest)) = self.silent.iter().find(|(_, silent)| fits(silent)) else {
            return Err(None);
        };
        let left = GRACE.saturating_sub(oldest.since.elapsed());
        if !left.is_zero() {
            return Err(Some(left));
        }
        oldest.evicted.cancel();
        self.silent.remove(&number);
        Ok(())
    }
}

/// All of them.
pub(super) struct Waiting {
    /// `MAX_HTTP_CONNECTIONS`; 0 is without a bound.
    most: usize,
    /// `ADDRESS_MAX_CONNECTIONS`; 0 is without a bound.
    per_address: usize,
    /// `HEAD_TIMEOUT_MS`.
    head_timeout: Duration,
    list: Mutex<List>,
    /// One has gone.
    gone: Notify,
}

impl Waiting {
    pub(super) fn new(most: usize, per_address: usize, head_timeout: Duration) -> Arc<Self> {
        Arc::new(Self {
            most,
            per_address,
            head_timeout,
            list: Mutex::default(),
            gone: Notify::new(),
        })
    }

    fn list(&self) -> MutexGuard<'_, List> {
        self.list.lock()
    }

    /// Waits until one more may be accepted.
    pub(super) async fn room(&self) {
        loop {
            let gone = self.gone.notified();
            let wait = {
                let mut list = self.list();
                if self.most == 0 || list.all < self.most {
                    return;
                }
                // Its place is free when its task has ended.
                list.evict(None).err().flatten().unwrap_or(GRACE)
            };
            tokio::select! {
                () = gone => {}
                () = sleep(wait) => {}
            }
        }
    }

    /// No descriptor is left: one that is silent gives its own, if there is any.
    pub(super) fn give_way(&self) {
        // Where all of them are new there is nothing to give.
        let _ = self.list().evict(None);
    }

    /// A connection was accepted; `None` where its address has too many of them. A proxy's
    /// connections are those of many, and not counted.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr, is_proxy: bool) -> Option<Seat> {
        let mut list = self.list();
        let count = list.addresses.get(&address).copied().unwrap_or(0);
        let full = self.per_address > 0 && !is_proxy && count >= self.per_address;
        if full && list.evict(Some(address)).is_err() {
            return None;
        }
        list.all += 1;
        *list.addresses.entry(address).or_insert(0) += 1;
        drop(list);
        let seat = Seat {
            waiting: self.clone(),
            address,
            state: Mutex::new(State::default()),
            changed: Notify::new(),
            evicted: CancellationToken::new(),
        };
        seat.silent_for(self.head_timeout);
        Some(seat)
    }
}

#[derive(Default)]
struct State {
    /// Its number among the silent ones.
    number: Option<u64>,
    /// It has sent a whole head.
    spoke: bool,
}

/// A connection's place among them; it is free again when this is dropped.
pub(super) struct Seat {
    waiting: Arc<Waiting>,
    address: IpAddr,
    state: Mutex<State>,
    changed: Notify,
    evicted: CancellationToken,
}

impl Seat {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    fn silent_for(&self, limit: Duration) {
        let now = Instant::now();
        let mut list = self.waiting.list();
        let number = list.next;
        list.next += 1;
        let silent = Silent {
            address: self.address,
            since: now,
            until: now + limit,
            evicted: self.evicted.clone(),
        };
        list.silent.insert(number, silent);
        drop(list);
        self.state().number = Some(number);
        self.changed.notify_one();
    }

    /// A request's head is there: now we are the ones to speak.
    pub(super) fn spoke(&self) {
        let number = {
            let mut state = self.state();
            state.spoke = true;
            state.number.take()
        };
        if let Some(number) = number {
            self.waiting.list().silent.remove(&number);
        }
        self.changed.notify_one();
    }

    /// The answer is ready: the client is to take it, and may ask again.
    pub(super) fn answered(&self) {
        self.silent_for(ANSWER_TIMEOUT.max(self.waiting.head_timeout));
    }

    /// Whether it ever sent a whole head.
    pub(super) fn has_spoken(&self) -> bool {
        self.state().spoke
    }

    /// Returns when the connection was silent for too long, or has to make room.
    pub(super) async fn over(&self) {
        loop {
            let until = {
                let number = self.state().number;
                let list = self.waiting.list();
                number.and_then(|number| Some(list.silent.get(&number)?.until))
            };
            let ended = async {
                match until {
                    Some(until) => sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.evicted.cancelled() => return,
                () = self.changed.notified() => {}
                () = ended => return,
            }
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let number = self.state().number.take();
        let mut list = self.waiting.list();
        if let Some(number) = number {
            list.silent.remove(&number);
        }
        list.all -= 1;
        if let Some(count) = list.addresses.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                list.addresses.remove(&self.address);
            }
        }
        drop(list);
        self.waiting.gone.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;

    use tokio::time::{advance, timeout};

    use super::*;

    const HEAD: Duration = Duration::from_secs(10);

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    async fn now<F: Future>(future: F) -> bool {
        timeout(Duration::ZERO, future).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_silent_for_longest_makes_room_but_not_before_it_could_speak() {
        let waiting = Waiting::new(2, 0, HEAD);
        let first = waiting.enter(ip(1), false).unwrap();
        let second = waiting.enter(ip(2), false).unwrap();
        assert!(!now(waiting.room()).await);
        assert!(!now(first.over()).await, "it has only just come");
        advance(GRACE).await;
        // The first is being answered: it is not silent.
        first.spoke();
        assert!(!now(waiting.room()).await, "not before the task has ended");
        assert!(now(second.over()).await);
        assert!(!now(first.over()).await);
        drop(second);
        assert!(now(waiting.room()).await);
        let _third = waiting.enter(ip(3), false).unwrap();
        first.answered();
        assert!(!now(waiting.room()).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_has_so_much_time_whatever_of_it_comes() {
        let waiting = Waiting::new(0, 0, HEAD);
        let seat = waiting.enter(ip(1), false).unwrap();
        advance(HEAD.saturating_sub(Duration::from_millis(10))).await;
        assert!(!now(seat.over()).await);
        advance(Duration::from_millis(20)).await;
        assert!(now(seat.over()).await && !seat.has_spoken());
        let seat = waiting.enter(ip(1), false).unwrap();
        seat.spoke();
        advance(HEAD * 100).await;
        assert!(!now(seat.over()).await, "it waits for us");
        seat.answered();
        advance(ANSWER_TIMEOUT + Duration::from_millis(10)).await;
        assert!(now(seat.over()).await, "it does not take its answer");
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_has_so_many_and_a_proxy_any_number() {
        let waiting = Waiting::new(0, 2, HEAD);
        let one = waiting.enter(ip(1), false).unwrap();
        let _two = waiting.enter(ip(1), false).unwrap();
        assert!(waiting.enter(ip(1), false).is_none());
        let _other = waiting.enter(ip(2), false).unwrap();
        advance(GRACE).await;
        let _three = waiting.enter(ip(1), false).unwrap();
        assert!(now(one.over()).await);
        let proxied: Vec<_> = (0..50).map(|_| waiting.enter(ip(9), true)).collect();
        assert!(proxied.iter().all(Option::is_some));
        drop(proxied);
        assert!(!waiting.list().addresses.contains_key(&ip(9)));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_left_of_those_who_went() {
        let waiting = Waiting::new(1, 1, HEAD);
        for _ in 0..20 {
            waiting.room().await;
            let seat = waiting.enter(ip(1), false).unwrap();
            seat.spoke();
            seat.answered();
        }
        let list = waiting.list();
        assert!(list.all == 0 && list.silent.is_empty() && list.addresses.is_empty());
    }
}
