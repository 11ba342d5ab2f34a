//! Seeds: any 64 bits, written as a number with or without a sign.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, Visitor};

/// A seed that a caller chose. OpenAI's are signed, the coordinator's are not; both are the same 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seed(pub(crate) u64);

impl<'de> Deserialize<'de> for Seed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Number;

        impl Visitor<'_> for Number {
            type Value = Seed;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number of 64 bits")
            }

            fn visit_u64<E: Error>(self, seed: u64) -> Result<Seed, E> {
                Ok(Seed(seed))
            }

            fn visit_i64<E: Error>(self, seed: i64) -> Result<Seed, E> {
                Ok(Seed(seed as u64))
            }
        }

        deserializer.deserialize_any(Number)
    }
}

/// A seed for a caller who did not choose one. It has 32 bits, so that every language can hold it in a number.
pub(crate) fn random() -> u64 {
    let mut bits = [0; 4];
    // Without the system's randomness it is the same every time, which a seed may be.
    let _ = getrandom::fill(&mut bits);
    u64::from(u32::from_le_bytes(bits))
}

#[cfg(test)]
mod tests {
    use super::Seed;

    #[test]
    fn seeds_are_64_bits_with_or_without_a_sign() {
        let read = |text: &str| serde_json::from_str::<Seed>(text).map(|seed| seed.0).ok();
        assert_eq!(read("18446744073709551615"), Some(u64::MAX));
        assert_eq!(read("-1"), Some(u64::MAX));
        assert_eq!((read("1.5"), read("18446744073709551616"), read("\"1\"")), (None, None, None));
    }
}
