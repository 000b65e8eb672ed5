//! What is written where: the answer on standard output, everything else on standard error.

use std::io::{self, IsTerminal as _, Write as _};

use super::text::harmless;

/// The two outputs, and the answer as far as it is shown.
pub(super) struct Screen {
    /// Standard output is read by a person, who sees the answer grow. A program gets it when it is
    /// whole: what it has read can't be taken back if another attempt begins.
    live: bool,
    plain: bool,
    /// The answer's text on the screen, as it came.
    shown: String,
    line_begins: bool,
}

impl Screen {
    pub(super) fn new() -> Self {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|set| !set.is_empty());
        let live = io::stdout().is_terminal();
        Self {
            live,
            plain: dumb || no_color || !live,
            shown: String::new(),
            line_begins: true,
        }
    }

    fn put(&mut self, text: &str) -> io::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        self.line_begins = text.ends_with('\n');
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }

    /// A line of ours on standard output.
    pub(super) fn line(&mut self, text: &str) -> io::Result<()> {
        self.fresh_line()?;
        self.put(&format!("{}\n", self.for_reader(text)))
    }

    /// The same, less prominent.
    pub(super) fn faint(&mut self, text: &str) -> io::Result<()> {
        let text = harmless(text);
        self.fresh_line()?;
        if self.plain {
            self.put(&format!("{text}\n"))
        } else {
            self.put(&format!("\x1b[2m{text}\x1b[0m\n"))
        }
    }

    /// A program gets the text as it is.
    fn for_reader(&self, text: &str) -> String {
        if self.live {
            harmless(text)
        } else {
            text.to_owned()
        }
    }

    fn fresh_line(&mut self) -> io::Result<()> {
        if self.line_begins {
            Ok(())
        } else {
            self.put("\n")
        }
    }

    /// What happens, in words, on standard error.
    pub(super) fn notice(&mut self, text: &str) {
        // Nobody is left to be told of a failure to tell.
        let _ = self.fresh_line();
        let _ = writeln!(io::stderr().lock(), "{}", harmless(text));
    }

    /// More of the answer.
    pub(super) fn more(&mut self, text: &str) -> io::Result<()> {
        self.shown.push_str(text);
        if self.live {
            self.put(&harmless(text))
        } else {
            Ok(())
        }
    }

    /// The whole text so far: only what is new is written where it goes on.
    pub(super) fn whole(&mut self, text: &str) -> io::Result<()> {
        if let Some(rest) = text.strip_prefix(self.shown.as_str()) {
            let rest = rest.to_owned();
            return self.more(&rest);
        }
        self.anew("the answer was begun anew:");
        self.more(text)
    }

    /// What was shown is worth nothing.
    pub(super) fn anew(&mut self, why: &str) {
        if self.live && !self.shown.is_empty() {
            self.notice(why);
        }
        self.shown.clear();
    }

    /// The answer is whole.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        if !self.live {
            let text = std::mem::take(&mut self.shown);
            self.put(&text)?;
        }
        self.shown.clear();
        self.fresh_line()
    }
}
