//! Checks the data directory of `all-in-one`: its permissions, its format and the free disk space.

use super::report::Findings;
use crate::config::Config;
use crate::store;

const MIB: u64 = 1 << 20;

pub(super) fn check(config: &Config, findings: &mut Findings) {
    let settings = config.embedded();
    let Some(path) = settings.data_dir else {
        findings.add_ok("all data is in memory only and lost when the process exits (EPHEMERAL)");
        return;
    };
    let directory = path.display();
    let folder = match store::inspect(&path) {
        Ok(folder) => folder,
        Err(error) => {
            findings.add_problem(
                format!("{directory} can't be inspected: {error}"),
                "correct its permissions, or choose another directory with --data-dir",
            );
            return;
        }
    };
    if !folder.is_writable {
        findings.add_problem(
            format!("this user has no permission to write to {directory}"),
            "change its owner to the user that chatmesh runs as (chown), or choose another directory with --data-dir",
        );
    }
    if let Err(why) = folder.format {
        let (text, advice) = why
            .rsplit_once(": ")
            .unwrap_or((&why, "inspect its content"));
        findings.add_problem(text, advice);
    }
    match (folder.exists, folder.holder) {
        (false, _) => findings.add_ok(format!(
            "{directory} does not exist yet: the first start creates it"
        )),
        (true, Some(pid)) => {
            let pid = pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
            findings.add_ok(format!("{directory} is in use by a running chatmesh{pid}"));
        }
        (true, None) if !folder.is_initialized => findings.add_ok(format!(
            "{directory} exists and is no data directory yet: the first start initialises it"
        )),
        (true, None) => findings.add_ok(format!(
            "{directory} exists, and no process uses it; its content is not checked"
        )),
    }
    if folder.is_open_to_others {
        findings.add_warning(
            format!("other users of this machine can read {directory}"),
            format!("chmod 700 {directory}"),
        );
    }
    let (free_mib, needed_mib) = (folder.free_bytes / MIB, settings.min_free_disk / MIB);
    if folder.free_bytes < settings.min_free_disk {
        findings.add_problem(
            format!(
                "{free_mib} MiB are free, and below {needed_mib} MiB new messages are rejected"
            ),
            "free space on that disk, or lower MIN_FREE_DISK",
        );
    } else if folder.free_bytes < settings.min_free_disk.saturating_mul(4) {
        findings.add_warning(
            format!(
                "only {free_mib} MiB are free; below {needed_mib} MiB new messages are rejected"
            ),
            "free space on that disk soon",
        );
    } else {
        findings.add_ok(format!("{free_mib} MiB are free on its disk"));
    }
}
