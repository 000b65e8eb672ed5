//! Reads lines from a person, with editing and a history that only its user can read.

use std::fs::{DirBuilder, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{Cmd, Config, Editor, KeyCode, KeyEvent, Modifiers};

/// What a person entered at the prompt.
pub(super) enum Input {
    /// The text of a message. It may be empty or have several lines.
    Text(String),
    /// The person pressed Ctrl-C, or the input ended.
    Quit,
}

/// Reads the person's messages at a prompt.
pub(super) struct LineEditor {
    editor: Editor<(), FileHistory>,
    /// The file in which the history is stored; `None` if it can't be used.
    history_file: Option<PathBuf>,
}

impl LineEditor {
    /// Opens the prompt. Without access to the history file, the history is lost when the process
    /// exits.
    ///
    /// # Errors
    /// There is no terminal.
    pub(super) fn open() -> rustyline::Result<Self> {
        let config = Config::builder()
            .max_history_size(1000)?
            .history_ignore_space(true)
            .auto_add_history(false)
            // Lines that are pasted together become one message.
            .bracketed_paste(true)
            .build();
        let mut editor: Editor<(), FileHistory> = Editor::with_config(config)?;
        let newline = KeyEvent(KeyCode::Enter, Modifiers::ALT);
        editor.bind_sequence(newline, Cmd::Newline);
        let history_file = history_path().filter(|path| prepare_history(path).is_ok());
        if let Some(path) = &history_file {
            let _ = editor.load_history(path);
        }
        Ok(Self {
            editor,
            history_file,
        })
    }

    /// Returns a printer that writes notices above the line that is being edited; `None` if the
    /// terminal does not support that.
    pub(super) fn notice_printer(
        &mut self,
    ) -> Option<impl rustyline::ExternalPrinter + Send + use<>> {
        self.editor.create_external_printer().ok()
    }

    /// Blocks until the person has entered a message or quits.
    ///
    /// # Errors
    /// The terminal cannot be read.
    pub(super) fn read_line(&mut self) -> rustyline::Result<Input> {
        match self.editor.readline("> ") {
            Ok(text) => {
                if !text.trim().is_empty()
                    && self.editor.add_history_entry(&text)?
                    && let Some(path) = &self.history_file
                {
                    let _ = self.editor.append_history(path);
                }
                Ok(Input::Text(text))
            }
            Err(ReadlineError::Interrupted | ReadlineError::Eof) => Ok(Input::Quit),
            Err(error) => Err(error),
        }
    }
}

/// Returns the path of the history file, `chatmesh/chat-history` in the user's state directory;
/// `None` if neither XDG_STATE_HOME nor HOME is an absolute path.
fn history_path() -> Option<PathBuf> {
    let absolute_path = |name: &str| {
        let path = PathBuf::from(std::env::var_os(name)?);
        path.is_absolute().then_some(path)
    };
    let state_dir = absolute_path("XDG_STATE_HOME")
        .or_else(|| Some(absolute_path("HOME")?.join(".local/state")))?;
    Some(state_dir.join("chatmesh/chat-history"))
}

/// Creates the history file and its folder so that only the user can read them, and corrects the
/// permissions of an existing file.
fn prepare_history(path: &Path) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)?;
    }
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o600))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_is_readable_by_its_user_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/chat-history");
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        prepare_history(&path).unwrap();
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        prepare_history(&path).unwrap();
        assert_eq!(mode(&path), 0o600);
    }
}
