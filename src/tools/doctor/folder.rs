//! The data directory of `all-in-one`.

use super::report::Findings;
use crate::config::Config;
use crate::store;

const MIB: u64 = 1 << 20;

pub(super) fn look(config: &Config, findings: &mut Findings) {
    let settings = config.embedded();
    let Some(path) = settings.data_dir else {
        findings.ok("kept in memory only, and gone with the process (EPHEMERAL)");
        return;
    };
    let shown = path.display();
    let folder = match store::inspect(&path) {
        Ok(folder) => folder,
        Err(error) => {
            findings.problem(
                format!("{shown} can't be looked at: {error}"),
                "correct its permissions, or choose another folder with --data-dir",
            );
            return;
        }
    };
    if !folder.writable {
        findings.problem(
            format!("this user may not write into {shown}"),
            "give it to the user that chatmesh runs as (chown), or choose another with --data-dir",
        );
    }
    if let Err(why) = folder.format {
        let (text, advice) = why
            .rsplit_once(": ")
            .unwrap_or((&why, "look at what is in it"));
        findings.problem(text, advice);
    }
    match (folder.exists, folder.holder) {
        (false, _) => findings.ok(format!(
            "{shown} is not there yet: the first start makes it"
        )),
        (true, Some(pid)) => {
            let pid = pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
            findings.ok(format!("{shown} is in use by a running chatmesh{pid}"));
        }
        (true, None) if !folder.is_initialized => findings.ok(format!(
            "{shown} is there and no data directory yet: the first start makes it one"
        )),
        (true, None) => findings.ok(format!("{shown} is there, and nobody works on it")),
    }
    if folder.open_to_others {
        findings.warning(
            format!("other users of this machine may look into {shown}"),
            format!("chmod 700 {shown}"),
        );
    }
    let (free, needed) = (folder.free / MIB, settings.min_free_disk / MIB);
    if folder.free < settings.min_free_disk {
        findings.problem(
            format!("{free} MiB are free, and below {needed} MiB new messages are refused"),
            "make room on that disk, or lower MIN_FREE_DISK",
        );
    } else if folder.free < settings.min_free_disk.saturating_mul(4) {
        findings.warning(
            format!("only {free} MiB are free; below {needed} MiB new messages are refused"),
            "make room on that disk soon",
        );
    } else {
        findings.ok(format!("{free} MiB are free on its disk"));
    }
}
