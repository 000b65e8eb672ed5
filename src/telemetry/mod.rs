//! Logs, metrics, traces, and the HTTP server that shows a process's health.

pub mod admin;
pub mod logs;
pub mod metrics;
pub mod traces;
