//! chatmesh is a backend for AI chat: it accepts messages over WebSockets, stores them in a log,
//! has a model answer them, and delivers each answer to every device of its user, exactly once.
//! This page describes the path of one message through the crate.
//!
//! ```text
//!  client ── gateway ──▶ incoming_messages ──▶ ai_worker ──▶ model API
//!              ▲              (log)               │   │
//!              │                         terminal │   │ deltas
//!              │                          record  ▼   │
//!              │                           responses  │
//!              │                             (log)    │
//!              │                                  ▼   ▼
//!              └──────────── fanout ◀────────── relay
//!                  (pub/sub, mailbox, outcomes, history)
//! ```
//!
//! 1. [`gateway`]: a WebSocket frame is validated, gets its `message_id`, is admitted by the
//!    fan-out ([`fanout::Admissions::admit`]) and appended to the log under its user's key. The
//!    message is accepted once the log has acknowledged it, and not before.
//! 2. [`pipeline`]: the worker's consumer reads each partition in order, puts every record into the
//!    lane of its conversation, and processes at most `MAX_WORKERS` records concurrently. An offset
//!    is committed only when every record before it is finished.
//! 3. [`ai_worker`]: the worker acquires the lease on the message ([`fanout::Answers::begin`]),
//!    builds the prompt from earlier turns, reads the model's stream, and publishes deltas directly
//!    to the fan-out ([`fanout::Answers::live`]). It stores the outcome
//!    ([`fanout::Answers::keep`]) and appends only a stored outcome to `responses`.
//! 4. [`relay`]: the terminal record gets its position (partition and offset) and is delivered once
//!    ([`fanout::Deliveries::deliver`]): stored in the user's mailbox and history, and published.
//!    When the fan-out may have lost data, the relay rewinds the partition and delivers recent
//!    records again, which changes nothing where nothing was lost.
//! 5. [`gateway`]: the frame arrives through the subscription and is written to each connection of
//!    the user through a bounded queue. Frames that a connection may have missed are read from the
//!    mailbox ([`fanout::Reads::read`]).
//!
//! Two interfaces hide the infrastructure: the [`log`] (Kafka or embedded) and the [`fanout`]
//! (Redis or embedded). Both embedded implementations use the same local [`store`]. The comments of
//! each interface say what it guarantees, and one test suite for each interface runs over all its
//! implementations. Roles do not import each other; [`app`] creates the implementations and runs
//! the roles on them.
//!
//! `ARCHITECTURE.md` is the code map and lists the invariants; `docs/protocol.md` says what clients
//! and other services may rely on, and `docs/consistency.md` has the algorithms.

pub mod ai_worker;
pub mod app;
pub mod backoff;
pub mod cli;
pub mod client;
pub mod config;
pub mod dead_letters;
pub mod fanout;
pub mod gateway;
pub mod health;
mod http_client;
pub mod log;
pub mod pipeline;
pub mod protocol;
pub mod relay;
pub mod signals;
pub mod store;
pub mod telemetry;
mod tools;

/// Runs simulations from random seeds. The integration tests use the same file.
#[cfg(test)]
#[path = "../tests/common/seeds.rs"]
mod seeds;
