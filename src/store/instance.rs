//! Discovery of the process that holds a data directory, for tools on the same machine that may
//! read the directory.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use secrecy::{ExposeSecret as _, SecretString};

/// The file beside the lock that holds the address and the key of the running process.
const FILE: &str = "chatmesh.running";

/// How to reach the process that holds a data directory.
#[derive(Debug, Clone)]
pub struct InstanceInfo {
    /// The address at which the process listens, reachable from this machine.
    pub address: SocketAddr,
    /// The key that the process accepts for as long as it runs. It is worthless to any other
    /// process that may listen at the address by now.
    pub key: SecretString,
}

impl InstanceInfo {
    /// Writes the information into the data directory, readable by this user only.
    ///
    /// # Errors
    /// Fails if the directory cannot be written.
    pub fn write(&self, dir: &Path) -> std::io::Result<()> {
        let temporary = dir.join(format!("{FILE}.new"));
        remove_if_exists(&temporary)?;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)?;
        writeln!(file, "{}\n{}", self.address, self.key.expose_secret())?;
        fs::rename(&temporary, dir.join(FILE))
    }

    /// Reads the information from a data directory. `None` if there is none. It is valid only while
    /// a process holds the directory.
    pub fn read(dir: &Path) -> Option<Self> {
        let text = fs::read_to_string(dir.join(FILE)).ok()?;
        let (address, key) = text.trim_end().split_once('\n')?;
        Some(Self {
            address: address.parse().ok()?,
            key: key.into(),
        })
    }
}

/// Removes the information. Only the process that holds the lock may call this.
pub(super) fn remove(dir: &Path) -> std::io::Result<()> {
    remove_if_exists(&dir.join(FILE))
}

fn remove_if_exists(path: &Path) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
