//! How a running process is asked by who is on the same machine and may read its data directory.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use secrecy::{ExposeSecret as _, SecretString};

/// Beside the lock, for as long as its holder serves.
const FILE: &str = "chatmesh.running";

/// The process that holds a data directory.
#[derive(Debug, Clone)]
pub struct Holder {
    /// Where it listens, as this machine reaches it.
    pub address: SocketAddr,
    /// Only it takes this key, and no longer than it runs: to anybody else who may listen there
    /// by now the key is worth nothing.
    pub key: SecretString,
}

impl Holder {
    /// Writes it into the data directory, readable by this user only.
    ///
    /// # Errors
    /// The directory can't be written.
    pub fn announce(&self, dir: &Path) -> std::io::Result<()> {
        let new = dir.join(format!("{FILE}.new"));
        remove(&new)?;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)?;
        writeln!(file, "{}\n{}", self.address, self.key.expose_secret())?;
        fs::rename(&new, dir.join(FILE))
    }

    /// Who said so of a data directory; `None` where nobody did. Worth something only while the
    /// directory is held.
    pub fn of(dir: &Path) -> Option<Self> {
        let text = fs::read_to_string(dir.join(FILE)).ok()?;
        let (address, key) = text.trim_end().split_once('\n')?;
        Some(Self {
            address: address.parse().ok()?,
            key: key.into(),
        })
    }
}

/// Takes back what a holder wrote; for who has the lock.
pub(super) fn forget(dir: &Path) -> std::io::Result<()> {
    remove(&dir.join(FILE))
}

fn remove(path: &Path) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
