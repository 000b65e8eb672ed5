//! The subcommands beside the roles: tools for users, operators and developers.

use std::io::Write as _;

pub(crate) mod chat;
pub(crate) mod dlq;
pub(crate) mod doctor;
pub(crate) mod http;
pub(crate) mod load_test;
pub(crate) mod mock_openai;
pub(crate) mod token;

/// Invalid arguments that the parser of the command line cannot detect. The process exits with 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct UsageError(pub(crate) String);

/// Writes to standard output. A reader that has closed the pipe, such as `head`, is not an error.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
