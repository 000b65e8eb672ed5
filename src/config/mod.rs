//! Configuration: defaults, file, `.env`, environment and flags are merged, validated as a whole,
//! and converted to typed settings.
//!
//! | module | task |
//! | --- | --- |
//! | `keys` | has the table of settings, which the other modules use |
//! | `kind` | parses values and describes the allowed values |
//! | `layers`, `dotenv` | read the sources and merge them |
//! | `load` | loads a [`Config`]: merges, parses and validates |
//! | `resolved`, `values` | [`Config`]: the value of each setting, with its source |
//! | `checks` | finds contradictions between settings, and composes warnings |
//! | `sections` | converts values to the types of [`settings`] and [`bounds`] |
//! | `show` | prints the values for `config show` |
//! | `default_file` | prints the file for `config default` |
//! | `document` | generates `docs/settings.md` |
//!
//! Settings are plain values: this module imports nothing of the parts that it configures.

use std::fmt;

pub mod bounds;
mod checks;
mod default_file;
mod document;
mod dotenv;
mod error;
mod keys;
mod kind;
mod layers;
mod load;
mod resolved;
mod sections;
pub mod settings;
mod show;
#[cfg(test)]
mod tests;
mod values;

pub use default_file::default_config_file;
pub use document::settings_document;
pub use error::{ConfigErrors, Problem};
pub use layers::{Flag, Sources};
pub use resolved::Config;
pub use show::EffectiveSetting;

/// The role of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Role {
    /// Accepts clients' connections.
    Gateway,
    /// Calls the model.
    AiWorker,
    /// Delivers terminal records from the log to the fan-out.
    Relay,
    /// All three roles in one process, on the embedded log and fan-out.
    AllInOne,
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 4] = [Self::Gateway, Self::AiWorker, Self::Relay, Self::AllInOne];

    /// The role's name on the command line and in `chatmesh_build_info`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::AiWorker => "ai-worker",
            Self::Relay => "relay",
            Self::AllInOne => "all-in-one",
        }
    }

    /// The name of the service in the original system that has this role, for `/health`.
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
