//! A full disk under the embedded log.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::fault_actions::compile_preload_library;
use crate::support::TEST_TIMEOUT;
use crate::support::classic::ClientEvent;
use crate::support::process::ProcessSpec;
use crate::support::v1::V1Client;

/// A small file system in memory; unmounted when dropped.
struct Disk(tempfile::TempDir);

impl Disk {
    fn mount(megabytes: u32) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let size = format!("size={megabytes}m");
        let mounted = sudo(
            "mount",
            &["-t", "tmpfs", "-o", &size, "tmpfs"],
            folder.path(),
        );
        assert!(
            mounted,
            "mount a tmpfs: needs root, or sudo without a password"
        );
        Self(folder)
    }

    /// Fills the disk to the last byte.
    fn fill(&self) {
        use std::io::Write;
        let mut file = std::fs::File::create(self.0.path().join("ballast")).expect("ballast");
        let block = vec![1_u8; 4096];
        while file.write_all(&block).is_ok() {}
    }

    fn free(&self) {
        std::fs::remove_file(self.0.path().join("ballast")).expect("ballast");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        sudo("umount", &["-l"], self.0.path());
    }
}

/// Runs a program directly or, if that fails, by `sudo`. Returns whether it succeeded.
fn sudo(program: &str, args: &[&str], folder: &Path) -> bool {
    let succeeds = |command: &mut Command| {
        let status = command.args(args).arg(folder).status();
        status.is_ok_and(|status| status.success())
    };
    succeeds(&mut Command::new(program)) || succeeds(Command::new("sudo").arg("-n").arg(program))
}

/// Fills the disk of a running system and frees it again: every accepted message must end. With
/// `min_free` 0 the process notices the full disk only when a write fails.
async fn test_full_disk(min_free: &str) {
    let disk = Disk::mount(192);
    let data = disk.0.path().join("data");
    let spec = ProcessSpec::new(&["all-in-one"]).arg("--data-dir");
    let spec = spec.arg(&data.display().to_string());
    let spec = spec.on_free_port().env("MIN_FREE_DISK", min_free);
    let mut process = spec.start().await;
    let mut device = V1Client::open(process.port(), "alice").await;
    let mut accepted = vec!["before-0".to_owned()];
    assert_eq!(
        device.send_and_wait("before-0", "hello").await["type"],
        "response"
    );

    disk.fill();
    // A message that is accepted while the disk is full must end later, like every accepted one.
    let mut refused = 0;
    for n in 0..40 {
        if refused == 2 {
            break;
        }
        let id = format!("full-{n}");
        if !device.is_connected() && device.try_connect(process.port()).await.is_err() {
            break;
        }
        device.send_message(&id, &"x".repeat(2000)).await;
        loop {
            match device.next_event(Duration::from_secs(12)).await {
                ClientEvent::Frame(frame) if frame["id"] == id.as_str() => {
                    if frame["type"] == "accepted" {
                        accepted.push(id);
                        break;
                    }
                    if frame["type"] == "error" {
                        assert_eq!(frame["code"], "unavailable", "{frame}");
                        refused += 1;
                        break;
                    }
                }
                ClientEvent::Frame(_) => {}
                _ => {
                    refused += 1;
                    break;
                }
            }
        }
    }
    assert!(
        refused > 0,
        "every message was accepted, so the disk was not full"
    );
    disk.free();
    // The process may have exited because of the full disk, so it is restarted as by a supervisor.
    process.kill();
    let process = spec.start().await;
    device.connect_with_retries(&[process.port()]).await;
    let ids: Vec<&str> = accepted.iter().map(String::as_str).collect();
    device.wait_for_terminal_frames(&ids).await;
    assert_eq!(
        device.send_and_wait("after", "hello").await["type"],
        "response"
    );
    let has_not_ended = |id: &&str| {
        device
            .transcript
            .get(id)
            .is_none_or(|m| m.terminal.is_none())
    };
    assert_eq!(
        ids.iter().find(|id| has_not_ended(id)),
        None,
        "every accepted message must end within {TEST_TIMEOUT:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn message_is_accepted_only_when_it_is_durable() {
    let folder = tempfile::tempdir().expect("a folder");
    let (data, failure_marker) = (folder.path().join("data"), folder.path().join("failing"));
    let spec = ProcessSpec::new(&["all-in-one"]).arg("--data-dir");
    let spec = spec.arg(&data.display().to_string()).on_free_port();
    let spec = spec.env("LD_PRELOAD", &compile_preload_library("disk"));
    let spec = spec.env("SYNC_FAILS_WHILE", &failure_marker.display().to_string());
    let process = spec.start().await;
    let mut device = V1Client::open(process.port(), "alice").await;
    assert_eq!(
        device.send_and_wait("before", "hello").await["type"],
        "response"
    );

    std::fs::write(&failure_marker, "").expect("a file");
    device.send_message("during-failure", "hello").await;
    let refusal = loop {
        match device.next_event(TEST_TIMEOUT).await {
            ClientEvent::Frame(frame) if frame["id"] == "during-failure" => break frame,
            ClientEvent::Frame(_) => {}
            other => panic!("neither accepted nor refused: {other:?}"),
        }
    };
    assert_eq!(refusal["code"], "unavailable", "{refusal}");
    std::fs::remove_file(&failure_marker).expect("the file");
    device.connect_with_retries(&[process.port()]).await;
    device.send_message("during-failure", "hello").await;
    device.wait_for_terminal_frames(&["during-failure"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn below_the_minimum_free_space_messages_are_refused_and_none_is_lost() {
    test_full_disk("16777216").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disk_full_to_the_last_byte_loses_no_accepted_message() {
    test_full_disk("0").await;
}
