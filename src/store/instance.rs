//! The file by which tools find the process that holds a data directory. The process writes it, and
//! tools of the same user on the same machine read it.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use secrecy::{ExposeSecret as _, SecretString};

/// Name of the file in the data directory that contains the address and the key of the running
/// process.
const INSTANCE_FILE: &str = "chatmesh.running";

/// How to reach the process that holds a data directory.
#[derive(Debug, Clone)]
pub struct InstanceInfo {
    /// The address at which the process listens, reachable from this machine.
    pub address: SocketAddr,
    /// The key that only this process accepts, for as long as it runs. So the key is worthless to
    /// another process that listens at the address later and receives it.
    pub key: SecretString,
}

impl InstanceInfo {
    /// Writes the information into the data directory, readable only by the owner of the process.
    ///
    /// # Errors
    /// Fails if the directory cannot be written.
    pub fn write(&self, dir: &Path) -> std::io::Result<()> {
        let temporary = dir.join(format!("{INSTANCE_FILE}.new"));
        remove_if_exists(&temporary)?;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)?;
        writeln!(file, "{}\n{}", self.address, self.key.expose_secret())?;
        fs::rename(&temporary, dir.join(INSTANCE_FILE))
    }

    /// Reads the information from a data directory. `None` if the directory contains none or it
    /// cannot be read. The information is valid only while a process holds the directory.
    pub fn read(dir: &Path) -> Option<Self> {
        let text = fs::read_to_string(dir.join(INSTANCE_FILE)).ok()?;
        let (address, key) = text.trim_end().split_once('\n')?;
        Some(Self {
            address: address.parse().ok()?,
            key: key.into(),
        })
    }
}

/// Removes the information from a data directory. Only the process that holds the directory's lock
/// may call this.
pub(super) fn remove(dir: &Path) -> std::io::Result<()> {
    remove_if_exists(&dir.join(INSTANCE_FILE))
}

fn remove_if_exists(path: &Path) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
