//! Logs, metrics, traces, and the HTTP server for health and metrics.
//!
//! Architecture invariant: nothing here knows a role. A component declares its metrics beside its
//! own code.

pub mod admin;
pub mod logs;
pub mod metrics;
pub mod traces;
