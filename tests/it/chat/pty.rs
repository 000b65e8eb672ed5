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
    /// Length of the output up to the last text that `shows` has found.
    checked: usize,
}

impl Pty {
    pub(super) fn run(spec: &ProcessSpec) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a pseudo-terminal");
        grantpt(&master).expect("a pseudo-terminal");
        unlockpt(&master).expect("a pseudo-terminal");
        let size = Winsize {
            ws_row: 50,
            ws_col: 200,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&master, size).expect("the size of a terminal");
        let name = ptsname(&master, Vec::new()).expect("a terminal's name");
        let slave = || {
            OpenOptions::new()
                .read(true)
                .write(true)
                .open(OsStr::from_bytes(name.to_bytes()))
                .expect("the terminal")
        };
        // A session of its own with this controlling terminal, so that Ctrl-C becomes a signal.
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
        let child = command.spawn().expect("setsid, of util-linux");
        let keyboard = File::from(master);
        let mut output = keyboard.try_clone().expect("a second handle");
        let screen = Arc::new(Mutex::new(Vec::new()));
        let shared = screen.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // Reading fails when the program has closed the terminal.
            while let Ok(count @ 1..) = output.read(&mut buffer) {
                let mut screen = shared.lock();
                screen.extend_from_slice(&buffer[..count]);
            }
        });
        Self {
            child,
            keyboard,
            screen,
            checked: 0,
        }
    }

    /// The complete output of the program.
    pub(super) fn all(&self) -> String {
        let screen = self.screen.lock();
        String::from_utf8_lossy(&screen).into_owned()
    }

    pub(super) fn types(&mut self, keys: &str) {
        self.keyboard
            .write_all(keys.as_bytes())
            .expect("the terminal accepts keys");
    }

    /// Waits for `text` in the output behind the text that was waited for last.
    pub(super) async fn shows(&mut self, text: &str) {
        let what = format!("the terminal shows {text:?}");
        let (screen, checked) = (&self.screen, self.checked);
        let find = |screen: &str| {
            let index = screen.get(checked..)?.find(text)?;
            Some(checked + index)
        };
        let all = || {
            let screen = screen.lock();
            String::from_utf8_lossy(&screen).into_owned()
        };
        wait_until(&what, TEST_TIMEOUT, || async { find(&all()).is_some() }).await;
        self.checked = find(&all()).unwrap_or(checked) + text.len();
    }

    /// Waits for the prompt, types a line, and presses Enter.
    pub(super) async fn says(&mut self, line: &str) {
        self.shows("> ").await;
        self.types(line);
        // Enter submits only what the editor has read already.
        self.shows(line).await;
        self.types("\r");
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
            eprintln!("--- the terminal ---\n{}", self.all().escape_debug());
        }
    }
}
