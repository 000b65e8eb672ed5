//! The fan-out on a real Redis: the contract on a single server, a cluster and behind sentinel, and
//! the behaviour when servers start, stop, and lose their data.

mod clusters;
mod load;
mod migration;
mod outages;
mod streams;

use std::sync::Arc;

use async_trait::async_trait;
use chatmesh::config::bounds::Bounds;
use chatmesh::fanout::Fanout;
use chatmesh::fanout::redis::RedisFanout;
use chatmesh::protocol::ids::{ConversationId, UserId};
use chatmesh::protocol::timestamp::now_ms;
use fred::clients::Client;
use fred::interfaces::{ClientLike, LuaInterface};
use fred::types::Builder;
use fred::types::config::Config;

use crate::fanout_contract::{Backend, Case};
use crate::settings::redis_settings;

/// A Redis that is shared with other tests. Only the data of the test's own user is deleted.
pub(crate) struct RedisBackend {
    url: String,
    admin: Client,
}

impl RedisBackend {
    async fn new(variable: &str) -> Self {
        let url = std::env::var(variable)
            .unwrap_or_else(|_| panic!("{variable} is not set: run the tests by tests/run"));
        Self::with_url(url).await
    }

    async fn with_url(url: String) -> Self {
        let admin = Builder::from_config(Config::from_url(&url).unwrap())
            .build()
            .unwrap();
        admin.init().await.unwrap();
        Self { url, admin }
    }
}

#[async_trait]
impl Backend for RedisBackend {
    async fn open(&self, bounds: Bounds) -> Arc<dyn Fanout> {
        Arc::new(RedisFanout::connect(&redis_settings(&self.url, bounds)).unwrap())
    }

    async fn lose_data(&self, user: &UserId) -> Option<Arc<dyn Fanout>> {
        // The user id needs no escaping, because it has no wildcards of Redis's patterns.
        let tag = format!("{{user:{user}}}");
        let script = "for _, key in ipairs(redis.call('KEYS', KEYS[1] .. ':*')) do \
                      redis.call('DEL', key) end return 1";
        let _: i64 = self
            .admin
            .eval(script, tag.as_str(), None::<()>)
            .await
            .unwrap();
        None
    }

    async fn contains(&self, user: &UserId, text: &str) -> bool {
        let tag = format!("{{user:{user}}}");
        let script = r"
            local read = {
              string = function(key) return { redis.call('GET', key) } end,
              hash = function(key) return redis.call('HGETALL', key) end,
              list = function(key) return redis.call('LRANGE', key, 0, -1) end,
              set = function(key) return redis.call('SMEMBERS', key) end,
              zset = function(key) return redis.call('ZRANGE', key, 0, -1) end,
            }
            for _, key in ipairs(redis.call('KEYS', KEYS[1] .. ':*')) do
              for _, value in ipairs(read[redis.call('TYPE', key).ok](key)) do
                if string.find(value, ARGV[1], 1, true) then
                  return 1
                end
              end
            end
            return 0";
        let is_found: i64 = self.admin.eval(script, tag.as_str(), text).await.unwrap();
        is_found == 1
    }

    async fn key_names(&self, user: &UserId) -> Vec<String> {
        let tag = format!("{{user:{user}}}");
        let script = "return redis.call('KEYS', KEYS[1] .. ':*')";
        let keys = self.admin.eval(script, tag.as_str(), None::<()>).await;
        let mut keys: Vec<String> = keys.unwrap();
        keys.sort_unstable();
        keys
    }
}

/// Only a fan-out that can lose data separately from the log inserts turns before later ones.
#[tokio::test]
async fn rebuilt_turns_are_inserted_before_later_ones() {
    let backend = RedisBackend::new("TEST_REDIS_URL").await;
    let mut case = Case::new(&backend).await;
    let lost = [case.message(), case.message()];
    for message in &lost {
        case.answer(message, "lost").await;
    }
    let logged_ms = now_ms();
    case.lose_data().await;
    let later = case.message();
    case.answer(&later, "later").await;
    // A worker does not know the lost outcome, and answers the message again.
    case.answer(&lost[0], "again").await;
    for (offset, message) in (0..).zip(&lost) {
        let mut rewind_delivery = case.delivery(message, offset, "lost");
        rewind_delivery.is_rewind = true;
        // Both are earlier than the later turn, even if the clocks differ by a second.
        rewind_delivery.logged_at_ms = Some(logged_ms - 1000 + offset);
        case.deliver_call(rewind_delivery).await;
    }
    let turns = case.context(&ConversationId::default_conversation()).await;
    let ids: Vec<_> = turns.iter().map(|turn| &turn.message_id).collect();
    assert_eq!(
        ids,
        [&lost[0].message_id, &lost[1].message_id, &later.message_id]
    );
}

mod single {
    crate::fanout_contract!(super::RedisBackend::new("TEST_REDIS_URL"));
}

mod cluster {
    crate::fanout_contract!(super::RedisBackend::new("TEST_REDIS_CLUSTER_URL"));
}

mod sentinel {
    crate::fanout_contract!(super::RedisBackend::new("TEST_REDIS_SENTINEL_URL"));
}
