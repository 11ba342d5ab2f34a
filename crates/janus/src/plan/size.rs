//! Sizes as people write them: `16GiB`, `500MB`, or a whole number of bytes.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, Visitor};

const UNITS: [(&str, u64); 9] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size(pub(super) u64);

impl Size {
    fn parse(text: &str) -> Option<Size> {
        let text = text.trim();
        let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = (&text[..split], text[split..].trim_start());
        if unit.is_empty() {
            return number.parse().ok().map(Size);
        }
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit)?;
        let bytes = number.parse::<f64>().ok()? * *factor as f64;
        (bytes < 1e18).then_some(Size(bytes.round() as u64))
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SizeVisitor)
    }
}

struct SizeVisitor;

impl Visitor<'_> for SizeVisitor {
    type Value = Size;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a size like 16GiB, 500MB, or a whole number of bytes")
    }

    fn visit_u64<E: Error>(self, bytes: u64) -> Result<Size, E> {
        Ok(Size(bytes))
    }

    fn visit_i64<E: Error>(self, bytes: i64) -> Result<Size, E> {
        u64::try_from(bytes).map(Size).map_err(|_| E::custom(format!("{bytes} is no size; it is below 0")))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Size, E> {
        Size::parse(text)
            .ok_or_else(|| E::custom(format!("`{text}` is no size; write 16GiB, 500MB, or a whole number of bytes")))
    }
}

#[cfg(test)]
mod tests {
    use super::Size;

    #[test]
    fn units_mean_what_they_say() {
        let bytes = |text| Size::parse(text).map(|size| size.0);
        assert_eq!(bytes("16GiB"), Some(16 << 30));
        assert_eq!(bytes("1.5 GiB"), Some(3 << 29));
        assert_eq!(bytes("16GB"), Some(16_000_000_000));
        assert_eq!(bytes("12"), Some(12));
        for nonsense in ["", "GiB", "-1GiB", "16 gigs", "1.5", "1..5GiB", "16gib", "99999999TiB", "inf", "nan GiB"] {
            assert_eq!(bytes(nonsense), None, "{nonsense}");
        }
    }
}
