//! Limits the number of connections that are not upgraded to a WebSocket, and the time that each
//! may be idle.
//!
//! So a client that opens connections and sends nothing, or one byte at a time, can't hold more
//! connections than the limits allow. At a limit, the connection that has been idle for longest is
//! closed, if it has been idle for [`EVICTION_GRACE`]. If no connection can be closed at the limit
//! of the gateway, accepting waits, so that many clients that reconnect at once are served in turn
//! and none is refused. At the limit of an address, the new connection is closed.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

/// Time for which a connection must have been idle before it may be evicted, so that its client has
/// time to send the head of a request.
const EVICTION_GRACE: Duration = Duration::from_secs(1);

/// Time from when a response is ready until the connection is closed. Within it, the client must
/// read the whole response and send the complete head of its next request. If `HEAD_TIMEOUT_MS` is
/// longer than this constant, it is used instead.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(60);

/// A connection without a request in progress: the gateway waits for the client to send a request
/// or to read a response.
struct IdleConnection {
    address: IpAddr,
    idle_since: Instant,
    /// When the connection is closed if it is still idle.
    deadline: Instant,
    /// Cancelled when the connection is evicted; its task then closes it.
    evicted: CancellationToken,
}

/// Why no idle connection was evicted.
enum EvictError {
    /// No connection is idle.
    NoIdleConnection,
    /// The oldest idle connection may be evicted after this time.
    RetryAfter(Duration),
}

#[derive(Default)]
struct ConnectionTable {
    /// Number of open connections, idle or not.
    connection_count: usize,
    /// Number of open connections of each address.
    count_per_address: HashMap<IpAddr, usize>,
    /// The key in `idle_connections` of the next connection that becomes idle.
    next_idle_number: u64,
    /// Idle connections, numbered in the order in which they became idle.
    idle_connections: BTreeMap<u64, IdleConnection>,
}

impl ConnectionTable {
    /// Evicts the connection that has been idle for longest: of the connections of `address`, or of
    /// all connections if `address` is `None`.
    fn evict_oldest_idle(&mut self, address: Option<IpAddr>) -> Result<(), EvictError> {
        let matches = |idle: &IdleConnection| address.is_none_or(|only| idle.address == only);
        let Some((&number, oldest)) = self.idle_connections.iter().find(|(_, idle)| matches(idle))
        else {
            return Err(EvictError::NoIdleConnection);
        };
        let remaining_grace = EVICTION_GRACE.saturating_sub(oldest.idle_since.elapsed());
        if !remaining_grace.is_zero() {
            return Err(EvictError::RetryAfter(remaining_grace));
        }
        oldest.evicted.cancel();
        self.idle_connections.remove(&number);
        Ok(())
    }
}

/// All connections of a gateway that are not upgraded to a WebSocket.
pub(in crate::gateway) struct HttpConnections {
    /// Maximum number of connections (`MAX_HTTP_CONNECTIONS`); 0 disables the limit.
    max_connections: usize,
    /// Maximum number of connections of one address (`ADDRESS_MAX_CONNECTIONS`); 0 disables the
    /// limit.
    max_per_address: usize,
    /// Time that the client of a new connection has to send the head of its first request
    /// (`HEAD_TIMEOUT_MS`).
    head_timeout: Duration,
    table: Mutex<ConnectionTable>,
    /// Notified when a connection has ended.
    connection_ended: Notify,
}

impl HttpConnections {
    pub(in crate::gateway) fn new(
        max_connections: usize,
        max_per_address: usize,
        head_timeout: Duration,
    ) -> Arc<Self> {
        Arc::new(Self {
            max_connections,
            max_per_address,
            head_timeout,
            table: Mutex::default(),
            connection_ended: Notify::new(),
        })
    }

    fn table(&self) -> MutexGuard<'_, ConnectionTable> {
        self.table.lock()
    }

    /// Waits until one more connection may be accepted. Evicts an idle connection if necessary.
    pub(super) async fn wait_for_capacity(&self) {
        loop {
            let connection_ended = self.connection_ended.notified();
            let wait = {
                let mut table = self.table();
                if self.max_connections == 0 || table.connection_count < self.max_connections {
                    return;
                }
                // After an eviction, wait too: the evicted connection counts until its task has
                // ended.
                match table.evict_oldest_idle(None) {
                    Err(EvictError::RetryAfter(wait)) => wait,
                    Ok(()) | Err(EvictError::NoIdleConnection) => EVICTION_GRACE,
                }
            };
            tokio::select! {
                () = connection_ended => {}
                () = sleep(wait) => {}
            }
        }
    }

    /// Evicts the connection that has been idle for longest, if a connection can be evicted,
    /// because the process is out of file descriptors.
    pub(super) fn evict_oldest_idle(&self) {
        // If no connection can be evicted, there is nothing else to free, so the result is ignored.
        let _ = self.table().evict_oldest_idle(None);
    }

    /// Registers an accepted connection. `None` if its address has reached its limit and has no
    /// connection that can be evicted. A trusted proxy has no limit, because its connections belong
    /// to many clients.
    pub(super) fn acquire(self: &Arc<Self>, address: IpAddr, is_proxy: bool) -> Option<HttpSlot> {
        let mut table = self.table();
        let count = table.count_per_address.get(&address).copied().unwrap_or(0);
        let is_address_full =
            self.max_per_address > 0 && !is_proxy && count >= self.max_per_address;
        if is_address_full && table.evict_oldest_idle(Some(address)).is_err() {
            return None;
        }
        table.connection_count += 1;
        *table.count_per_address.entry(address).or_insert(0) += 1;
        drop(table);
        let slot = HttpSlot {
            connections: self.clone(),
            address,
            state: Mutex::default(),
            timer_changed: Notify::new(),
            evicted: CancellationToken::new(),
        };
        slot.start_idle_timer(self.head_timeout);
        Some(slot)
    }
}

#[derive(Default)]
struct SlotState {
    /// The connection's key in [`ConnectionTable::idle_connections`]; `None` while a request is
    /// being served.
    idle_number: Option<u64>,
    /// A complete head of a request has arrived.
    has_received_request: bool,
}

/// The registration of one connection in [`HttpConnections`]. Dropping the slot removes the
/// registration.
pub(super) struct HttpSlot {
    connections: Arc<HttpConnections>,
    address: IpAddr,
    state: Mutex<SlotState>,
    /// Notified when the idle timer starts or stops.
    timer_changed: Notify,
    /// Cancelled when the connection is evicted.
    evicted: CancellationToken,
}

impl HttpSlot {
    fn state(&self) -> MutexGuard<'_, SlotState> {
        self.state.lock()
    }

    fn start_idle_timer(&self, timeout: Duration) {
        let now = Instant::now();
        let mut table = self.connections.table();
        let number = table.next_idle_number;
        table.next_idle_number += 1;
        let idle = IdleConnection {
            address: self.address,
            idle_since: now,
            deadline: now + timeout,
            evicted: self.evicted.clone(),
        };
        table.idle_connections.insert(number, idle);
        drop(table);
        self.state().idle_number = Some(number);
        self.timer_changed.notify_one();
    }

    /// Stops the idle timer: the head of a request has arrived, and the gateway has to respond.
    pub(super) fn stop_idle_timer(&self) {
        let idle_number = {
            let mut state = self.state();
            state.has_received_request = true;
            state.idle_number.take()
        };
        if let Some(number) = idle_number {
            self.connections.table().idle_connections.remove(&number);
        }
        self.timer_changed.notify_one();
    }

    /// Starts the idle timer again: the response is ready, and the client has to read it.
    pub(super) fn restart_idle_timer(&self) {
        self.start_idle_timer(KEEP_ALIVE_TIMEOUT.max(self.connections.head_timeout));
    }

    /// Whether the client has sent the complete head of at least one request.
    pub(super) fn has_received_request(&self) -> bool {
        self.state().has_received_request
    }

    /// Waits until the connection has to be closed, because it was idle for too long or evicted.
    pub(super) async fn wait_until_expired(&self) {
        loop {
            let deadline = {
                let idle_number = self.state().idle_number;
                let table = self.connections.table();
                idle_number.and_then(|number| Some(table.idle_connections.get(&number)?.deadline))
            };
            let timed_out = async {
                match deadline {
                    Some(deadline) => sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.evicted.cancelled() => return,
                () = self.timer_changed.notified() => {}
                () = timed_out => return,
            }
        }
    }
}

impl Drop for HttpSlot {
    fn drop(&mut self) {
        let idle_number = self.state().idle_number.take();
        let mut table = self.connections.table();
        if let Some(number) = idle_number {
            table.idle_connections.remove(&number);
        }
        table.connection_count -= 1;
        if let Some(count) = table.count_per_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                table.count_per_address.remove(&self.address);
            }
        }
        drop(table);
        self.connections.connection_ended.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;

    use tokio::time::{advance, timeout};

    use super::*;

    const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    async fn is_ready<F: Future>(future: F) -> bool {
        timeout(Duration::ZERO, future).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn oldest_idle_connection_is_evicted_after_its_grace() {
        let connections = HttpConnections::new(2, 0, HEAD_TIMEOUT);
        let first = connections.acquire(ip(1), false).unwrap();
        let second = connections.acquire(ip(2), false).unwrap();
        assert!(!is_ready(connections.wait_for_capacity()).await);
        assert!(
            !is_ready(first.wait_until_expired()).await,
            "within its grace"
        );
        advance(EVICTION_GRACE).await;
        // A request of the first connection is being served, so that connection is not idle.
        first.stop_idle_timer();
        assert!(
            !is_ready(connections.wait_for_capacity()).await,
            "not before the evicted connection's task has ended"
        );
        assert!(is_ready(second.wait_until_expired()).await);
        assert!(!is_ready(first.wait_until_expired()).await);
        drop(second);
        assert!(is_ready(connections.wait_for_capacity()).await);
        let _third = connections.acquire(ip(3), false).unwrap();
        first.restart_idle_timer();
        assert!(!is_ready(connections.wait_for_capacity()).await);
    }

    #[tokio::test(start_paused = true)]
    async fn slow_client_is_timed_out_but_slow_gateway_is_not() {
        let connections = HttpConnections::new(0, 0, HEAD_TIMEOUT);
        let slot = connections.acquire(ip(1), false).unwrap();
        advance(HEAD_TIMEOUT.saturating_sub(Duration::from_millis(10))).await;
        assert!(!is_ready(slot.wait_until_expired()).await);
        advance(Duration::from_millis(20)).await;
        assert!(is_ready(slot.wait_until_expired()).await && !slot.has_received_request());
        let slot = connections.acquire(ip(1), false).unwrap();
        slot.stop_idle_timer();
        advance(HEAD_TIMEOUT * 100).await;
        assert!(
            !is_ready(slot.wait_until_expired()).await,
            "the client waits for the gateway"
        );
        slot.restart_idle_timer();
        advance(KEEP_ALIVE_TIMEOUT + Duration::from_millis(10)).await;
        assert!(
            is_ready(slot.wait_until_expired()).await,
            "the client does not read its response"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn connections_per_address_are_bounded_except_for_proxies() {
        let connections = HttpConnections::new(0, 2, HEAD_TIMEOUT);
        let first = connections.acquire(ip(1), false).unwrap();
        let _second = connections.acquire(ip(1), false).unwrap();
        assert!(connections.acquire(ip(1), false).is_none());
        let _other = connections.acquire(ip(2), false).unwrap();
        advance(EVICTION_GRACE).await;
        let _third = connections.acquire(ip(1), false).unwrap();
        assert!(is_ready(first.wait_until_expired()).await);
        let proxied: Vec<_> = (0..50).map(|_| connections.acquire(ip(9), true)).collect();
        assert!(proxied.iter().all(Option::is_some));
        drop(proxied);
        assert!(!connections.table().count_per_address.contains_key(&ip(9)));
    }

    #[tokio::test(start_paused = true)]
    async fn released_connections_leave_nothing_in_the_table() {
        let connections = HttpConnections::new(1, 1, HEAD_TIMEOUT);
        for _ in 0..20 {
            connections.wait_for_capacity().await;
            let slot = connections.acquire(ip(1), false).unwrap();
            slot.stop_idle_timer();
            slot.restart_idle_timer();
        }
        let table = connections.table();
        assert!(
            table.connection_count == 0
                && table.idle_connections.is_empty()
                && table.count_per_address.is_empty()
        );
    }
}
