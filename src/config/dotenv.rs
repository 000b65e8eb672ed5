//! Parses `.env` files as python-dotenv does, except that `${…}` is not expanded.

/// Returns names and values in the order of the file. If a quote is not closed, parsing stops
/// there, and the number of the line is returned, too.
pub(super) fn parse(text: &str) -> (Vec<(String, String)>, Option<usize>) {
    let mut pairs = Vec::new();
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut remaining = text;
    while !remaining.is_empty() {
        let line_end = remaining
            .find('\n')
            .map_or(remaining.len(), |index| index + 1);
        let line = remaining[..line_end].trim();
        let assignment = line.strip_prefix("export ").unwrap_or(line).trim_start();
        let Some((name, value)) = assignment
            .split_once('=')
            .filter(|_| !assignment.starts_with('#'))
        else {
            remaining = &remaining[line_end..];
            continue;
        };
        let name = name.trim().to_owned();
        let value = value.trim_start();
        let Some(quote) = value.chars().next().filter(|c| matches!(c, '"' | '\'')) else {
            pairs.push((name, strip_comment(value).to_owned()));
            remaining = &remaining[line_end..];
            continue;
        };
        // A quoted value, such as a PEM key, may span several lines. It begins at the first quote
        // after the equals sign.
        let equals = remaining.find('=').unwrap_or(0);
        let value_start = remaining[equals..]
            .find(quote)
            .map_or(remaining.len(), |index| equals + index + 1);
        let Some((value, quoted_bytes)) = parse_quoted(&remaining[value_start..], quote) else {
            let line_start = text.len() - remaining.len();
            let line_number = text[..line_start].matches('\n').count() + 1;
            return (pairs, Some(line_number));
        };
        pairs.push((name, value));
        let value_end = value_start + quoted_bytes;
        let next_line = remaining[value_end..]
            .find('\n')
            .map_or(remaining.len(), |index| value_end + index + 1);
        remaining = &remaining[next_line..];
    }
    (pairs, None)
}

/// Returns a value without the comment behind it. A comment begins with a `#` that is the first
/// character or follows white space.
fn strip_comment(value: &str) -> &str {
    let mut previous = ' ';
    for (index, c) in value.char_indices() {
        if c == '#' && previous.is_whitespace() {
            return value[..index].trim_end();
        }
        previous = c;
    }
    value.trim_end()
}

/// Parses a value behind its opening quote. Returns the value, and the number of bytes in `text` up
/// to and including the closing quote. `None` if the quote is not closed.
fn parse_quoted(text: &str, quote: char) -> Option<(String, usize)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((index, c)) = chars.next() {
        if c == quote {
            return Some((value, index + c.len_utf8()));
        }
        if c != '\\' {
            value.push(c);
            continue;
        }
        let (_, next) = chars.next()?;
        match (quote, next) {
            ('"', 'n') => value.push('\n'),
            ('"', 'r') => value.push('\r'),
            ('"', 't') => value.push('\t'),
            (_, '\\') => value.push('\\'),
            (_, next) if next == quote => value.push(next),
            (_, next) => value.extend(['\\', next]),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(text: &str) -> Vec<(String, String)> {
        let (pairs, unfinished) = parse(text);
        assert_eq!(unfinished, None);
        pairs
    }

    fn single_value(text: &str) -> String {
        let pairs = pairs(text);
        assert_eq!(pairs.len(), 1, "{pairs:?}");
        pairs[0].1.clone()
    }

    #[test]
    fn quotes_comments_and_export_are_understood() {
        assert_eq!(single_value("export A=b # c\r\n"), "b");
        assert_eq!(single_value("# A=1\nA='x # y' # z\n"), "x # y");
        assert_eq!(single_value(r#"A="a\nb\"c" "#), "a\nb\"c");
        assert_eq!(single_value("A=b#c"), "b#c");
        assert_eq!(single_value(r#"A='["*"]'"#), r#"["*"]"#);
        assert_eq!(single_value("A="), "");
        assert_eq!(single_value("A = b = c"), "b = c");
        assert_eq!(single_value("no assignment\nA=1"), "1");
    }

    #[test]
    fn quoted_value_may_span_lines() {
        let read = pairs("A=\"one\ntwo\"\nB=3\n");
        assert_eq!(read[0].1, "one\ntwo");
        assert_eq!(read[1], ("B".to_owned(), "3".to_owned()));
    }

    #[test]
    fn unclosed_quote_is_reported_with_its_line() {
        let (read, unfinished) = parse("A=1\nB=\"two\nC=3\n");
        assert_eq!(read.len(), 1);
        assert_eq!(unfinished, Some(2));
    }
}
