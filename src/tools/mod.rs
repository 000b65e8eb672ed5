//! What people do beside the roles.

use std::io::Write as _;

pub(crate) mod chat;
pub(crate) mod dlq;
pub(crate) mod doctor;
pub(crate) mod http;
pub(crate) mod load_test;
pub(crate) mod mock_openai;
pub(crate) mod token;

/// Used wrongly, as the command line's grammar can't tell: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Misused(pub(crate) String);

/// To standard output; a reader that has seen enough (`| head`) is no failure.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
