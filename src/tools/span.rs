//! Values of flags that are fixed or drawn from a range, shares, and the dice for both.

use std::fmt;
use std::str::FromStr;

/// A number, or any from one to another (`20..80`, both included).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    low: u64,
    high: u64,
}

impl Span {
    /// Always this number.
    #[cfg(test)]
    pub(crate) const fn fixed(value: u64) -> Self {
        Self {
            low: value,
            high: value,
        }
    }

    /// The greatest.
    pub(crate) const fn most(self) -> u64 {
        self.high
    }

    /// The one that `random` chooses.
    pub(crate) fn pick(self, random: u64) -> u64 {
        let width = u128::from(self.high - self.low) + 1;
        self.low + ((u128::from(random) * width) >> 64) as u64
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |text: &str| {
            text.trim()
                .parse()
                .map_err(|_| "needs N or N..M".to_owned())
        };
        let (low, high) = match text.split_once("..") {
            Some((low, high)) => (number(low)?, number(high)?),
            None => (number(text)?, number(text)?),
        };
        if low > high {
            return Err(format!("{low} is more than {high}"));
        }
        Ok(Self { low, high })
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.low == self.high {
            write!(f, "{}", self.low)
        } else {
            write!(f, "{}..{}", self.low, self.high)
        }
    }
}

/// A share from 0 to 1, or in percent (`5%`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Share(f64);

impl Share {
    /// Its part of all, from 0 to 1.
    pub(crate) const fn part(self) -> f64 {
        self.0
    }

    /// Whether `random` falls into it.
    pub(crate) fn holds(self, random: u64) -> bool {
        (random >> 11) as f64 / (1_u64 << 53) as f64 <= self.0 && self.0 > 0.0
    }
}

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (number, unit) = match text.strip_suffix('%') {
            Some(percent) => (percent, 100.0),
            None => (text, 1.0),
        };
        let share = number.trim().parse::<f64>().map(|value| value / unit);
        match share {
            Ok(share) if (0.0..=1.0).contains(&share) => Ok(Self(share)),
            _ => Err("needs a share from 0 to 1, or in percent like 5%".to_owned()),
        }
    }
}

/// Well mixed bits of `value` (the finaliser of SplitMix64): the same for ever, so that runs with
/// one seed are alike.
pub(crate) fn mix(value: u64) -> u64 {
    let mut bits = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// FNV-1a: short enough to be done again by a checker in any language.
pub(crate) fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_drawn_from_one_end_to_the_other() {
        let span: Span = "3..6".parse().unwrap();
        assert_eq!((span.pick(0), span.pick(u64::MAX)), (3, 6));
        assert_eq!("7".parse::<Span>().unwrap(), Span::fixed(7));
        assert_eq!(Span::fixed(7).pick(u64::MAX), 7);
        let all: Span = format!("0..{}", u64::MAX).parse().unwrap();
        assert_eq!(all.pick(u64::MAX), u64::MAX);
        for wrong in ["6..3", "", "a", "1..", "-1"] {
            assert!(wrong.parse::<Span>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn shares_are_met() {
        let share: Share = "5%".parse().unwrap();
        let hits = (0..100_000).filter(|n| share.holds(mix(*n))).count();
        assert!((4_700..5_300).contains(&hits), "{hits}");
        let (never, always) = ("0".parse::<Share>(), "1".parse::<Share>());
        assert!(!never.unwrap().holds(0));
        assert!(always.unwrap().holds(u64::MAX));
        for wrong in ["1.1", "-0.1", "120%", "x", "NaN"] {
            assert!(wrong.parse::<Share>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_hash_is_fnv_1a() {
        assert_eq!(fnv(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
