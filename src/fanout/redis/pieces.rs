//! The pieces of a stream as a Redis list stores them (`stream.lua`): encodes a piece as an element,
//! and joins the elements of a list to parts.

use super::reply::{Reply, unreadable_reply_error};
use crate::fanout::{OpenPartRequest, Piece, Result};
use crate::protocol::open_message::InFlightPart;

/// The element that opens a part.
pub(super) fn opening_element(call: &OpenPartRequest) -> String {
    let (range, kind) = (call.piece.range, call.kind.as_str());
    let previous_end = call
        .previous_end
        .map_or_else(String::new, |end| end.to_string());
    let meta = call.meta.as_deref().unwrap_or_default();
    format!(
        "+{}:{}:{previous_end}:{kind}:{}:{meta}{}",
        range.part,
        range.end,
        meta.len(),
        call.piece.text
    )
}

/// The element that continues a part.
pub(super) fn piece_element(piece: &Piece) -> String {
    let range = piece.range;
    format!(
        "{}:{}:{}:{}",
        range.part, range.offset, range.end, piece.text
    )
}

/// An element of a stream's list.
enum Element<'a> {
    Opening {
        part: usize,
        previous_end: u32,
        kind: &'a str,
        meta: &'a str,
        end: u32,
        text: &'a str,
    },
    Piece {
        part: usize,
        offset: u32,
        end: u32,
        text: &'a str,
    },
}

impl<'a> Element<'a> {
    /// Decodes an element. Returns `None` if it does not have the form of one.
    fn decode(element: &'a str) -> Option<Self> {
        let Some(opening) = element.strip_prefix('+') else {
            let mut fields = element.splitn(4, ':');
            return Some(Self::Piece {
                part: fields.next()?.parse().ok()?,
                offset: fields.next()?.parse().ok()?,
                end: fields.next()?.parse().ok()?,
                text: fields.next()?,
            });
        };
        let mut fields = opening.splitn(6, ':');
        let part = fields.next()?.parse().ok()?;
        let end = fields.next()?.parse().ok()?;
        let previous_end = match fields.next()? {
            "" => 0,
            previous_end => previous_end.parse().ok()?,
        };
        let kind = fields.next()?;
        let meta_bytes = fields.next()?.parse().ok()?;
        let (meta, text) = fields.next()?.split_at_checked(meta_bytes)?;
        Some(Self::Opening {
            part,
            previous_end,
            kind,
            meta,
            end,
            text,
        })
    }
}

/// Joins the elements of a stream's list to parts. Drops repeated pieces. Stops at a hole, because
/// what follows a missing piece is not readable.
pub(super) fn join_elements(mut elements: Reply) -> Result<Vec<InFlightPart>> {
    let mut parts: Vec<InFlightPart> = Vec::new();
    while !elements.is_empty() {
        let element = elements.text()?;
        let element = Element::decode(&element)
            .ok_or_else(|| unreadable_reply_error("piece of an answer"))?;
        if !append_element(&mut parts, &element) {
            break;
        }
    }
    Ok(parts)
}

/// Appends an element, unless it is a repeat. Returns false if a piece before it is missing.
fn append_element(parts: &mut Vec<InFlightPart>, element: &Element<'_>) -> bool {
    let count = parts.len();
    match *element {
        Element::Opening {
            part,
            previous_end,
            kind,
            meta,
            end,
            text,
        } => {
            if part < count {
                return true;
            }
            let previous_length = parts.last().map_or(0, |part| part.length);
            if part > count || previous_end != previous_length {
                return false;
            }
            parts.push(InFlightPart {
                kind: kind.to_owned(),
                meta: Some(meta.to_owned()).filter(|meta| !meta.is_empty()),
                length: end,
                text: text.to_owned(),
            });
            true
        }
        Element::Piece {
            part,
            offset,
            end,
            text,
        } => match parts.get_mut(part) {
            Some(last) if part + 1 == count && offset == last.length => {
                last.length = end;
                last.text.push_str(text);
                true
            }
            Some(part) => end <= part.length,
            None => false,
        },
    }
}

#[cfg(test)]
mod tests {
    use fred::types::Value;

    use super::*;

    /// The texts of the parts that these elements form.
    fn join(elements: &[&str]) -> Vec<String> {
        let elements = elements.iter().map(|element| Value::from(*element));
        let parts = join_elements(Reply::new(Value::Array(elements.collect()))).unwrap();
        parts.into_iter().map(|part| part.text).collect()
    }

    #[test]
    fn repeats_are_dropped() {
        let (opening, piece) = ("+0:2::text:0:a:", "0:2:3:b");
        assert_eq!(join(&[opening, piece]), ["a:b"]);
        assert_eq!(join(&[opening, opening, piece, piece, opening]), ["a:b"]);
        let second = "+1:1:3:reasoning:7:{\"a\":1}c";
        assert_eq!(join(&[opening, piece, second, piece]), ["a:b", "c"]);
        assert_eq!(join(&[opening, piece, second, second]), ["a:b", "c"]);
    }

    #[test]
    fn text_behind_a_hole_is_not_read() {
        let opening = "+0:1::text:0:a";
        assert_eq!(join(&[opening, "0:2:3:c", "0:1:2:b"]), ["a"]);
        assert_eq!(join(&[opening, "+1:1:2:text:0:c"]), ["a"]);
        assert_eq!(join(&["0:1:2:b", opening]), [""; 0]);
        assert_eq!(join(&[opening, "1:0:1:b"]), ["a"]);
    }

    #[test]
    fn malformed_element_is_an_error() {
        for element in ["", "+", "+0:1::text:9:a", "0:1", "a:1:2:b", "+0:1::text"] {
            let elements = Value::Array(vec![Value::from(element)]);
            assert!(join_elements(Reply::new(elements)).is_err(), "{element:?}");
        }
    }
}
