//! Numbers the tool calls of an answer. An index alone does not identify a call, because some servers
//! send several calls with the same index.

use super::{PartDelta, PartKey};
use crate::protocol::parts::{MAX_PARTS, PartMeta};

/// The last tool call that arrived with an index.
#[derive(Debug)]
struct LastCall {
    index: u32,
    /// Number of the call in the answer.
    number: u32,
    /// The call's id and name, as far as they have arrived.
    meta: PartMeta,
}

/// Numbers the tool calls of one answer in the order in which they begin. A piece belongs to the
/// last call with its index, unless it begins a new call: it has a name, and another id than that
/// call (or, where the ids are missing, another name). A piece with an id and without a name begins
/// no call, because some servers send another id with each piece.
#[derive(Debug, Default)]
pub(super) struct ToolCallNumbers {
    /// At most one element for each index, and at most [`MAX_PARTS`] in all.
    last_calls: Vec<LastCall>,
    next_number: u32,
}

impl ToolCallNumbers {
    /// Replaces the index in the key of a tool call's piece by the number of the call. Leaves other
    /// pieces unchanged.
    pub(super) fn assign(&mut self, mut delta: PartDelta) -> PartDelta {
        let PartKey::ToolCall(index) = delta.key else {
            return delta;
        };
        let meta = delta.meta.clone().unwrap_or_default();
        let position = self.last_calls.iter().position(|call| call.index == index);
        let number = match position.map(|position| &mut self.last_calls[position]) {
            Some(call) if !begins_new_call(&call.meta, &meta) => {
                call.meta.id = call.meta.id.take().or(meta.id);
                call.meta.name = call.meta.name.take().or(meta.name);
                call.number
            }
            Some(call) => {
                call.number = self.next_number;
                call.meta = meta;
                self.next_number += 1;
                call.number
            }
            None => {
                let number = self.next_number;
                self.next_number += 1;
                // An answer with more calls has reached MAX_PARTS, so later pieces are not used.
                if self.last_calls.len() < MAX_PARTS {
                    let call = LastCall {
                        index,
                        number,
                        meta,
                    };
                    self.last_calls.push(call);
                }
                number
            }
        };
        delta.key = PartKey::ToolCall(number);
        delta
    }
}

/// Whether a piece with the properties `piece` begins another call than the one with the properties
/// `call`, which has the same index.
fn begins_new_call(call: &PartMeta, piece: &PartMeta) -> bool {
    let Some(name) = &piece.name else {
        return false;
    };
    match (&call.id, &piece.id) {
        (Some(call_id), Some(piece_id)) => call_id != piece_id,
        _ => call.name.as_ref().is_some_and(|known| known != name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers of the calls to which pieces with these indexes, ids and names are assigned. An
    /// empty text stands for a missing property.
    fn numbers(pieces: &[(u32, &str, &str)]) -> Vec<u32> {
        let mut calls = ToolCallNumbers::default();
        let number_of = |&(index, id, name): &(u32, &str, &str)| {
            let given = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
            let meta = PartMeta {
                id: given(id),
                name: given(name),
                ..PartMeta::default()
            };
            let delta = PartDelta {
                meta: (meta != PartMeta::default()).then_some(meta),
                ..PartDelta::new(PartKey::ToolCall(index), "{}")
            };
            match calls.assign(delta).key {
                PartKey::ToolCall(number) => number,
                key => panic!("{key:?}"),
            }
        };
        pieces.iter().map(number_of).collect()
    }

    #[test]
    fn pieces_are_assigned_by_their_index() {
        let pieces = [
            (0, "a", "f"),
            (2, "b", "g"),
            (0, "", ""),
            (2, "", ""),
            (0, "", ""),
        ];
        assert_eq!(numbers(&pieces), [0, 1, 0, 1, 0]);
    }

    #[test]
    fn another_id_with_a_name_begins_a_new_call_of_the_same_index() {
        let pieces = [
            (0, "a", "f"),
            (0, "", ""),
            (0, "b", "f"),
            (0, "", ""),
            (0, "b", "f"),
        ];
        assert_eq!(numbers(&pieces), [0, 0, 1, 1, 1]);
    }

    #[test]
    fn another_id_without_a_name_continues_the_call() {
        let pieces = [(0, "a", "f"), (0, "x", ""), (0, "y", "")];
        assert_eq!(numbers(&pieces), [0, 0, 0]);
    }

    #[test]
    fn without_ids_another_name_begins_a_new_call() {
        let pieces = [(0, "", "f"), (0, "", "f"), (0, "", "g"), (0, "", "")];
        assert_eq!(numbers(&pieces), [0, 0, 1, 1]);
        // The id and the name of one call may come in different pieces.
        assert_eq!(numbers(&[(0, "a", ""), (0, "", "f")]), [0, 0]);
    }
}
