//! The data directory: whose it is, what is in it, how much room is left.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::holder;

/// Raised with every change that an older or newer program could not read.
const FORMAT: u32 = 1;
const MARKER: &str = "chatmesh.format";
const LOCK: &str = "chatmesh.lock";
const TABLES: &str = "tables";

/// A data directory could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process works on it.
    #[error(
        "data directory {dir} is in use by another chatmesh process{}: stop it, or give this one a directory of its own with --data-dir",
        pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
    )]
    Held {
        /// The directory.
        dir: PathBuf,
        /// Who holds it, where it could be read.
        pid: Option<u32>,
    },
    /// It was written by a program of another format.
    #[error(
        "data directory {dir} has format {found}, and this program reads format {FORMAT}: run the version of chatmesh that wrote it, or choose another directory with --data-dir"
    )]
    OtherFormat {
        /// The directory.
        dir: PathBuf,
        /// What its marker says.
        found: String,
    },
    /// There is data in it without chatmesh's marker.
    #[error(
        "directory {dir} holds tables, but no {MARKER} file: choose another directory with --data-dir"
    )]
    NotOurs {
        /// The directory.
        dir: PathBuf,
    },
    /// What is in it is not what was written.
    #[error("data directory {dir} is damaged ({damage} in its journal): {advice}")]
    Damaged {
        /// The directory.
        dir: PathBuf,
        /// In the storage engine's words.
        damage: String,
        /// What to do about it.
        advice: String,
    },
    /// It can't be read or written.
    #[error(
        "data directory {dir} can't be used: {reason}; check its permissions and disk, or choose another one with --data-dir"
    )]
    Io {
        /// The directory.
        dir: PathBuf,
        /// What the system or the storage engine said.
        reason: String,
    },
}

/// A data directory that this process holds until the value is dropped or the process dies.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    /// The lock belongs to the open file, so the system takes it back even after kill -9.
    lock: File,
}

/// What there is of a data directory, as far as it can be seen without touching it.
#[derive(Debug)]
pub struct Folder {
    /// Whether it is there.
    pub exists: bool,
    /// Whether chatmesh has worked on it: its marker is there.
    pub made: bool,
    /// Whether this user may write into it, or make it.
    pub writable: bool,
    /// Somebody works on it; its process id, where it could be read.
    pub held: Option<Option<u32>>,
    /// Whether others than its owner may look into it.
    pub open_to_others: bool,
    /// What would keep this program from working on it.
    pub format: Result<(), String>,
    /// Bytes that this user may still write there.
    pub free: u64,
}

/// Looks at a data directory; makes, locks and changes nothing.
///
/// # Errors
/// Not even the place where it would be can be looked at.
pub fn look(path: &Path) -> std::io::Result<Folder> {
    use std::os::unix::fs::PermissionsExt;

    use rustix::fs::Access;
    let path = std::path::absolute(path)?;
    // A folder that is not there is made below the nearest one that is.
    let nearest = path.ancestors().find(|folder| folder.exists());
    let nearest = nearest.unwrap_or(Path::new("/"));
    let stat = rustix::fs::statvfs(nearest)?;
    let exists = path.is_dir();
    let access = rustix::fs::access(nearest, Access::WRITE_OK | Access::EXEC_OK);
    let mut folder = Folder {
        exists,
        made: path.join(MARKER).exists(),
        writable: nearest.is_dir() && access.is_ok(),
        held: None,
        open_to_others: exists && fs::metadata(&path)?.permissions().mode() & 0o077 != 0,
        format: Ok(()),
        free: stat.f_bavail.saturating_mul(stat.f_frsize),
    };
    if !exists {
        return Ok(folder);
    }
    if let Ok(mut lock) = File::open(path.join(LOCK)) {
        // Shared, and given back at once: who opens the folder meanwhile tries again.
        if matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)) {
            let mut text = String::new();
            let _ = lock.read_to_string(&mut text);
            folder.held = Some(text.trim().parse().ok());
        }
    }
    folder.format = judge_format(&path).map_err(|error| error.to_string());
    Ok(folder)
}

/// Who only looks at the folder holds the lock for a moment; whoever works on it keeps it.
fn lock_patiently(lock: &File) -> Result<(), TryLockError> {
    const TRIES: u32 = 20;
    for _ in 1..TRIES {
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(10)),
            tried => return tried,
        }
    }
    lock.try_lock()
}

/// Whether this program can read what is there; nothing yet is fine too.
fn judge_format(path: &Path) -> Result<(), OpenError> {
    let text = match fs::read(path.join(MARKER)) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let ours = !path.join(TABLES).exists();
            return ours.then_some(()).ok_or_else(|| OpenError::NotOurs {
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
    if text == format!("chatmesh {FORMAT}") {
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
        // The lock is still held. What can't be taken back is told apart by who reads it.
        let _ = holder::forget(&self.path);
        let _ = self.lock.set_len(0);
    }
}

impl Directory {
    pub(super) fn open(path: &Path) -> Result<Self, OpenError> {
        let io = |e: std::io::Error| OpenError::Io {
            dir: path.to_owned(),
            reason: e.to_string(),
        };
        // Conversations are in it: nobody else's business. A folder that is there keeps its mode.
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
            .open(path.join(LOCK))
            .map_err(io)?;
        match lock_patiently(&lock) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                // The holder may be about to write its pid: an unreadable one is left out.
                let _ = lock.read_to_string(&mut text);
                return Err(OpenError::Held {
                    dir: path.to_owned(),
                    pid: text.trim().parse().ok(),
                });
            }
            Err(TryLockError::Error(e)) => return Err(io(e)),
        }
        // Of one that was killed.
        holder::forget(path).map_err(io)?;
        lock.set_len(0).map_err(io)?;
        lock.rewind().map_err(io)?;
        writeln!(lock, "{}", std::process::id()).map_err(io)?;

        let directory = Self {
            path: path.to_owned(),
            lock,
        };
        directory.check_format()?;
        Ok(directory)
    }

    fn check_format(&self) -> Result<(), OpenError> {
        judge_format(&self.path)?;
        let io = |e: std::io::Error| OpenError::Io {
            dir: self.path.clone(),
            reason: e.to_string(),
        };
        let marker = self.path.join(MARKER);
        if marker.exists() {
            return Ok(());
        }
        // Whole or not there: a marker cut by a crash would lock its owner out.
        let new = self.path.join(format!("{MARKER}.new"));
        let mut file = File::create(&new).map_err(io)?;
        writeln!(file, "chatmesh {FORMAT}").map_err(io)?;
        file.sync_all().map_err(io)?;
        fs::rename(&new, &marker).map_err(io)?;
        File::open(&self.path)
            .and_then(|dir| dir.sync_all())
            .map_err(io)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the storage engine keeps its files.
    pub(super) fn tables(&self) -> PathBuf {
        self.path.join(TABLES)
    }

    /// Bytes that this user may still write here.
    pub(super) fn free(&self) -> std::io::Result<u64> {
        let stat = rustix::fs::statvfs(&self.path)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}
