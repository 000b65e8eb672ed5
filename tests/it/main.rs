//! Integration tests.

mod fanout_contract;
mod fanout_redis;
