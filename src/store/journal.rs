//! The storage engine's journal files: finding the newest one, and diagnosing one that is damaged.

use std::io;
use std::path::{Path, PathBuf};

/// Size in bytes of a disk's sector, which is the smallest unit that a disk writes.
const SECTOR_BYTES: usize = 512;

/// The number and the path of the newest journal. `None` if the engine's directory has no journal.
///
/// # Errors
/// Fails if the directory cannot be read.
pub(super) fn find_newest(engine_dir: &Path) -> io::Result<Option<(u64, PathBuf)>> {
    let mut newest: Option<(u64, PathBuf)> = None;
    for entry in std::fs::read_dir(engine_dir)? {
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

/// What an operator can do about the newest journal after the engine has refused it as damaged.
///
/// A disk that loses power in the middle of a sync may have written a sector but not the sector
/// before it. That earlier sector reads as the zeros with which the file was allocated. Everything
/// behind such a hole belonged to that sync, so none of it was reported as durable. The engine
/// drops a last batch that is truncated, but refuses a batch with a hole. The file does not show
/// whether the cause was a power cut or a damaged disk, which may have erased data that was
/// acknowledged long ago. An operator has to decide that.
///
/// # Errors
/// Fails if the journal cannot be read.
pub(super) fn repair_advice(engine_dir: &Path) -> io::Result<String> {
    const RESTORE: &str = "the disk has changed written data: restore a backup of the whole \
                           directory, as docs/operations.md describes";
    let Some((_, path)) = find_newest(engine_dir)? else {
        return Ok(RESTORE.into());
    };
    let hole = last_hole(&std::fs::read(&path)?);
    let path = path.display();
    Ok(match hole {
        Some(offset) => format!(
            "{path} has a hole at byte {offset}. If the machine lost power, that is the cause, and \
             nothing behind the hole had been acknowledged: keep a copy of the file, run \
             `truncate -s {offset} {path}`, and start again. If not, {RESTORE}"
        ),
        None => RESTORE.into(),
    })
}

/// The offset in bytes of the last run of empty sectors, which contain only zeros, that has data
/// behind it. `None` if there is no such run.
fn last_hole(bytes: &[u8]) -> Option<usize> {
    let end = bytes.iter().rposition(|byte| *byte != 0)? + 1;
    let is_empty = |sector: &[u8]| sector.iter().all(|byte| *byte == 0);
    let sectors: Vec<bool> = bytes[..end].chunks(SECTOR_BYTES).map(is_empty).collect();
    let last = sectors.iter().rposition(|is_empty| *is_empty)?;
    let before = sectors[..last].iter().rposition(|is_empty| !*is_empty);
    Some(before.map_or(0, |sector| sector + 1) * SECTOR_BYTES)
}
