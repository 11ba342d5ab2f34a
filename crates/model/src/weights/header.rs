//! The header of a safetensors file, believed only where it can be true. The format's own reader keeps the last of two
//! tensors with one name without a word, and does not say which one is wrong.

use std::collections::HashSet;
use std::fmt;

use safetensors::tensor::TensorInfo;
use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, Visitor};

/// The tensors of a header in the order of their bytes, which fill the `data_size` bytes after it without gap or overlap.
pub(super) fn parse(header: &[u8], data_size: u64) -> Result<Vec<(String, TensorInfo)>, String> {
    let header: Header = serde_json::from_slice(header).map_err(|e| format!("header is not valid safetensors JSON: {e}"))?;
    let mut filled = 0;
    for (tensor, info) in &header.0 {
        let (begin, end) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
        let elements = info.shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d as u64));
        let bytes = elements.and_then(|n| n.checked_mul(info.dtype.bitsize() as u64)).map(|bits| bits / 8);
        if begin > end || bytes != Some(end - begin) {
            return Err(format!(
                "header lies about `{tensor}`: shape {:?} does not fill bytes {begin} to {end}",
                info.shape
            ));
        }
        if begin != filled {
            return Err(format!("header lies about `{tensor}`: it begins at byte {begin}, but byte {filled} comes next"));
        }
        if end > data_size {
            return Err(format!("is truncated: `{tensor}` ends at byte {end} of {data_size} bytes of data"));
        }
        filled = end;
    }
    Ok(header.0)
}

struct Header(Vec<(String, TensorInfo)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let (mut seen, mut tensors) = (HashSet::new(), Vec::new());
        while let Some(name) = map.next_key::<String>()? {
            if !seen.insert(name.clone()) {
                return Err(A::Error::custom(format!("`{name}` appears twice")));
            }
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let info: TensorInfo = map.next_value().map_err(|e| A::Error::custom(format!("`{name}`: {e}")))?;
            tensors.push((name, info));
        }
        tensors.sort_by_key(|(_, info)| info.data_offsets);
        Ok(Header(tensors))
    }
}
