//! The answer to one message as a `chatmesh.v1` client receives it. Applies the rules of a receiver
//! (docs/protocol.md section 1.2), and refuses every frame that a receiver would ignore, or of which
//! it would append only a part: a gateway sends none.

use serde_json::Value;

use crate::support::parts::{Part, are_beginning_of, finished_parts, utf16_length};

/// The current stream of an answer and its parts so far.
#[derive(Debug, Clone, Default)]
pub(super) struct ReceivedAnswer {
    /// The stream whose parts are shown; `None` before the first one.
    stream: Option<String>,
    /// Whether this connection was sent the stream from its beginning or as a snapshot, so that
    /// deltas continue it.
    is_synchronized: bool,
    pub(super) parts: Vec<Part>,
}

/// A piece of text in a `delta`.
struct Piece<'a> {
    stream: &'a str,
    part: usize,
    offset: u64,
    end: u64,
    text: &'a str,
}

impl<'a> Piece<'a> {
    fn parse(frame: &'a Value) -> Result<Self, String> {
        let number = |name: &str| {
            let value = frame[name].as_u64();
            value.ok_or_else(|| format!("{name} is missing"))
        };
        let text = |name: &str| {
            let value = frame[name].as_str();
            value.ok_or_else(|| format!("{name} is missing"))
        };
        let piece = Self {
            stream: text("stream")?,
            part: usize::try_from(number("part")?).map_err(|error| error.to_string())?,
            offset: number("offset")?,
            end: number("end")?,
            text: text("content")?,
        };
        if piece.offset + utf16_length(piece.text) != piece.end {
            return Err("end is not offset and the length of the content".to_owned());
        }
        Ok(piece)
    }
}

impl ReceivedAnswer {
    /// Whether this connection was sent some part, so that the answer is seen to grow.
    pub(super) fn is_growing(&self) -> bool {
        self.is_synchronized && !self.parts.is_empty()
    }

    /// Records that the next frame of the answer must not continue the parts so far: a connection
    /// begins, or the server has requested a reload.
    pub(super) fn desynchronize(&mut self) {
        self.is_synchronized = false;
    }

    fn is_current(&self, stream: &str) -> bool {
        self.is_synchronized && self.stream.as_deref() == Some(stream)
    }

    /// Applies a `delta`. Only after a data loss of Redis (`may_lose_data`) may an opening replace
    /// an earlier stream that no `restarted` has ended.
    pub(super) fn apply_delta(&mut self, frame: &Value, may_lose_data: bool) -> Result<(), String> {
        let piece = Piece::parse(frame)?;
        if frame.get("kind").is_some() {
            return self.apply_opening(frame, &piece, may_lose_data);
        }
        for field in ["meta", "previous_end"] {
            if frame.get(field).is_some() {
                return Err(format!("{field} in a delta that is no opening"));
            }
        }
        if !self.is_current(piece.stream) {
            return Err(format!("the current stream is {:?}", self.stream));
        }
        let part_count = self.parts.len();
        let Some(last) = self.parts.last_mut() else {
            return Err("the part is not open".to_owned());
        };
        if (piece.part + 1, piece.offset) != (part_count, last.length) {
            return Err(format!(
                "expected offset {} of part {}",
                last.length,
                part_count - 1
            ));
        }
        if piece.text.is_empty() {
            return Err("an empty piece".to_owned());
        }
        last.text.push_str(piece.text);
        last.length = piece.end;
        last.check()
    }

    fn apply_opening(
        &mut self,
        frame: &Value,
        piece: &Piece<'_>,
        may_lose_data: bool,
    ) -> Result<(), String> {
        if piece.part == 0 && !self.is_current(piece.stream) {
            if self.stream.is_some() && !may_lose_data {
                return Err(format!("replaces {:?} without a restart", self.stream));
            }
            self.restart(piece.stream);
        }
        if !self.is_current(piece.stream) {
            return Err(format!("the current stream is {:?}", self.stream));
        }
        let last_length = self.parts.last().map(|part| part.length);
        if (piece.part, piece.offset) != (self.parts.len(), 0) {
            return Err(format!("expected the opening of part {}", self.parts.len()));
        }
        if frame["previous_end"].as_u64() != last_length {
            return Err(format!("expected the previous_end {last_length:?}"));
        }
        let kind = frame["kind"].as_str().unwrap_or_default();
        let part = Part::new(kind, frame["meta"].clone(), piece.text);
        part.check()?;
        self.parts.push(part);
        Ok(())
    }

    fn restart(&mut self, stream: &str) {
        self.stream = Some(stream.to_owned());
        self.is_synchronized = true;
        self.parts.clear();
    }

    /// Applies `restarted`.
    pub(super) fn apply_restarted(&mut self, frame: &Value) -> Result<(), String> {
        let stream = frame["stream"].as_str().ok_or("stream is missing")?;
        if self.is_current(stream) {
            return Err("restarted with the current stream".to_owned());
        }
        self.restart(stream);
        Ok(())
    }

    /// Applies a `snapshot`. Only after a data loss of Redis (`may_lose_data`) may it have less of
    /// the stream than the client shows.
    pub(super) fn apply_snapshot(
        &mut self,
        frame: &Value,
        may_lose_data: bool,
    ) -> Result<(), String> {
        let stream = frame["stream"].as_str().ok_or("stream is missing")?;
        let parts = frame["parts"].as_array().ok_or("parts is missing")?;
        let parts: Result<Vec<Part>, String> = parts.iter().map(Part::from_json).collect();
        let parts = parts?;
        if self.stream.as_deref() == Some(stream)
            && !may_lose_data
            && !are_beginning_of(&self.parts, &parts)
        {
            return Err(format!("the parts so far were {:?}", self.parts));
        }
        self.restart(stream);
        self.parts = parts;
        Ok(())
    }

    /// Applies the parts of a terminal frame. If this connection was sent the stream of the frame's
    /// attempt (`is_same_attempt`), the parts so far must be the beginning of the frame's parts;
    /// otherwise returns the parts that the frame replaces. Reasoning that the client shows stays,
    /// although the frame may have only its length.
    pub(super) fn finish(
        &mut self,
        frame: &Value,
        is_same_attempt: bool,
    ) -> Result<Option<Vec<Part>>, String> {
        let content = frame["content"].as_str().unwrap_or_default();
        let mut finished = finished_parts(content, &frame["parts"])?;
        let must_extend = self.is_synchronized && is_same_attempt;
        let is_extended = are_beginning_of(&self.parts, &finished);
        for (part, shown) in finished.iter_mut().zip(&self.parts) {
            if part.has_only_length() && is_extended && part.length == shown.length {
                part.text.clone_from(&shown.text);
            }
        }
        self.is_synchronized = false;
        let shown = std::mem::replace(&mut self.parts, finished);
        Ok((must_extend && !is_extended).then_some(shown))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn opening(stream: &str, part: u64, previous_end: Option<u64>, text: &str) -> Value {
        let mut frame = delta(stream, part, 0, text);
        frame["kind"] = "text".into();
        if let Some(end) = previous_end {
            frame["previous_end"] = end.into();
        }
        frame
    }

    fn delta(stream: &str, part: u64, offset: u64, text: &str) -> Value {
        let end = offset + utf16_length(text);
        json!({"type": "delta", "stream": stream, "part": part, "offset": offset, "end": end,
            "content": text})
    }

    fn snapshot(stream: &str, texts: &[&str]) -> Value {
        let part = |text: &&str| json!({"kind": "text", "content": text});
        let parts: Vec<Value> = texts.iter().map(part).collect();
        json!({"type": "snapshot", "stream": stream, "parts": parts})
    }

    /// Applies the frames to an answer of a client that does not expect a data loss.
    fn apply(frames: &[Value]) -> Result<ReceivedAnswer, String> {
        let mut answer = ReceivedAnswer::default();
        for frame in frames {
            match frame["type"].as_str() {
                Some("delta") => answer.apply_delta(frame, false)?,
                Some("snapshot") => answer.apply_snapshot(frame, false)?,
                Some("restarted") => answer.apply_restarted(frame)?,
                Some("connected") => answer.desynchronize(),
                _ => panic!("{frame}"),
            }
        }
        Ok(answer)
    }

    #[test]
    fn valid_frames_are_applied() {
        let answer = apply(&[
            opening("s.1", 0, None, "𝄞"),
            delta("s.1", 0, 2, "a"),
            opening("s.1", 1, Some(3), ""),
            delta("s.1", 1, 0, "b"),
            json!({"type": "connected"}),
            snapshot("s.1", &["𝄞a", "bc"]),
            delta("s.1", 1, 2, "d"),
        ]);
        let texts: Vec<String> = answer.unwrap().parts.into_iter().map(|p| p.text).collect();
        assert_eq!(texts, ["𝄞a", "bcd"]);
        let restarted = json!({"type": "restarted", "stream": "t.2"});
        let answer = apply(&[
            snapshot("s.1", &["a"]),
            restarted,
            opening("t.2", 0, None, "b"),
        ]);
        assert_eq!(answer.unwrap().parts.len(), 1);
    }

    #[test]
    fn frames_that_a_receiver_would_ignore_are_refused() {
        let first = opening("s.1", 0, None, "ab");
        let with = |mut frame: Value, name: &str, value: Value| {
            frame[name] = value;
            frame
        };
        for frames in [
            // A gap, an overlap, a repeat, an unknown part, another stream, no stream.
            vec![first.clone(), delta("s.1", 0, 3, "c")],
            vec![first.clone(), delta("s.1", 0, 1, "bc")],
            vec![first.clone(), delta("s.1", 0, 0, "ab")],
            vec![first.clone(), delta("s.1", 1, 0, "c")],
            vec![first.clone(), delta("t.2", 0, 2, "c")],
            vec![delta("s.1", 0, 0, "c")],
            // A part that is complete grows.
            vec![
                first.clone(),
                opening("s.1", 1, Some(2), ""),
                delta("s.1", 0, 2, "c"),
            ],
            // Openings out of order, with another previous end, repeated, or without a restart.
            vec![first.clone(), opening("s.1", 2, Some(2), "c")],
            vec![first.clone(), opening("s.1", 1, Some(1), "c")],
            vec![first.clone(), opening("s.1", 1, None, "c")],
            vec![first.clone(), first.clone()],
            vec![first.clone(), opening("t.2", 0, None, "c")],
            vec![opening("s.1", 1, Some(0), "c")],
            // A connection that was not sent the beginning.
            vec![
                first.clone(),
                json!({"type": "connected"}),
                delta("s.1", 0, 2, "c"),
            ],
            // A snapshot that has less than was shown.
            vec![first.clone(), snapshot("s.1", &["a"])],
            vec![first.clone(), snapshot("s.1", &[])],
            // Malformed frames.
            vec![with(first.clone(), "end", 3.into())],
            vec![with(first.clone(), "meta", json!({"name": "f"}))],
            vec![
                first.clone(),
                with(delta("s.1", 0, 2, "c"), "previous_end", 2.into()),
            ],
            vec![first.clone(), delta("s.1", 0, 2, "")],
            vec![first, json!({"type": "restarted", "stream": "s.1"})],
        ] {
            assert!(apply(&frames).is_err(), "{frames:#?}");
        }
    }

    #[test]
    fn terminal_frame_must_extend_the_parts_of_its_attempt() {
        let streamed = || {
            apply(&[
                with_kind(opening("s.1", 0, None, "hm"), "reasoning"),
                opening("s.1", 1, Some(2), "Hel"),
            ])
        };
        let parts = json!([{"kind": "reasoning", "length": 2}, {"kind": "text", "length": 5}]);
        let frame = json!({"content": "Hello", "parts": parts});
        let mut answer = streamed().unwrap();
        assert_eq!(answer.finish(&frame, true), Ok(None));
        assert_eq!(answer.parts[0].text, "hm", "shown reasoning stays");
        for frame in [
            json!({"content": "Hallo", "parts": parts}),
            json!({"content": "Hello"}),
            json!({"content": "Hello",
                "parts": [{"kind": "reasoning", "length": 3}, {"kind": "text", "length": 5}]}),
        ] {
            let mut answer = streamed().unwrap();
            assert!(answer.finish(&frame, true).unwrap().is_some(), "{frame}");
            let mut answer = streamed().unwrap();
            assert_eq!(answer.finish(&frame, false), Ok(None), "{frame}");
        }
    }

    fn with_kind(mut frame: Value, kind: &str) -> Value {
        frame["kind"] = kind.into();
        frame
    }
}
