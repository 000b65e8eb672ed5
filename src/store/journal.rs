//! The storage engine's journals: which is the newest, and what a power cut leaves in it.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The least that a disk writes at once.
const SECTOR: usize = 512;

/// The newest journal and its number.
///
/// # Errors
/// The directory can't be read.
pub(super) fn newest(tables: &Path) -> io::Result<Option<(u64, PathBuf)>> {
    let mut newest: Option<(u64, PathBuf)> = None;
    for entry in std::fs::read_dir(tables)? {
        let path = entry?.path();
        let id = path
            .file_name()
            .and_then(|name| name.to_str()?.strip_suffix(".jnl")?.parse().ok());
        if let Some(id) = id
            && newest.as_ref().is_none_or(|(other, _)| *other < id)
        {
            newest = Some((id, path));
        }
    }
    Ok(newest)
}

/// Where a journal was cut.
#[derive(Debug)]
pub(super) struct Cut {
    /// The length that is left.
    pub(super) at: u64,
    /// What was behind it.
    pub(super) bytes: usize,
    /// Where that is kept.
    pub(super) kept: PathBuf,
}

/// Cuts the newest journal before its last hole; `None` where it has none.
///
/// A disk that loses its power in the middle of a sync may have written a sector and not the one before
/// it, which then reads as the zeros that the file was made of. Everything behind such a hole was under
/// way in that sync, so nobody was told that it is durable; a sync that had ended has no holes. The
/// engine drops a last batch that ends too soon, but refuses one with a hole. What is cut off is kept
/// in a file in `keep_in`, should the hole be a damaged disk's.
///
/// # Errors
/// A file can't be read or written. Then nothing was cut.
pub(super) fn cut_before_last_hole(tables: &Path, keep_in: &Path) -> io::Result<Option<Cut>> {
    let Some((id, path)) = newest(tables)? else {
        return Ok(None);
    };
    let bytes = std::fs::read(&path)?;
    let Some((at, end)) = last_hole(&bytes) else {
        return Ok(None);
    };
    let kept = keep_in.join(format!("journal-{id}-from-{at}"));
    let mut copy = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&kept)?;
    copy.write_all(&bytes[at..end])?;
    copy.sync_all()?;
    File::open(keep_in)?.sync_all()?;
    let journal = File::options().write(true).open(&path)?;
    journal.set_len(at as u64)?;
    journal.sync_all()?;
    Ok(Some(Cut {
        at: at as u64,
        bytes: end - at,
        kept,
    }))
}

/// The beginning of the last run of empty sectors that has something behind it, and the end of that.
fn last_hole(bytes: &[u8]) -> Option<(usize, usize)> {
    let end = bytes.iter().rposition(|byte| *byte != 0)? + 1;
    let is_empty = |sector: &[u8]| sector.iter().all(|byte| *byte == 0);
    let sectors: Vec<bool> = bytes[..end].chunks(SECTOR).map(is_empty).collect();
    let last = sectors.iter().rposition(|empty| *empty)?;
    let before = sectors[..last].iter().rposition(|empty| !*empty);
    Some((before.map_or(0, |sector| sector + 1) * SECTOR, end))
}
