//! Values of options that are ranges or probabilities (`20..80`, `5%`), and the deterministic
//! random bits that choose a number or an event.

use std::str::FromStr;

/// A number, or a range from which each use draws a number (`20..80`, both ends included).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NumberRange {
    low: u64,
    high: u64,
}

impl NumberRange {
    #[cfg(test)]
    const fn fixed(value: u64) -> Self {
        Self {
            low: value,
            high: value,
        }
    }

    pub(super) const fn max(self) -> u64 {
        self.high
    }

    /// Maps 64 random bits to a number of the range, uniformly.
    pub(super) fn pick(self, random_bits: u64) -> u64 {
        let width = u128::from(self.high - self.low) + 1;
        self.low + ((u128::from(random_bits) * width) >> 64) as u64
    }
}

impl FromStr for NumberRange {
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

/// A probability, written as a number from 0 to 1 or in percent (`5%`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Fraction(f64);

impl Fraction {
    /// The probability, from 0 to 1.
    pub(super) const fn value(self) -> f64 {
        self.0
    }

    /// Whether 64 random bits select an event that has this probability.
    pub(super) fn selects(self, random_bits: u64) -> bool {
        (random_bits >> 11) as f64 / (1_u64 << 53) as f64 <= self.0 && self.0 > 0.0
    }
}

impl FromStr for Fraction {
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

/// Mixes a number into 64 random bits, with one step of the SplitMix64 generator. It is implemented
/// here so that the same seed gives the same results in every version.
pub(super) fn splitmix64(value: u64) -> u64 {
    let mut bits = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// Returns the 64-bit FNV-1a hash of the bytes. It is simple, so a test script in any language can
/// recompute it.
pub(super) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn range_is_drawn_from_both_ends_included() {
        let range: NumberRange = "3..6".parse().unwrap();
        assert_eq!((range.pick(0), range.pick(u64::MAX)), (3, 6));
        assert_eq!("7".parse::<NumberRange>().unwrap(), NumberRange::fixed(7));
        assert_eq!(NumberRange::fixed(7).pick(u64::MAX), 7);
        let all: NumberRange = format!("0..{}", u64::MAX).parse().unwrap();
        assert_eq!(all.pick(u64::MAX), u64::MAX);
        for invalid in ["6..3", "", "a", "1..", "-1"] {
            assert!(invalid.parse::<NumberRange>().is_err(), "{invalid}");
        }
    }

    #[test]
    fn fraction_selects_its_part_of_random_values() {
        let fraction: Fraction = "5%".parse().unwrap();
        let hits = (0..100_000)
            .filter(|n| fraction.selects(splitmix64(*n)))
            .count();
        assert!((4_700..5_300).contains(&hits), "{hits}");
        let (never, always) = ("0".parse::<Fraction>(), "1".parse::<Fraction>());
        assert!(!never.unwrap().selects(0));
        assert!(always.unwrap().selects(u64::MAX));
        for invalid in ["1.1", "-0.1", "120%", "x", "NaN"] {
            assert!(invalid.parse::<Fraction>().is_err(), "{invalid}");
        }
    }

    #[test]
    fn hash_is_fnv_1a() {
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
