//! chatmesh carries AI conversations in real time and loses nothing. This page tells the path of
//! one message through the crate.
//!
//! ```text
//!  client ── gateway ──▶ incoming_messages ──▶ ai_worker ──▶ model API
//!              ▲              (log)               │   │
//!              │                         terminal │   │ text so far
//!              │                                  ▼   │
//!              │                           responses  │
//!              │                             (log)    │
//!              │                                  ▼   ▼
//!              └──────────── fanout ◀────────── relay
//!                  (pub/sub, mailbox, outcomes, history)
//! ```
//!
//! 1. [`gateway`]: a WebSocket frame is checked, gets its `message_id`, is admitted by the fan-out
//!    ([`fanout::Admissions::admit`]) and appended to the log, keyed by its user. The log's
//!    acknowledgement is what makes it accepted; nothing is promised before.
//! 2. [`pipeline`]: the worker's consumer reads each partition in order, puts every record into
//!    the lane of its conversation, and works on `MAX_WORKERS` of them at once. An offset is
//!    committed only when everything before it is finished.
//! 3. [`ai_worker`]: the message is taken ([`fanout::Answers::begin`]: one owner at a time, under a
//!    lease), earlier turns become a prompt, the model's answer is read as a stream and written
//!    along the live road ([`fanout::Answers::live`]), its end is fixed
//!    ([`fanout::Answers::keep`]), and only what was kept is produced to `responses`.
//! 4. [`relay`]: the terminal record gets its position (partition and offset) and is delivered
//!    ([`fanout::Deliveries::deliver`]): into the user's mailbox, the history and the channel, once.
//!    When the fan-out may have lost data, the partition goes back and everything of the last
//!    while is delivered again, which changes nothing where nothing was lost.
//! 5. [`gateway`]: the frame is found in the feed, matched with the user's sockets, and written to
//!    each through a bounded queue. What a socket may have missed is repaired by one
//!    [`fanout::Reads::read`].
//!
//! Two seams hide what runs underneath: the [`log`] (Kafka, or a local durable one) and the
//! [`fanout`] (Redis, or in process on the same local [`store`]). Each has one contract, and one
//! suite of tests over all its implementations. Roles don't import each other; [`app`] puts them
//! together.
//!
//! `ARCHITECTURE.md` says what must always hold and why it does; `docs/protocol.md` has the
//! contracts with other programs.

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
