//! Writes answers to standard output and notices to standard error.

use std::io::{self, IsTerminal as _, Write as _};

use super::sanitize::sanitize;

/// The outputs of the chat, and the text of the current answer.
pub(super) struct Screen {
    /// Standard output is a terminal, so a person watches the answer grow. A program gets only complete
    /// answers, because text that it has read cannot be replaced when another attempt begins.
    is_terminal: bool,
    /// Text is written without escape sequences.
    is_plain: bool,
    /// The text of the current answer so far.
    answer: String,
    is_at_line_start: bool,
}

impl Screen {
    pub(super) fn new() -> Self {
        let is_dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|set| !set.is_empty());
        let is_terminal = io::stdout().is_terminal();
        Self {
            is_terminal,
            is_plain: is_dumb || no_color || !is_terminal,
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

    /// Writes a line to standard output.
    pub(super) fn print_line(&mut self, text: &str) -> io::Result<()> {
        self.start_line()?;
        self.write(&format!("{}\n", self.sanitize_for_terminal(text)))
    }

    /// Writes a line to standard output, dimmed if the terminal can.
    pub(super) fn print_dimmed(&mut self, text: &str) -> io::Result<()> {
        let text = sanitize(text);
        self.start_line()?;
        if self.is_plain {
            self.write(&format!("{text}\n"))
        } else {
            self.write(&format!("\x1b[2m{text}\x1b[0m\n"))
        }
    }

    /// Text for the reader of standard output. A program gets it unchanged.
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

    /// Writes a notice to standard error. Errors are ignored, because there is nowhere to report them.
    pub(super) fn print_notice(&mut self, text: &str) {
        let _ = self.start_line();
        let _ = writeln!(io::stderr().lock(), "{}", sanitize(text));
    }

    /// Appends text to the answer.
    pub(super) fn append(&mut self, text: &str) -> io::Result<()> {
        self.answer.push_str(text);
        if self.is_terminal {
            self.write(&sanitize(text))
        } else {
            Ok(())
        }
    }

    /// Replaces the answer by its complete text. If that continues the text so far, only the rest is
    /// written.
    pub(super) fn replace(&mut self, text: &str) -> io::Result<()> {
        if let Some(rest) = text.strip_prefix(self.answer.as_str()) {
            let rest = rest.to_owned();
            return self.append(&rest);
        }
        self.restart("the answer starts again:");
        self.append(text)
    }

    /// Discards the answer so far, and tells the person why.
    pub(super) fn restart(&mut self, reason: &str) {
        if self.is_terminal && !self.answer.is_empty() {
            self.print_notice(reason);
        }
        self.answer.clear();
    }

    /// Completes the answer.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        if !self.is_terminal {
            let text = std::mem::take(&mut self.answer);
            self.write(&text)?;
        }
        self.answer.clear();
        self.start_line()
    }
}
