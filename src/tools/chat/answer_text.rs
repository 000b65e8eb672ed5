//! Converts the parts of an answer into the text that a terminal shows.

use url::Url;

use super::sanitize::{sanitize, sanitize_line};
use crate::client::{Part, PartDelta};
use crate::protocol::parts::{PartKind, PartMeta};

/// Maximum number of columns of a tool's name and of a source's title.
const MAX_NAME_COLUMNS: usize = 60;

/// Text to write, and whether the output is at the start of a line after it. Escape sequences hide
/// the end of a line, so this cannot be read from the text.
#[derive(Debug)]
pub(super) struct TerminalText {
    pub(super) text: String,
    pub(super) is_at_line_start: bool,
}

impl TerminalText {
    fn new(is_at_line_start: bool) -> Self {
        Self {
            text: String::new(),
            is_at_line_start,
        }
    }

    fn push(&mut self, text: &str) {
        if !text.is_empty() {
            self.text.push_str(text);
            self.is_at_line_start = text.ends_with('\n');
        }
    }

    /// Appends text, dimmed unless escape sequences are not allowed. Each piece ends its own
    /// escape sequence, so that a notice between two pieces is not dimmed.
    fn push_dimmed(&mut self, text: &str, is_plain: bool) {
        if is_plain || text.is_empty() {
            return self.push(text);
        }
        self.push(&dim(text));
        self.is_at_line_start = text.ends_with('\n');
    }

    fn start_line(&mut self) {
        if !self.is_at_line_start {
            self.push("\n");
        }
    }
}

/// Text with the escape sequences that dim it.
pub(super) fn dim(text: &str) -> String {
    format!("\x1b[2m{text}\x1b[0m")
}

/// The parts of the current answer, and what a terminal shows of them. Text is shown as it arrives,
/// reasoning is dimmed, a tool call is one line, sources follow the answer, and other data is not
/// shown.
#[derive(Debug)]
pub(super) struct AnswerText {
    parts: Vec<Part>,
    /// The kind of the part that was shown last; `None` if nothing was shown.
    shown: Option<PartKind>,
    /// Whether text is written without escape sequences.
    is_plain: bool,
}

impl AnswerText {
    pub(super) fn new(is_plain: bool) -> Self {
        Self {
            parts: Vec::new(),
            shown: None,
            is_plain,
        }
    }

    pub(super) fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Whether anything of the current answer was shown.
    pub(super) fn is_shown(&self) -> bool {
        self.shown.is_some()
    }

    /// Discards the parts, so that the next answer or attempt can begin.
    pub(super) fn clear(&mut self) {
        self.parts.clear();
        self.shown = None;
    }

    /// Returns what `parts` add to the parts so far. `None` if they do not continue them.
    pub(super) fn additions(&self, parts: &[Part]) -> Option<Vec<PartDelta>> {
        if parts.len() < self.parts.len() {
            return None;
        }
        let mut additions = Vec::new();
        for (number, part) in parts.iter().enumerate() {
            let mut delta = PartDelta {
                part: number,
                kind: part.kind,
                meta: part.meta.clone(),
                text: part.text.clone(),
            };
            if let Some(known) = self.parts.get(number) {
                let is_last = number + 1 == self.parts.len();
                let added = part.text.strip_prefix(known.text.as_str())?;
                let is_same = known.kind == part.kind && known.meta == part.meta;
                if !is_same || !(is_last || added.is_empty()) {
                    return None;
                }
                if added.is_empty() {
                    continue;
                }
                added.clone_into(&mut delta.text);
            }
            additions.push(delta);
        }
        Some(additions)
    }

    /// Appends text to the answer, and returns what the terminal shows of it. A terminal that is
    /// `columns` wide is at the start of a line or not.
    pub(super) fn append(
        &mut self,
        delta: PartDelta,
        is_at_line_start: bool,
        columns: usize,
    ) -> TerminalText {
        let mut out = TerminalText::new(is_at_line_start);
        let is_new = delta.part >= self.parts.len();
        if is_new {
            self.complete_last_part(&mut out, columns);
        }
        match delta.kind {
            Some(kind @ (PartKind::Text | PartKind::Refusal)) => {
                let text = sanitize(&delta.text);
                if !text.is_empty() {
                    self.begin_block(kind, &mut out);
                    out.push(&text);
                }
            }
            Some(kind @ PartKind::Reasoning) => {
                let text = sanitize(&delta.text);
                if !text.is_empty() {
                    self.begin_block(kind, &mut out);
                    out.push_dimmed(&text, self.is_plain);
                }
            }
            Some(kind @ PartKind::ToolCall) if is_new => {
                self.begin_block(kind, &mut out);
                out.start_line();
                let name = tool_name(delta.meta.as_ref());
                out.push_dimmed(&format!("calls {name} …"), self.is_plain);
            }
            Some(PartKind::ToolCall | PartKind::Source | PartKind::Data) | None => {}
        }
        delta.apply_to(&mut self.parts);
        out
    }

    /// Returns what the terminal shows when the answer has ended: the arguments of a last tool
    /// call, and the sources.
    pub(super) fn finish(&mut self, is_at_line_start: bool, columns: usize) -> TerminalText {
        let mut out = TerminalText::new(is_at_line_start);
        self.complete_last_part(&mut out, columns);
        if self.shown == Some(PartKind::Reasoning) {
            self.end_reasoning(&mut out);
        }
        let sources: Vec<String> = self.parts.iter().filter_map(source_link).collect();
        if !sources.is_empty() {
            out.start_line();
            out.push_dimmed("sources:\n", self.is_plain);
            for (number, link) in (1..).zip(sources) {
                out.push(&format!("[{number}] {link}\n"));
            }
        }
        out.start_line();
        out
    }

    /// Separates a part from what was shown before it, unless it continues that.
    fn begin_block(&mut self, kind: PartKind, out: &mut TerminalText) {
        let previous = self.shown.replace(kind);
        if previous == Some(kind) {
            return;
        }
        if previous == Some(PartKind::Reasoning) {
            self.end_reasoning(out);
            if kind.is_content() {
                out.push("\n");
            }
        } else if previous.is_some() {
            out.start_line();
        }
        if kind == PartKind::Reasoning {
            out.start_line();
            out.push_dimmed("thinking …\n", self.is_plain);
        }
    }

    /// Ends the lines of reasoning. Without the dimmed text, a line marks their end.
    fn end_reasoning(&self, out: &mut TerminalText) {
        out.start_line();
        if self.is_plain {
            out.push("… done thinking\n");
        }
    }

    /// If the last part is a tool call, shows its arguments, which are complete.
    fn complete_last_part(&self, out: &mut TerminalText, columns: usize) {
        let Some(call) = self.parts.last() else {
            return;
        };
        if call.kind != Some(PartKind::ToolCall) || self.shown != call.kind {
            return;
        }
        let prefix_columns = if out.is_at_line_start {
            // A notice has ended the line of the tool's name.
            out.push("  ");
            2
        } else {
            out.push(" ");
            "calls  … ".chars().count() + column_count(&tool_name(call.meta.as_ref()))
        };
        // A line that fills the last column makes some terminals wrap.
        let available = columns.saturating_sub(prefix_columns + 1);
        let arguments = shorten(&sanitize_line(&call.text), available);
        out.push_dimmed(&format!("{arguments}\n"), self.is_plain);
    }
}

/// The name of the tool that a part calls.
fn tool_name(meta: Option<&PartMeta>) -> String {
    let name = meta.and_then(|meta| meta.name.as_deref());
    shorten(&sanitize_line(name.unwrap_or("a tool")), MAX_NAME_COLUMNS)
}

/// A source as its title and its link. `None` for another part, and for an address of which the
/// terminal should make no link.
fn source_link(part: &Part) -> Option<String> {
    if part.kind != Some(PartKind::Source) {
        return None;
    }
    let meta = part.meta.as_ref()?;
    // The serialized form is ASCII, so it has no characters that look like others.
    let url = Url::parse(meta.url.as_deref()?).ok()?;
    if !matches!(url.scheme(), "http" | "https") {
        return None;
    }
    let title = sanitize_line(meta.title.as_deref().unwrap_or_default());
    Some(match shorten(&title, MAX_NAME_COLUMNS) {
        title if title.is_empty() => url.to_string(),
        title => format!("{title}: {url}"),
    })
}

/// Shortens a line to this number of columns. A shortened line ends with `…`.
fn shorten(line: &str, max_columns: usize) -> String {
    if column_count(line) <= max_columns {
        return line.to_owned();
    }
    let mut columns = 1;
    let kept = line.chars().take_while(|character| {
        columns += character_columns(*character);
        columns <= max_columns
    });
    format!("{}…", kept.collect::<String>())
}

/// Number of columns that a terminal needs at most for a line.
fn column_count(line: &str) -> usize {
    line.chars().map(character_columns).sum()
}

/// Number of columns that a terminal needs at most for a character. Terminals differ in which
/// characters are two columns wide, but Latin, Greek and Cyrillic letters are one column wide.
fn character_columns(character: char) -> usize {
    if character < '\u{1100}' || character == '…' {
        1
    } else {
        2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: usize = 40;

    fn part(kind: PartKind, text: &str) -> Part {
        Part {
            kind: Some(kind),
            meta: None,
            text: text.to_owned(),
        }
    }

    fn named(kind: PartKind, meta: PartMeta, text: &str) -> Part {
        Part {
            meta: Some(meta),
            ..part(kind, text)
        }
    }

    fn tool_call(name: &str, arguments: &str) -> Part {
        let meta = PartMeta {
            name: Some(name.to_owned()),
            ..PartMeta::default()
        };
        named(PartKind::ToolCall, meta, arguments)
    }

    fn source(url: &str, title: &str) -> Part {
        let meta = PartMeta {
            url: Some(url.to_owned()),
            title: Some(title.to_owned()),
            ..PartMeta::default()
        };
        named(PartKind::Source, meta, "")
    }

    /// A terminal that shows an answer.
    struct Terminal {
        answer: AnswerText,
        output: String,
        is_at_line_start: bool,
    }

    impl Terminal {
        fn new(is_plain: bool) -> Self {
            Self {
                answer: AnswerText::new(is_plain),
                output: String::new(),
                is_at_line_start: true,
            }
        }

        fn write(&mut self, out: &TerminalText) {
            self.output.push_str(&out.text);
            self.is_at_line_start = out.is_at_line_start;
        }

        fn show(&mut self, parts: &[Part]) {
            for delta in self.answer.additions(parts).expect("a continuation") {
                let at_start = self.is_at_line_start;
                let out = self.answer.append(delta, at_start, COLUMNS);
                self.write(&out);
            }
        }

        fn finish(mut self) -> String {
            let out = self.answer.finish(self.is_at_line_start, COLUMNS);
            self.write(&out);
            assert!(self.is_at_line_start);
            self.output
        }
    }

    fn shown(parts: &[Part], is_plain: bool) -> String {
        let mut terminal = Terminal::new(is_plain);
        terminal.show(parts);
        terminal.finish()
    }

    #[test]
    fn reasoning_is_dimmed_and_ends_before_the_text() {
        let parts = [
            part(PartKind::Reasoning, "hm"),
            part(PartKind::Text, "Hello"),
        ];
        assert_eq!(
            shown(&parts, false),
            "\x1b[2mthinking …\n\x1b[0m\x1b[2mhm\x1b[0m\n\nHello\n"
        );
        assert_eq!(
            shown(&parts, true),
            "thinking …\nhm\n… done thinking\n\nHello\n"
        );
    }

    #[test]
    fn reasoning_that_was_not_stored_is_not_shown() {
        let parts = [part(PartKind::Reasoning, ""), part(PartKind::Text, "Hello")];
        assert_eq!(shown(&parts, false), "Hello\n");
    }

    #[test]
    fn tool_call_is_one_line_with_shortened_arguments() {
        let mut terminal = Terminal::new(true);
        terminal.show(&[tool_call("get_weather", r#"{"ci"#)]);
        assert_eq!(terminal.output, "calls get_weather …");
        let long = r#"{"city":"Berlin",
            "days":12345678}"#;
        let call = tool_call("get_weather", long);
        terminal.show(&[call, tool_call("now", "{}"), part(PartKind::Text, "Hi")]);
        assert_eq!(
            terminal.finish(),
            "calls get_weather … {\"city\":\"Berlin\", …\ncalls now … {}\nHi\n"
        );
    }

    #[test]
    fn wide_arguments_do_not_exceed_the_line() {
        let output = shown(&[tool_call("f", &"日".repeat(50))], true);
        assert_eq!(output.lines().count(), 1);
        assert!(column_count(output.trim_end()) < COLUMNS, "{output}");
        assert!(output.ends_with("…\n"), "{output}");
    }

    #[test]
    fn arguments_follow_a_notice_on_their_own_line() {
        let mut terminal = Terminal::new(true);
        terminal.show(&[tool_call("f", "{}")]);
        terminal.output.push_str("\nnotice\n");
        terminal.is_at_line_start = true;
        assert_eq!(terminal.finish(), "calls f …\nnotice\n  {}\n");
    }

    #[test]
    fn sources_are_numbered_links_after_the_answer() {
        let parts = [
            part(PartKind::Text, "One, "),
            source("https://example.org/a b", "A \x1b[31m\ntitle"),
            source("javascript:alert(1)", "no link"),
            part(PartKind::Data, "{}"),
            part(PartKind::Text, "two."),
            source("http://example.org/", ""),
        ];
        assert_eq!(
            shown(&parts, true),
            "One, two.\nsources:\n[1] A ␛[31m title: https://example.org/a%20b\n\
             [2] http://example.org/\n"
        );
    }

    #[test]
    fn refusal_is_shown_in_its_own_words() {
        let parts = [
            part(PartKind::Text, "Well."),
            part(PartKind::Refusal, "I can't help with that."),
        ];
        assert_eq!(shown(&parts, false), "Well.\nI can't help with that.\n");
    }

    #[test]
    fn control_characters_are_replaced_in_all_kinds() {
        let parts = [
            part(PartKind::Reasoning, "a\x1b[2Jb\u{9b}"),
            tool_call("n\x1b]0;x\x07\u{202e}", "\"\x1b[1m\r\n\u{9b}\""),
            part(PartKind::Refusal, "\x1b[1m"),
            part(PartKind::Text, "\x1b[1m"),
            source("https://example.org/\x1b[1m", "\u{202e}t\x07"),
        ];
        let output = shown(&parts, true);
        let is_control = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        assert!(!output.contains(is_control), "{output:?}");
    }

    #[test]
    fn unknown_kind_is_not_shown() {
        let unknown = Part {
            kind: None,
            meta: None,
            text: "x".to_owned(),
        };
        assert_eq!(shown(&[unknown, part(PartKind::Text, "y")], true), "y\n");
    }

    #[test]
    fn only_parts_that_continue_the_shown_parts_are_additions() {
        let mut terminal = Terminal::new(true);
        let known = [part(PartKind::Reasoning, "hm"), part(PartKind::Text, "a")];
        terminal.show(&known);
        let answer = &terminal.answer;
        assert_eq!(answer.additions(&known), Some(vec![]));
        let longer = [known[0].clone(), part(PartKind::Text, "ab")];
        let additions = answer.additions(&longer).unwrap();
        assert_eq!((additions.len(), additions[0].text.as_str()), (1, "b"));
        for other in [
            vec![],
            vec![part(PartKind::Text, "hm")],
            vec![known[0].clone(), part(PartKind::Refusal, "a")],
            vec![known[0].clone(), part(PartKind::Text, "b")],
            vec![part(PartKind::Reasoning, "hm, so"), known[1].clone()],
        ] {
            assert_eq!(answer.additions(&other), None, "{other:?}");
        }
    }

    #[test]
    fn text_is_shown_as_it_arrives() {
        let mut terminal = Terminal::new(false);
        for length in 1..=5 {
            terminal.show(&[part(PartKind::Text, &"Hello"[..length])]);
            assert_eq!(terminal.output, "Hello"[..length]);
        }
        assert_eq!(terminal.finish(), "Hello\n");
    }
}
