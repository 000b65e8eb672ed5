//! Configuration: defaults → file → `.env` and environment → flags, checked as a whole.
//!
//! One table in `keys.rs` names everything that can be set. The layers are laid over each other
//! in `layers.rs`, read and checked in `build.rs`, and shown by `show.rs`.

use std::fmt;

pub mod bounds;
mod build;
mod checks;
mod dotenv;
mod error;
mod keys;
mod kind;
mod layers;
pub mod settings;
mod show;
#[cfg(test)]
mod tests;
mod values;

pub use build::Config;
pub use error::{ConfigErrors, Problem};
pub use layers::{Flag, Sources};
pub use show::{Shown, default_file};

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Role {
    /// Clients' connections.
    Gateway,
    /// Calls the model.
    AiWorker,
    /// Brings answers from the log to the fan-out.
    Relay,
    /// All three on the embedded log and fan-out.
    AllInOne,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Gateway, Self::AiWorker, Self::Relay, Self::AllInOne];

    /// As in the command line and in `chatmesh_build_info`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::AiWorker => "ai-worker",
            Self::Relay => "relay",
            Self::AllInOne => "all-in-one",
        }
    }

    /// The name of the original service of this job, as `/health` says it.
    pub fn service(self) -> &'static str {
        match self {
            Self::Gateway | Self::AllInOne => "websocket-server",
            Self::AiWorker => "ai-consumer",
            Self::Relay => "message-relay",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
