//! Reads lines from a person, with editing and a history that only its user can read.

use std::fs::{DirBuilder, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{Cmd, Config, Editor, KeyCode, KeyEvent, Modifiers};

/// The input at the prompt.
pub(super) enum Input {
    Text(String),
    /// Ctrl-C or the end of the input.
    Quit,
}

/// The prompt.
pub(super) struct LineEditor {
    editor: Editor<(), FileHistory>,
    history: Option<PathBuf>,
}

impl LineEditor {
    /// Opens the prompt. Without access to the history file, there is no history.
    ///
    /// # Errors
    /// There is no terminal.
    pub(super) fn open() -> rustyline::Result<Self> {
        let config = Config::builder()
            .max_history_size(1000)?
            .history_ignore_space(true)
            .auto_add_history(false)
            // Pasted lines become one message.
            .bracketed_paste(true)
            .build();
        let mut editor: Editor<(), FileHistory> = Editor::with_config(config)?;
        let newline = KeyEvent(KeyCode::Enter, Modifiers::ALT);
        editor.bind_sequence(newline, Cmd::Newline);
        let history = history_path().filter(|path| prepare_history(path).is_ok());
        if let Some(path) = &history {
            let _ = editor.load_history(path);
        }
        Ok(Self { editor, history })
    }

    /// A printer of notices above the line that is being edited.
    pub(super) fn notice_printer(
        &mut self,
    ) -> Option<impl rustyline::ExternalPrinter + Send + use<>> {
        self.editor.create_external_printer().ok()
    }

    /// Blocks until a line is entered.
    ///
    /// # Errors
    /// The terminal cannot be read.
    pub(super) fn read_line(&mut self) -> rustyline::Result<Input> {
        match self.editor.readline("> ") {
            Ok(text) => {
                if !text.trim().is_empty()
                    && self.editor.add_history_entry(&text)?
                    && let Some(path) = &self.history
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

/// `chatmesh/chat-history` in the user's state directory.
fn history_path() -> Option<PathBuf> {
    let absolute = |name: &str| {
        let path = PathBuf::from(std::env::var_os(name)?);
        path.is_absolute().then_some(path)
    };
    let state_dir =
        absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")))?;
    Some(state_dir.join("chatmesh/chat-history"))
}

/// Creates the file, readable by its user only from the start, and corrects its permissions.
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
