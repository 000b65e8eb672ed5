//! The fan-out: the state of each user that gateways, workers and relays share, and the publication
//! of frames between them. It holds mailboxes, answers in flight, outcomes, pending messages, the
//! conversation history and tokens.
//!
//! # Contract
//!
//! - A user's state changes only by the calls of the traits below and by expiry. Each call is
//!   harmless when repeated. Each call is atomic, except `forget` and `revoke`, which may change
//!   the state in several atomic steps. `docs/consistency.md` specifies the calls, and the
//!   scenarios that an exhaustive model has checked.
//! - Calls about one user run one after the other. Frames are published in the order of their
//!   sequence numbers.
//! - The fan-out can be emptied or rolled back at any time. The relay then rebuilds mailboxes,
//!   recent outcomes and recent history from the log. Older outcomes and turns are lost.
//! - After an error it is unknown whether the call was carried out. The caller repeats the call.
//!
//! # Traits by caller
//!
//! | trait | caller | purpose |
//! | --- | --- | --- |
//! | [`Admissions`] | gateway | admit and cancel messages |
//! | [`Reads`] | gateway | read mailboxes and outcomes |
//! | [`History`] | gateway | list, read and forget conversations |
//! | [`Tokens`] | gateway, command line | issue and revoke tokens |
//! | [`Feeds`] | gateway, worker | subscribe to published frames |
//! | [`Answers`] | worker | lease a message, stream its answer, store its outcome |
//! | [`Deliveries`] | relay | deliver terminal records, detect data loss |
//! | [`FanoutHealth`] | application | readiness and warnings |
//!
//! Each role takes only the traits that it calls ([`GatewayFanout`], [`WorkerFanout`],
//! `dyn Deliveries`), so a test double implements no other traits. An `Arc<dyn Fanout>` coerces to
//! each of them.
//!
//! Two implementations follow this contract and pass the same test suite
//! (`tests/it/fanout_contract`): [`redis`] for several processes, [`embedded`] for a single
//! process.

mod admissions;
mod answers;
mod deliveries;
pub mod embedded;
mod error;
mod feeds;
mod health;
mod history;
mod message;
mod reads;
pub mod redis;
mod tokens;

pub use admissions::{Admission, AdmissionDecision, Admissions, Limit};
pub use answers::{
    Answers, AppendRequest, BeginRequest, BeginResponse, HistoryRequest, HistoryResponse,
    HistoryVersion, KeepRequest, KeepResponse, LEASE, LazyOutcome, NewOutcome, OpenPartRequest,
    Owner, Piece, RenewRequest, StoredOutcome, StreamResponse, TurnAppend,
};
pub use deliveries::{DeliverRequest, DeliverResponse, Deliveries};
pub use error::{FanoutError, Result};
pub use feeds::{Channel, Feed, FeedEvent, Feeds};
pub use health::FanoutHealth;
pub use history::{ConversationEntry, History, Turn, TurnStatus};
pub use message::MessageRef;
pub use reads::{DeliveredOutcome, ReadRequest, Reads, UserView};
pub use tokens::{REVOKED_FRAME, Tokens};

/// All fan-out traits that a gateway calls.
pub trait GatewayFanout: Admissions + Reads + History + Tokens + Feeds {}

impl<T: Admissions + Reads + History + Tokens + Feeds> GatewayFanout for T {}

/// All fan-out traits that a worker calls.
pub trait WorkerFanout: Answers + Feeds {}

impl<T: Answers + Feeds> WorkerFanout for T {}

/// All fan-out traits, for a process that runs several roles.
pub trait Fanout: GatewayFanout + WorkerFanout + Deliveries + FanoutHealth {}

impl<T: GatewayFanout + WorkerFanout + Deliveries + FanoutHealth> Fanout for T {}
