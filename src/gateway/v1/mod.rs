//! The `chatmesh.v1` side of a socket (protocol.md sections 1.2 and 3).
//!
//! [`followers`] knows what each socket of a user has had; [`catch_up`] reads for those that can't
//! follow what is published: new ones, slow ones, and all where something was lost.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tokio::sync::Notify;

pub(super) mod asks;
pub(super) mod catch_up;
pub(super) mod followers;
#[cfg(test)]
mod sim;

/// What a socket of this protocol has beside a classic one.
pub(super) struct Line {
    /// By which the socket knows its own `accepted`.
    pub(super) origin: Arc<str>,
    /// It has to read.
    pub(super) wake: Notify,
    /// `welcome` is in the queue.
    pub(super) welcomed: AtomicBool,
}

impl Line {
    pub(super) fn new() -> Self {
        Self {
            origin: uuid::Uuid::new_v4().simple().to_string().into(),
            wake: Notify::new(),
            welcomed: AtomicBool::new(false),
        }
    }
}
