//! Runs a program in a pseudo-terminal.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::process::{Child, Command};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::support::process::{ProcessSpec, wait_exit};
use crate::support::{TEST_TIMEOUT, wait_until};

pub(super) const CTRL_C: &str = "\x03";

/// A program in a pseudo-terminal. Dropping it kills the program.
pub(super) struct Pty {
    child: Child,
    keyboard: File,
    screen: Arc<Mutex<Vec<u8>>>,
    /// Length of the output up to the end of the last text that `wait_for_text` has found.
    searched_length: usize,
}

impl Pty {
    pub(super) fn run(spec: &ProcessSpec) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)
            .expect("the system provides a pseudo-terminal");
        grantpt(&master).expect("the system provides a pseudo-terminal");
        unlockpt(&master).expect("the system provides a pseudo-terminal");
        let size = Winsize {
            ws_row: 50,
            ws_col: 200,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&master, size).expect("the terminal accepts a size");
        let name = ptsname(&master, Vec::new()).expect("the terminal has a name");
        let slave = || {
            OpenOptions::new()
                .read(true)
                .write(true)
                .open(OsStr::from_bytes(name.to_bytes()))
                .expect("the terminal can be opened")
        };
        // `setsid` starts a session with this controlling terminal, so that Ctrl-C becomes a
        // signal.
        let program = spec.command();
        let mut command = Command::new("setsid");
        command
            .arg("--ctty")
            .arg(program.get_program())
            .args(program.get_args())
            .env_clear()
            .envs(
                program
                    .get_envs()
                    .filter_map(|(name, value)| Some((name, value?))),
            )
            .current_dir(spec.dir())
            .stdin(slave())
            .stdout(slave())
            .stderr(slave());
        let child = command.spawn().expect("setsid of util-linux runs");
        let keyboard = File::from(master);
        let mut reader = keyboard.try_clone().expect("the handle can be cloned");
        let screen = Arc::new(Mutex::new(Vec::new()));
        let shared = screen.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // Reading fails when the program has closed the terminal.
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                let mut screen = shared.lock();
                screen.extend_from_slice(&buffer[..count]);
            }
        });
        Self {
            child,
            keyboard,
            screen,
            searched_length: 0,
        }
    }

    /// The complete output of the program.
    pub(super) fn output(&self) -> String {
        let screen = self.screen.lock();
        String::from_utf8_lossy(&screen).into_owned()
    }

    pub(super) fn type_keys(&mut self, keys: &str) {
        self.keyboard
            .write_all(keys.as_bytes())
            .expect("the terminal accepts keys");
    }

    /// Waits for `text` in the output after the last text that was found.
    pub(super) async fn wait_for_text(&mut self, text: &str) {
        let condition = format!("the terminal shows {text:?}");
        let (screen, searched_length) = (&self.screen, self.searched_length);
        let find = |screen: &str| {
            let index = screen.get(searched_length..)?.find(text)?;
            Some(searched_length + index)
        };
        let output = || {
            let screen = screen.lock();
            String::from_utf8_lossy(&screen).into_owned()
        };
        wait_until(&condition, TEST_TIMEOUT, || async {
            find(&output()).is_some()
        })
        .await;
        self.searched_length = find(&output()).unwrap_or(searched_length) + text.len();
    }

    /// Waits for the prompt, types a line, and presses Enter.
    pub(super) async fn send_line(&mut self, line: &str) {
        self.wait_for_text("> ").await;
        self.type_keys(line);
        // Enter submits only what the editor has read already.
        self.wait_for_text(line).await;
        self.type_keys("\r");
    }

    /// Waits until the program exits. Returns its exit code.
    pub(super) async fn exit_code(&mut self) -> Option<i32> {
        let status = wait_exit(&mut self.child, TEST_TIMEOUT).await;
        status.expect("the program exits").code()
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the terminal ---\n{}", self.output().escape_debug());
        }
    }
}
