//! chatmesh: the path of one message.

pub mod ai_worker;
pub mod app;
pub mod cli;
pub mod config;
pub mod fanout;
pub mod gateway;
pub mod health;
pub mod log;
pub mod pipeline;
pub mod protocol;
pub mod relay;
pub mod signals;
pub mod store;
pub mod telemetry;
