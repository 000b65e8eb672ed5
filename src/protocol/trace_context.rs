//! W3C Trace Context: `traceparent` and `tracestate`, as they come from clients and travel in
//! record headers. What can't be read is ignored, as the recommendation says: a bad trace context
//! never costs a message.

use std::fmt;
use std::sync::Arc;

/// Bytes of `tracestate` that are passed on; the recommendation asks for at least these.
const STATE_BYTES: usize = 512;

/// Members of a `tracestate`.
const STATE_MEMBERS: usize = 32;

/// `sampled` and `random`; others are to be zero when a context is passed on.
const KNOWN_FLAGS: u8 = 0x03;

const SAMPLED: u8 = 0x01;

/// Where in which trace something happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext {
    trace_id: u128,
    span_id: u64,
    flags: u8,
    state: Option<Arc<str>>,
}

/// A trace's id, shown as 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceId(u128);

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Lower-case hexadecimal digits only; `None` also for zero, which is no id.
fn id(digits: &[u8]) -> Option<u128> {
    let mut value = 0;
    for byte in digits {
        value = value << 4 | u128::from(digit(*byte)?);
    }
    (value != 0).then_some(value)
}

fn digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    }
}

fn byte(digits: &[u8]) -> Option<u8> {
    match digits {
        [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
        _ => None,
    }
}

impl TraceContext {
    /// Of its parts; `None` where an id is zero. An unreadable `state` is left out.
    pub fn new(trace_id: u128, span_id: u64, flags: u8, state: &str) -> Option<Self> {
        (trace_id != 0 && span_id != 0).then(|| Self {
            trace_id,
            span_id,
            flags: flags & KNOWN_FLAGS,
            state: valid_state(state),
        })
    }

    /// Reads the two fields. A `traceparent` that is invalid is none; a `tracestate` that is
    /// invalid is left out. A higher version is read as far as version 00 goes.
    pub fn parse(traceparent: &str, tracestate: Option<&str>) -> Option<Self> {
        let text = traceparent.as_bytes();
        let (head, rest) = text.split_at_checked(55)?;
        let version = byte(&head[..2])?;
        let longer_allowed = version != 0 && rest.first() == Some(&b'-');
        let dashes = [2, 35, 52].iter().all(|at| head[*at] == b'-');
        if version == 0xff || !(rest.is_empty() || longer_allowed) || !dashes {
            return None;
        }
        Some(Self {
            trace_id: id(&head[3..35])?,
            span_id: id(&head[36..52])? as u64,
            flags: byte(&head[53..55])? & KNOWN_FLAGS,
            state: tracestate.and_then(valid_state),
        })
    }

    /// The field as it is passed on.
    pub fn traceparent(&self) -> String {
        let Self {
            trace_id,
            span_id,
            flags,
            ..
        } = self;
        format!("00-{trace_id:032x}-{span_id:016x}-{flags:02x}")
    }

    /// The other field, where there is one.
    pub fn tracestate(&self) -> Option<&str> {
        self.state.as_deref()
    }

    /// The trace.
    pub fn trace_id(&self) -> TraceId {
        TraceId(self.trace_id)
    }

    /// Its number.
    pub fn trace_number(&self) -> u128 {
        self.trace_id
    }

    /// The span's number.
    pub fn span_number(&self) -> u64 {
        self.span_id
    }

    /// The flags that are known.
    pub fn flags(&self) -> u8 {
        self.flags
    }

    /// Whether who began the trace wants it recorded.
    pub fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }
}

/// The list without empty members, cut after whole ones to what is passed on.
fn valid_state(text: &str) -> Option<Arc<str>> {
    let mut kept = String::new();
    let mut keys = Vec::new();
    for member in text.split(',') {
        let member = member.trim_matches([' ', '\t']);
        if member.is_empty() {
            continue;
        }
        let (key, value) = member.split_once('=')?;
        if !is_key(key) || !is_value(value) || keys.contains(&key) || keys.len() == STATE_MEMBERS {
            return None;
        }
        keys.push(key);
        if kept.len() + member.len() < STATE_BYTES {
            if !kept.is_empty() {
                kept.push(',');
            }
            kept.push_str(member);
        }
    }
    (!kept.is_empty()).then(|| kept.into())
}

fn is_key(key: &str) -> bool {
    let begins = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            && part
                .bytes()
                .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'*' | b'/'))
    };
    match key.split_once('@') {
        None => key.len() <= 256 && begins(key),
        Some((tenant, system)) => {
            tenant.len() <= 241 && system.len() <= 14 && begins(tenant) && begins(system)
        }
    }
}

fn is_value(value: &str) -> bool {
    let allowed = |b: u8| matches!(b, b' '..=b'~') && b != b',' && b != b'=';
    (1..=256).contains(&value.len()) && value.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    proptest! {
        #[test]
        fn what_was_written_is_read_and_written_alike(
            trace in 1_u128.., span in 1_u64.., flags in 0_u8..4,
        ) {
            let text = format!("00-{trace:032x}-{span:016x}-{flags:02x}");
            let read = TraceContext::parse(&text, None).unwrap();
            prop_assert_eq!(read.traceparent(), text);
            prop_assert_eq!(read.is_sampled(), flags % 2 == 1);
            prop_assert_eq!(read.trace_id().to_string(), format!("{trace:032x}"));
        }

        #[test]
        fn nothing_breaks_the_parser_and_what_it_takes_is_in_form(text in ".{0,70}") {
            if let Some(read) = TraceContext::parse(&text, Some(&text)) {
                prop_assert!(TraceContext::parse(&read.traceparent(), None).is_some());
            }
        }

        /// One byte of a good one is changed: it is taken only where it still means an id.
        #[test]
        fn one_wrong_byte_is_enough(at in 0_usize..55, with in 0_u8..128) {
            let mut bytes = GOOD.as_bytes().to_vec();
            bytes[at] = with;
            let text = String::from_utf8(bytes).unwrap();
            let dash = matches!(at, 2 | 35 | 52);
            let hex = matches!(with, b'0'..=b'9' | b'a'..=b'f');
            let good = if dash { with == b'-' } else { hex };
            prop_assert_eq!(TraceContext::parse(&text, None).is_some(), good, "{}", text);
        }

        #[test]
        fn a_state_is_passed_on_within_its_bound_or_not_at_all(text in "[a-c0=, @~é\t]{0,900}") {
            let read = TraceContext::parse(GOOD, Some(&text)).unwrap();
            if let Some(state) = read.tracestate() {
                prop_assert!(state.len() <= STATE_BYTES);
                let again = TraceContext::parse(GOOD, Some(state)).unwrap();
                prop_assert_eq!(again.tracestate(), Some(state));
            }
        }
    }

    #[test]
    fn invalid_ones_are_ignored_as_the_recommendation_says() {
        for bad in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-extra",
            "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01.extra",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            " 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert_eq!(TraceContext::parse(bad, None), None, "{bad}");
        }
    }

    #[test]
    fn a_later_version_is_read_as_far_as_it_is_known() {
        for later in [
            "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-fd-what-comes",
        ] {
            let read = TraceContext::parse(later, None).unwrap();
            assert_eq!(read.traceparent(), GOOD);
        }
    }

    #[test]
    fn a_bad_state_does_not_cost_the_parent() {
        let state = |text: &str| {
            let read = TraceContext::parse(GOOD, Some(text)).unwrap();
            read.tracestate().map(str::to_owned)
        };
        assert_eq!(state("a=1, b@sys=x y,,").as_deref(), Some("a=1,b@sys=x y"));
        let long = format!("a={},b={},c=1", "x".repeat(254), "y".repeat(256));
        assert_eq!(state(&long), Some(format!("a={},c=1", "x".repeat(254))));
        let many: Vec<String> = (0..33).map(|n| format!("k{n}=v")).collect();
        for bad in [
            "",
            "a",
            "=1",
            "a=",
            "A=1",
            "a=1,a=2",
            "a=é",
            &many.join(","),
        ] {
            assert_eq!(state(bad), None, "{bad}");
        }
    }
}
