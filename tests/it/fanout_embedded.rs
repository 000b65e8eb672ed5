//! The contract suite of the fan-out on the embedded implementation, in memory and on disk.

use std::sync::Arc;

use async_trait::async_trait;
use chatmesh::config::bounds::Bounds;
use chatmesh::fanout::Fanout;
use chatmesh::fanout::embedded::EmbeddedFanout;
use chatmesh::protocol::ids::UserId;
use chatmesh::store::{Store, Table};
use tempfile::TempDir;
use tokio::sync::Mutex;

use crate::fanout_contract::Backend;

/// The store of one process and the fan-out on it.
struct Instance {
    fanout: Arc<EmbeddedFanout>,
    store: Store,
    bounds: Bounds,
    _dir: Option<TempDir>,
}

/// All fan-outs that a test opens are the same instance, because one process has only one.
struct EmbeddedBackend {
    is_durable: bool,
    instance: Mutex<Option<Instance>>,
}

impl EmbeddedBackend {
    #[allow(clippy::unused_async, reason = "other backends have to wait")]
    async fn new(is_durable: bool) -> Self {
        Self {
            is_durable,
            instance: Mutex::default(),
        }
    }

    fn empty_instance(&self, bounds: Bounds) -> Instance {
        let dir = self.is_durable.then(|| tempfile::tempdir().unwrap());
        let store = match &dir {
            Some(dir) => Store::open(dir.path(), 0).unwrap(),
            None => Store::in_memory(),
        };
        let fanout = EmbeddedFanout::open(store.clone(), bounds.clone()).unwrap();
        Instance {
            fanout: Arc::new(fanout),
            store,
            bounds,
            _dir: dir,
        }
    }
}

#[async_trait]
impl Backend for EmbeddedBackend {
    async fn open(&self, bounds: Bounds) -> Arc<dyn Fanout> {
        let mut instance = self.instance.lock().await;
        let instance = instance.get_or_insert_with(|| self.empty_instance(bounds));
        Arc::clone(&instance.fanout) as _
    }

    async fn lose_data(&self, _user: &UserId) -> Option<Arc<dyn Fanout>> {
        let mut instance = self.instance.lock().await;
        let bounds = instance.take()?.bounds;
        let empty = instance.insert(self.empty_instance(bounds));
        Some(Arc::clone(&empty.fanout) as _)
    }

    async fn contains(&self, user: &UserId, text: &str) -> bool {
        let instance = self.instance.lock().await;
        let store = &instance.as_ref().unwrap().store;
        let from = [user.as_str().as_bytes(), b"\0"].concat();
        let to = [user.as_str().as_bytes(), b"\x01"].concat();
        [Table::Users, Table::History].into_iter().any(|table| {
            let entries = store.scan(table, &from, &to, usize::MAX, false).unwrap();
            let mut values = entries.iter().map(|(_, value)| value.windows(text.len()));
            values.any(|mut windows| windows.any(|window| window == text.as_bytes()))
        })
    }

    async fn key_names(&self, _user: &UserId) -> Vec<String> {
        Vec::new()
    }
}

mod memory {
    crate::fanout_contract!(super::EmbeddedBackend::new(false));
}

mod durable {
    crate::fanout_contract!(super::EmbeddedBackend::new(true));
}
