//! Writes answers to standard output and notices to standard error.

use std::io::{self, IsTerminal as _, Write as _};

use rustix::termios::tcgetwinsize;

use super::answer_text::{AnswerText, TerminalText, dim};
use super::sanitize::sanitize;
use crate::client::{Part, PartDelta, content_of};

/// Width that is assumed of a terminal that does not report its width.
const DEFAULT_COLUMNS: usize = 80;

/// The outputs of the chat, and the current answer.
pub(super) struct Screen {
    /// Whether standard output is a terminal, on which a person watches the answer grow. A program
    /// gets only complete answers, because text that it has read cannot be replaced when another
    /// attempt begins.
    is_terminal: bool,
    /// Whether text is written without escape sequences.
    is_plain: bool,
    /// The current answer so far.
    answer: AnswerText,
    /// Whether standard output is at the start of a line.
    is_at_line_start: bool,
}

impl Screen {
    pub(super) fn new() -> Self {
        let is_dumb_terminal = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|set| !set.is_empty());
        let is_terminal = io::stdout().is_terminal();
        let is_plain = is_dumb_terminal || no_color || !is_terminal;
        Self {
            is_terminal,
            is_plain,
            answer: AnswerText::new(is_plain),
            is_at_line_start: true,
        }
    }

    fn write(&mut self, text: &str) -> io::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        self.is_at_line_start = text.ends_with('\n');
        write_to_stdout(text)
    }

    /// Writes what a terminal shows of the answer.
    fn show(&mut self, shown: &TerminalText) -> io::Result<()> {
        if shown.text.is_empty() {
            return Ok(());
        }
        self.is_at_line_start = shown.is_at_line_start;
        write_to_stdout(&shown.text)
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
            self.write(&format!("{}\n", dim(&text)))
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

    /// Appends text to a part of the current answer. A terminal shows it at once.
    pub(super) fn append(&mut self, delta: PartDelta) -> io::Result<()> {
        let shown = self.answer.append(delta, self.is_at_line_start, columns());
        if self.is_terminal {
            self.show(&shown)
        } else {
            Ok(())
        }
    }

    /// Replaces the parts of the current answer with those of a snapshot, or with all its parts. If
    /// the new parts continue the parts so far, only what they add is written; otherwise the answer
    /// starts again.
    pub(super) fn replace(&mut self, parts: &[Part]) -> io::Result<()> {
        let additions = self.answer.additions(parts).unwrap_or_else(|| {
            self.restart("the answer starts again:");
            self.answer.additions(parts).unwrap_or_default()
        });
        additions
            .into_iter()
            .try_for_each(|delta| self.append(delta))
    }

    /// Discards the current answer. If a terminal has shown some of it, prints the reason.
    pub(super) fn restart(&mut self, reason: &str) {
        if self.is_terminal && self.answer.is_shown() {
            self.print_notice(reason);
        }
        self.answer.clear();
    }

    /// Completes the current answer and ends the line. A program gets the answer's text here, and
    /// nothing of its other parts.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        if self.is_terminal {
            let shown = self.answer.finish(self.is_at_line_start, columns());
            self.show(&shown)?;
        } else {
            self.write(&content_of(self.answer.parts()))?;
        }
        self.answer.clear();
        self.start_line()
    }
}

fn write_to_stdout(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Number of columns of the terminal.
fn columns() -> usize {
    let size = tcgetwinsize(io::stdout());
    match size.map(|size| usize::from(size.ws_col)) {
        Ok(columns @ 1..) => columns,
        _ => DEFAULT_COLUMNS,
    }
}
