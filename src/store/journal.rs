//! The storage engine's journals: which is the newest, and what a power cut leaves in it.

use std::io;
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

/// What is to be done about the newest journal, which the engine has refused.
///
/// A disk that loses its power in the middle of a sync may have written a sector and not the one before
/// it, which then reads as the zeros that the file was made of. Everything behind such a hole was under
/// way in that sync, so nobody was told that it is durable. The engine drops a last batch that ends too
/// soon, but refuses one with a hole. Whether it was the power, or a damaged disk, which may have
/// emptied what was acknowledged long ago, can't be seen in the file: so a person has to say it.
///
/// # Errors
/// The journal can't be read.
pub(super) fn advice(tables: &Path) -> io::Result<String> {
    const OTHERWISE: &str = "the disk has changed what was written: put back a backup of the whole \
                             directory, as docs/operations.md says";
    let Some((_, path)) = newest(tables)? else {
        return Ok(OTHERWISE.into());
    };
    let hole = last_hole(&std::fs::read(&path)?);
    let path = path.display();
    Ok(match hole {
        Some(at) => format!(
            "{path} has a hole at byte {at}. If the power was cut, it is from that, and nothing behind it \
             had been acknowledged: keep a copy of the file, run `truncate -s {at} {path}`, and start \
             again. If not, {OTHERWISE}"
        ),
        None => OTHERWISE.into(),
    })
}

/// The beginning of the last run of empty sectors that has something behind it.
fn last_hole(bytes: &[u8]) -> Option<usize> {
    let end = bytes.iter().rposition(|byte| *byte != 0)? + 1;
    let is_empty = |sector: &[u8]| sector.iter().all(|byte| *byte == 0);
    let sectors: Vec<bool> = bytes[..end].chunks(SECTOR).map(is_empty).collect();
    let last = sectors.iter().rposition(|empty| *empty)?;
    let before = sectors[..last].iter().rposition(|empty| !*empty);
    Some(before.map_or(0, |sector| sector + 1) * SECTOR)
}
