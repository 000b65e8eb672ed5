//! Lines from a person: edited, with a history that only its user can read.

use std::fs::{DirBuilder, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{Cmd, Config, Editor, KeyCode, KeyEvent, Modifiers};

/// What came of asking for a line.
pub(super) enum Line {
    Text(String),
    /// The person wants to go.
    Leave,
}

pub(super) struct Lines {
    editor: Editor<(), FileHistory>,
    history: Option<PathBuf>,
}

impl Lines {
    /// # Errors
    /// There is no terminal to edit in. A history that can't be kept is no error.
    pub(super) fn open() -> rustyline::Result<Self> {
        let config = Config::builder()
            .max_history_size(1000)?
            .history_ignore_space(true)
            .auto_add_history(false)
            // Pasted lines are one message.
            .bracketed_paste(true)
            .build();
        let mut editor: Editor<(), FileHistory> = Editor::with_config(config)?;
        let newline = KeyEvent(KeyCode::Enter, Modifiers::ALT);
        editor.bind_sequence(newline, Cmd::Newline);
        let history = place().filter(|path| prepare(path).is_ok());
        if let Some(path) = &history {
            let _ = editor.load_history(path);
        }
        Ok(Self { editor, history })
    }

    /// By which a notice can be shown above the line being edited.
    pub(super) fn notices(&mut self) -> Option<impl rustyline::ExternalPrinter + Send + use<>> {
        self.editor.create_external_printer().ok()
    }

    /// Waits for a line.
    ///
    /// # Errors
    /// The terminal is gone.
    pub(super) fn next(&mut self) -> rustyline::Result<Line> {
        match self.editor.readline("> ") {
            Ok(text) => {
                if !text.trim().is_empty()
                    && self.editor.add_history_entry(&text)?
                    && let Some(path) = &self.history
                {
                    let _ = self.editor.append_history(path);
                }
                Ok(Line::Text(text))
            }
            Err(ReadlineError::Interrupted | ReadlineError::Eof) => Ok(Line::Leave),
            Err(error) => Err(error),
        }
    }
}

fn place() -> Option<PathBuf> {
    let absolute = |name: &str| {
        let path = PathBuf::from(std::env::var_os(name)?);
        path.is_absolute().then_some(path)
    };
    let base =
        absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")))?;
    Some(base.join("chatmesh/chat-history"))
}

/// The file, which nobody else can read from the beginning on.
fn prepare(path: &Path) -> io::Result<()> {
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
    fn the_history_is_made_for_its_user_only_and_stays_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/chat-history");
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        prepare(&path).unwrap();
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        prepare(&path).unwrap();
        assert_eq!(mode(&path), 0o600);
    }
}
