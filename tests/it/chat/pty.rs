//! A real pseudo-terminal with a program in it.

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

/// The terminal's side of a running program; it is killed when dropped.
pub(super) struct Pty {
    child: Child,
    keyboard: File,
    screen: Arc<Mutex<Vec<u8>>>,
    /// What `shows` has read past.
    seen: usize,
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
        // In a session of its own that this terminal controls: then Ctrl-C is a signal.
        let of = spec.command();
        let mut command = Command::new("setsid");
        command
            .arg("--ctty")
            .arg(of.get_program())
            .args(of.get_args())
            .env_clear()
            .envs(
                of.get_envs()
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
            // An error says that nobody has the terminal open any more.
            while let Ok(count @ 1..) = output.read(&mut buffer) {
                let mut screen = shared.lock();
                screen.extend_from_slice(&buffer[..count]);
            }
        });
        Self {
            child,
            keyboard,
            screen,
            seen: 0,
        }
    }

    /// Everything that was ever written to it.
    pub(super) fn all(&self) -> String {
        let screen = self.screen.lock();
        String::from_utf8_lossy(&screen).into_owned()
    }

    pub(super) fn types(&mut self, keys: &str) {
        self.keyboard
            .write_all(keys.as_bytes())
            .expect("the terminal takes keys");
    }

    /// Waits until it has shown `text` after what was waited for before.
    pub(super) async fn shows(&mut self, text: &str) {
        let what = format!("the terminal shows {text:?}");
        let find = |screen: &str, seen: usize| screen.get(seen..)?.find(text).map(|at| seen + at);
        let (screen, seen) = (&self.screen, self.seen);
        let all = || {
            let screen = screen.lock();
            String::from_utf8_lossy(&screen).into_owned()
        };
        wait_until(&what, TEST_TIMEOUT, || async {
            find(&all(), seen).is_some()
        })
        .await;
        self.seen = find(&all(), seen).unwrap_or(seen) + text.len();
    }

    /// Waits for the prompt, types a line and sends it.
    pub(super) async fn says(&mut self, line: &str) {
        self.shows("> ").await;
        self.types(line);
        // Only what the editor has taken is sent with Enter.
        self.shows(line).await;
        self.types("\r");
    }

    /// The exit code, when it ends by itself.
    pub(super) async fn ends(&mut self) -> Option<i32> {
        let status = wait_exit(&mut self.child, TEST_TIMEOUT).await;
        status.expect("the program does not end").code()
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
