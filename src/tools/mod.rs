//! The subcommands that are not roles: tools for users, operators and developers. `cli` runs them.

use std::io::Write as _;

pub(crate) mod chat;
pub(crate) mod dlq;
pub(crate) mod doctor;
pub(crate) mod http;
pub(crate) mod load_test;
pub(crate) mod mock_openai;
pub(crate) mod token;

/// Error for invalid arguments that the parser of the command line cannot detect. The process exits
/// with code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct UsageError(pub(crate) String);

/// Writes to standard output. Does not fail if the reader of a pipe, such as `head`, has closed it.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
