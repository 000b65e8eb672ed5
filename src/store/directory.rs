//! The data directory of a store: opens and locks it, checks its format marker, and measures its
//! free space.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::instance;

/// Version of the data format. It is increased with every change after which an earlier version of
/// chatmesh could not read the directory, or this version not an earlier directory.
const FORMAT_VERSION: u32 = 1;
/// Name of the format marker: the file that contains the version of the data format.
const FORMAT_FILE: &str = "chatmesh.format";
/// Name of the file that a process locks in order to hold the directory. The file contains the
/// process's id.
const LOCK_FILE: &str = "chatmesh.lock";
/// Name of the subdirectory with the storage engine's files.
const ENGINE_DIR: &str = "tables";

/// Why a data directory could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process holds the directory.
    #[error(
        "data directory {dir} is in use by another chatmesh process{}: stop it, or choose another \
         directory for this one with --data-dir",
        pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
    )]
    InUse {
        /// The directory.
        dir: PathBuf,
        /// Id of the process that holds the directory. `None` if the id could not be read.
        pid: Option<u32>,
    },
    /// The directory was written by a version of chatmesh with another data format.
    #[error(
        "data directory {dir} has format {found}, and this program reads format {FORMAT_VERSION}: \
         run the version of chatmesh that wrote it, or choose another directory with --data-dir"
    )]
    OtherFormat {
        /// The directory.
        dir: PathBuf,
        /// The format version that the directory's format marker contains, as text.
        found: String,
    },
    /// The directory contains tables but no format marker, so it is not a data directory.
    #[error(
        "directory {dir} contains tables, but no {FORMAT_FILE} file: choose another directory \
         with --data-dir"
    )]
    NotDataDirectory {
        /// The directory.
        dir: PathBuf,
    },
    /// The storage engine found data that it did not write.
    #[error("data directory {dir} is damaged ({damage} in its journal): {advice}")]
    Damaged {
        /// The directory.
        dir: PathBuf,
        /// The storage engine's description of the damage.
        damage: String,
        /// What an operator can do about the damage.
        advice: String,
    },
    /// The directory cannot be read or written.
    #[error(
        "data directory {dir} can't be used: {reason}; check its permissions and disk, or choose \
         another one with --data-dir"
    )]
    Io {
        /// The directory.
        dir: PathBuf,
        /// The error of the operating system or the storage engine.
        reason: String,
    },
}

/// A data directory that this process holds until the value is dropped or the process dies.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    /// The open and locked lock file. The operating system releases the lock when the file is
    /// closed, even after kill -9.
    lock: File,
}

/// The state of a data directory, as far as it is visible without changing anything.
#[derive(Debug)]
pub struct DirectoryInfo {
    /// Whether the directory exists.
    pub exists: bool,
    /// Whether chatmesh has used the directory: the format marker exists.
    pub is_initialized: bool,
    /// Whether this process can write to the directory, or create it.
    pub is_writable: bool,
    /// `Some` if a process holds the directory: with its id, or with `None` if the id could not be
    /// read.
    pub holder: Option<Option<u32>>,
    /// Whether users other than the owner have access to the directory.
    pub is_open_to_others: bool,
    /// `Err` with the reason if this program cannot open the directory because of its format
    /// marker.
    pub format: Result<(), String>,
    /// Space in bytes that a process without root privileges can still use on the directory's file
    /// system. If the directory is missing, that of its nearest existing parent.
    pub free_bytes: u64,
}

/// Reads the state of a data directory. Creates and changes nothing, and does not keep the lock.
///
/// # Errors
/// Fails if the directory, or the nearest existing parent of a missing directory, cannot be read.
pub fn inspect(path: &Path) -> std::io::Result<DirectoryInfo> {
    use std::os::unix::fs::PermissionsExt;

    use rustix::fs::Access;
    let path = std::path::absolute(path)?;
    // A missing directory would be created below its nearest existing parent.
    let nearest = path.ancestors().find(|parent| parent.exists());
    let nearest = nearest.unwrap_or(Path::new("/"));
    let stat = rustix::fs::statvfs(nearest)?;
    let exists = path.is_dir();
    let access = rustix::fs::access(nearest, Access::WRITE_OK | Access::EXEC_OK);
    let mut info = DirectoryInfo {
        exists,
        is_initialized: path.join(FORMAT_FILE).exists(),
        is_writable: nearest.is_dir() && access.is_ok(),
        holder: None,
        is_open_to_others: exists && fs::metadata(&path)?.permissions().mode() & 0o077 != 0,
        format: Ok(()),
        free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
    };
    if !exists {
        return Ok(info);
    }
    if let Ok(mut lock) = File::open(path.join(LOCK_FILE)) {
        // The shared lock is released at once. A process that opens the directory at this moment
        // fails to lock it, and retries.
        if matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)) {
            let mut text = String::new();
            let _ = lock.read_to_string(&mut text);
            info.holder = Some(text.trim().parse().ok());
        }
    }
    info.format = check_format(&path).map_err(|error| error.to_string());
    Ok(info)
}

/// Locks the file, retrying for 0.2 s: [`inspect`] holds the lock only for a moment, whereas a
/// process that uses the directory keeps it.
fn lock_with_retries(lock: &File) -> Result<(), TryLockError> {
    const ATTEMPTS: u32 = 20;
    for _ in 1..ATTEMPTS {
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(10)),
            result => return result,
        }
    }
    lock.try_lock()
}

/// Checks that this program can read the format of the directory. A directory without data needs no
/// format marker.
fn check_format(path: &Path) -> Result<(), OpenError> {
    let text = match fs::read(path.join(FORMAT_FILE)) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let has_no_data = !path.join(ENGINE_DIR).exists();
            return has_no_data
                .then_some(())
                .ok_or_else(|| OpenError::NotDataDirectory {
                    dir: path.to_owned(),
                });
        }
        Err(error) => {
            return Err(OpenError::Io {
                dir: path.to_owned(),
                reason: error.to_string(),
            });
        }
    };
    let text = text.trim();
    if text == format!("chatmesh {FORMAT_VERSION}") {
        return Ok(());
    }
    let shown: String = text.chars().take(40).collect();
    Err(OpenError::OtherFormat {
        dir: path.to_owned(),
        found: shown
            .strip_prefix("chatmesh ")
            .map_or_else(|| format!("{shown:?} (unknown)"), ToOwned::to_owned),
    })
}

impl Drop for Directory {
    fn drop(&mut self) {
        // The lock is still held here. If a file cannot be removed or emptied, that is harmless,
        // because its content is valid only while the lock is held.
        let _ = instance::remove(&self.path);
        let _ = self.lock.set_len(0);
    }
}

impl Directory {
    pub(super) fn open(path: &Path) -> Result<Self, OpenError> {
        let io = |e: std::io::Error| OpenError::Io {
            dir: path.to_owned(),
            reason: e.to_string(),
        };
        // Other users get no access, because the directory contains conversations. An existing
        // directory keeps its mode.
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(io)?;
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path.join(LOCK_FILE))
            .map_err(io)?;
        match lock_with_retries(&lock) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                // The process that holds the lock may not have written its id yet. The error then
                // omits the id.
                let _ = lock.read_to_string(&mut text);
                return Err(OpenError::InUse {
                    dir: path.to_owned(),
                    pid: text.trim().parse().ok(),
                });
            }
            Err(TryLockError::Error(e)) => return Err(io(e)),
        }
        // A process that was killed has left its instance information, which is invalid now.
        instance::remove(path).map_err(io)?;
        lock.set_len(0).map_err(io)?;
        lock.rewind().map_err(io)?;
        writeln!(lock, "{}", std::process::id()).map_err(io)?;

        let directory = Self {
            path: path.to_owned(),
            lock,
        };
        directory.ensure_format_marker()?;
        Ok(directory)
    }

    fn ensure_format_marker(&self) -> Result<(), OpenError> {
        check_format(&self.path)?;
        let io = |e: std::io::Error| OpenError::Io {
            dir: self.path.clone(),
            reason: e.to_string(),
        };
        let marker = self.path.join(FORMAT_FILE);
        if marker.exists() {
            return Ok(());
        }
        // The marker is written under another name and renamed, because a marker that is truncated
        // by a crash would make the directory unusable.
        let temporary = self.path.join(format!("{FORMAT_FILE}.new"));
        let mut file = File::create(&temporary).map_err(io)?;
        writeln!(file, "chatmesh {FORMAT_VERSION}").map_err(io)?;
        file.sync_all().map_err(io)?;
        fs::rename(&temporary, &marker).map_err(io)?;
        File::open(&self.path)
            .and_then(|dir| dir.sync_all())
            .map_err(io)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The path of the subdirectory with the storage engine's files.
    pub(super) fn engine_dir(&self) -> PathBuf {
        self.path.join(ENGINE_DIR)
    }

    /// Space in bytes that a process without root privileges can still use on the directory's file
    /// system.
    pub(super) fn free_bytes(&self) -> std::io::Result<u64> {
        let stat = rustix::fs::statvfs(&self.path)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}
