//! W3C Trace Context: parses and encodes `traceparent` and `tracestate`, which clients send and
//! record headers carry. An invalid value is ignored, as the recommendation demands, and never
//! invalidates a message.

use std::fmt;
use std::sync::Arc;

/// Maximum size in bytes of a propagated `tracestate`. The recommendation asks for no smaller
/// limit.
const MAX_STATE_BYTES: usize = 512;

/// Maximum number of members in a valid `tracestate`.
const MAX_STATE_MEMBERS: usize = 32;

/// Bit mask of the flags `sampled` and `random`. All other flags must be 0 when a context is
/// propagated.
const PROPAGATED_FLAGS: u8 = 0x03;

/// Bit mask of the flag `sampled`, with which the caller asks for the trace to be recorded.
const SAMPLED_FLAG: u8 = 0x01;

/// The trace and the parent span of an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext {
    trace_id: u128,
    span_id: u64,
    flags: u8,
    state: Option<Arc<str>>,
}

/// A trace id, displayed as 32 hexadecimal digits. It is never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceId(u128);

impl TraceId {
    /// The id as a number.
    pub fn as_u128(self) -> u128 {
        self.0
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Parses an id of lower-case hexadecimal digits. `None` if another character occurs, or if the
/// number is 0, which is not a valid id.
fn parse_id(digits: &[u8]) -> Option<u128> {
    let mut value = 0;
    for byte in digits {
        value = value << 4 | u128::from(hex_digit(*byte)?);
    }
    (value != 0).then_some(value)
}

fn hex_digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    }
}

fn parse_byte(digits: &[u8]) -> Option<u8> {
    match digits {
        [high, low] => Some(hex_digit(*high)? << 4 | hex_digit(*low)?),
        _ => None,
    }
}

impl TraceContext {
    /// Creates a context from its parts. `None` if an id is 0. An invalid `state` is ignored.
    pub fn new(trace_id: u128, span_id: u64, flags: u8, state: &str) -> Option<Self> {
        (trace_id != 0 && span_id != 0).then(|| Self {
            trace_id,
            span_id,
            flags: flags & PROPAGATED_FLAGS,
            state: valid_state(state),
        })
    }

    /// Parses the two fields of a context. `None` if `traceparent` is invalid; an invalid
    /// `tracestate` is ignored. A `traceparent` of a higher version is read as version 00, without
    /// its additional fields.
    pub fn parse(traceparent: &str, tracestate: Option<&str>) -> Option<Self> {
        let text = traceparent.as_bytes();
        let (head, suffix) = text.split_at_checked(55)?;
        let version = parse_byte(&head[..2])?;
        let has_later_fields = version != 0 && suffix.first() == Some(&b'-');
        let has_dashes = [2, 35, 52].iter().all(|index| head[*index] == b'-');
        if version == 0xff || !(suffix.is_empty() || has_later_fields) || !has_dashes {
            return None;
        }
        Some(Self {
            trace_id: parse_id(&head[3..35])?,
            span_id: parse_id(&head[36..52])? as u64,
            flags: parse_byte(&head[53..55])? & PROPAGATED_FLAGS,
            state: tracestate.and_then(valid_state),
        })
    }

    /// The `traceparent` to propagate, in version 00.
    pub fn traceparent(&self) -> String {
        let Self {
            trace_id,
            span_id,
            flags,
            ..
        } = self;
        format!("00-{trace_id:032x}-{span_id:016x}-{flags:02x}")
    }

    /// The `tracestate` to propagate, if there is one.
    pub fn tracestate(&self) -> Option<&str> {
        self.state.as_deref()
    }

    /// The trace's id.
    pub fn trace_id(&self) -> TraceId {
        TraceId(self.trace_id)
    }

    /// The parent span's id. It is never 0.
    pub fn span_id(&self) -> u64 {
        self.span_id
    }

    /// The flags, of which only `sampled` and `random` can be set.
    pub fn flags(&self) -> u8 {
        self.flags
    }

    /// Whether the caller asks for the trace to be recorded.
    pub fn is_sampled(&self) -> bool {
        self.flags & SAMPLED_FLAG != 0
    }
}

/// Validates a `tracestate`. Returns it without empty members, and without each member that would
/// make it longer than `MAX_STATE_BYTES`. `None` if it is invalid or nothing is left.
fn valid_state(text: &str) -> Option<Arc<str>> {
    let mut state = String::new();
    let mut keys = Vec::new();
    for member in text.split(',') {
        let member = member.trim_matches([' ', '\t']);
        if member.is_empty() {
            continue;
        }
        let (key, value) = member.split_once('=')?;
        if !is_key(key)
            || !is_value(value)
            || keys.contains(&key)
            || keys.len() == MAX_STATE_MEMBERS
        {
            return None;
        }
        keys.push(key);
        if state.len() + member.len() < MAX_STATE_BYTES {
            if !state.is_empty() {
                state.push(',');
            }
            state.push_str(member);
        }
    }
    (!state.is_empty()).then(|| state.into())
}

fn is_key(key: &str) -> bool {
    let is_valid_part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            && part
                .bytes()
                .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'*' | b'/'))
    };
    match key.split_once('@') {
        None => key.len() <= 256 && is_valid_part(key),
        Some((tenant, system)) => {
            tenant.len() <= 241
                && system.len() <= 14
                && is_valid_part(tenant)
                && is_valid_part(system)
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

    const VALID_TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    proptest! {
        #[test]
        fn context_survives_encoding_and_parsing(
            trace in 1_u128.., span in 1_u64.., flags in 0_u8..4,
        ) {
            let text = format!("00-{trace:032x}-{span:016x}-{flags:02x}");
            let read = TraceContext::parse(&text, None).unwrap();
            prop_assert_eq!(read.traceparent(), text);
            prop_assert_eq!(read.is_sampled(), flags % 2 == 1);
            prop_assert_eq!(read.trace_id().to_string(), format!("{trace:032x}"));
        }

        #[test]
        fn parser_accepts_only_contexts_that_it_can_encode(text in ".{0,70}") {
            if let Some(read) = TraceContext::parse(&text, Some(&text)) {
                prop_assert!(TraceContext::parse(&read.traceparent(), None).is_some());
            }
        }

        #[test]
        fn context_with_one_invalid_byte_is_ignored(index in 0_usize..55, replacement in 0_u8..128) {
            let mut bytes = VALID_TRACEPARENT.as_bytes().to_vec();
            bytes[index] = replacement;
            let text = String::from_utf8(bytes).unwrap();
            let is_dash = matches!(index, 2 | 35 | 52);
            let is_hex_digit = matches!(replacement, b'0'..=b'9' | b'a'..=b'f');
            let is_valid = if is_dash { replacement == b'-' } else { is_hex_digit };
            prop_assert_eq!(TraceContext::parse(&text, None).is_some(), is_valid, "{}", text);
        }

        #[test]
        fn state_is_propagated_within_its_limit_or_ignored(text in "[a-c0=, @~é\t]{0,900}") {
            let read = TraceContext::parse(VALID_TRACEPARENT, Some(&text)).unwrap();
            if let Some(state) = read.tracestate() {
                prop_assert!(state.len() <= MAX_STATE_BYTES);
                let again = TraceContext::parse(VALID_TRACEPARENT, Some(state)).unwrap();
                prop_assert_eq!(again.tracestate(), Some(state));
            }
        }
    }

    #[test]
    fn invalid_traceparent_is_ignored() {
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
    fn later_version_is_read_as_version_00() {
        for later in [
            "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-fd-what-comes",
        ] {
            let read = TraceContext::parse(later, None).unwrap();
            assert_eq!(read.traceparent(), VALID_TRACEPARENT);
        }
    }

    #[test]
    fn invalid_state_does_not_invalidate_the_parent() {
        let state = |text: &str| {
            let read = TraceContext::parse(VALID_TRACEPARENT, Some(text)).unwrap();
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
