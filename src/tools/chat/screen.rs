//! Writes answers to standard output and notices to standard error.

use std::io::{self, IsTerminal as _, Write as _};

use super::sanitize::sanitize;

/// The outputs of the chat, and the text of the current answer.
pub(super) struct Screen {
    /// Whether standard output is a terminal, on which a person watches the answer grow. A program
    /// gets only complete answers, because text that it has read cannot be replaced when another
    /// attempt begins.
    is_terminal: bool,
    /// Whether text is written without escape sequences.
    is_plain: bool,
    /// The text of the current answer so far.
    answer: String,
    /// Whether standard output is at the start of a line.
    is_at_line_start: bool,
}

impl Screen {
    pub(super) fn new() -> Self {
        let is_dumb_terminal = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|set| !set.is_empty());
        let is_terminal = io::stdout().is_terminal();
        Self {
            is_terminal,
            is_plain: is_dumb_terminal || no_color || !is_terminal,
            answer: String::new(),
            is_at_line_start: true,
        }
    }

    fn write(&mut self, text: &str) -> io::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        self.is_at_line_start = text.ends_with('\n');
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }

    /// Writes a line to standard output, without control characters if it is a terminal.
    pub(super) fn print_line(&mut self, text: &str) -> io::Result<()> {
        self.start_line()?;
        self.write(&format!("{}\n", self.sanitize_for_terminal(text)))
    }

    /// Writes a line to standard output, dimmed unless escape sequences are not allowed.
    pub(super) fn print_dimmed(&mut self, text: &str) -> io::Result<()> {
        let text = sanitize(text);
        self.start_line()?;
        if self.is_plain {
            self.write(&format!("{text}\n"))
        } else {
            self.write(&format!("\x1b[2m{text}\x1b[0m\n"))
        }
    }

    /// Returns text as it is written to standard output: without control characters for a terminal,
    /// unchanged for a program.
    fn sanitize_for_terminal(&self, text: &str) -> String {
        if self.is_terminal {
            sanitize(text)
        } else {
            text.to_owned()
        }
    }

    fn start_line(&mut self) -> io::Result<()> {
        if self.is_at_line_start {
            Ok(())
        } else {
            self.write("\n")
        }
    }

    /// Writes a notice to standard error. Errors are ignored, because they could only be reported
    /// on standard error.
    pub(super) fn print_notice(&mut self, text: &str) {
        let _ = self.start_line();
        let _ = writeln!(io::stderr().lock(), "{}", sanitize(text));
    }

    /// Appends text to the current answer. A terminal shows it at once.
    pub(super) fn append(&mut self, text: &str) -> io::Result<()> {
        self.answer.push_str(text);
        if self.is_terminal {
            self.write(&sanitize(text))
        } else {
            Ok(())
        }
    }

    /// Replaces the text of the current answer with a snapshot or with its complete text. If the
    /// new text begins with the text so far, only the added part is written; otherwise the answer
    /// starts again.
    pub(super) fn replace(&mut self, text: &str) -> io::Result<()> {
        if let Some(added) = text.strip_prefix(self.answer.as_str()) {
            let added = added.to_owned();
            return self.append(&added);
        }
        self.restart("the answer starts again:");
        self.append(text)
    }

    /// Discards the text of the current answer. If a terminal has shown some of it, prints the
    /// reason.
    pub(super) fn restart(&mut self, reason: &str) {
        if self.is_terminal && !self.answer.is_empty() {
            self.print_notice(reason);
        }
        self.answer.clear();
    }

    /// Completes the current answer: writes its text if it was withheld for a program, and ends the
    /// line.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        if !self.is_terminal {
            let text = std::mem::take(&mut self.answer);
            self.write(&text)?;
        }
        self.answer.clear();
        self.start_line()
    }
}
