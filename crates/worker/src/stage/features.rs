//! Encoder features at the first stage: by handle, bounded in bytes, the least recently used leave first.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Features `[rows, hidden]` by handle.
#[derive(Debug)]
pub struct Features {
    inner: Mutex<Inner>,
    budget: usize,
}

#[derive(Debug, Default)]
struct Inner {
    entries: HashMap<Vec<u8>, (Arc<Vec<f32>>, u64)>,
    bytes: usize,
    clock: u64,
}

impl Features {
    /// A cache of at most `budget` bytes (one entry is always kept).
    pub fn new(budget: usize) -> Self {
        Features { inner: Mutex::default(), budget }
    }

    /// Stores features under a handle.
    pub fn put(&self, handle: &[u8], rows: Vec<f32>) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.clock += 1;
        let clock = inner.clock;
        inner.bytes += 4 * rows.len();
        if let Some((old, _)) = inner.entries.insert(handle.to_vec(), (Arc::new(rows), clock)) {
            inner.bytes -= 4 * old.len();
        }
        while inner.bytes > self.budget && inner.entries.len() > 1 {
            let oldest = inner.entries.iter().min_by_key(|(_, (_, used))| *used).map(|(handle, _)| handle.clone());
            let Some((rows, _)) = oldest.and_then(|handle| inner.entries.remove(&handle)) else { break };
            inner.bytes -= 4 * rows.len();
        }
    }

    /// The features under a handle.
    pub fn get(&self, handle: &[u8]) -> Option<Arc<Vec<f32>>> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.clock += 1;
        let clock = inner.clock;
        let (rows, used) = inner.entries.get_mut(handle)?;
        *used = clock;
        Some(rows.clone())
    }

    /// How many pictures are held.
    pub fn len(&self) -> usize {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).entries.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_leave_first() {
        let features = Features::new(2 * 40);
        features.put(b"a", vec![1.0; 10]);
        features.put(b"b", vec![2.0; 10]);
        assert!(features.get(b"a").is_some());
        features.put(b"c", vec![3.0; 10]);
        assert!(features.get(b"b").is_none());
        assert_eq!(features.get(b"a").unwrap()[0], 1.0);
        features.put(b"a", vec![4.0; 10]);
        assert_eq!((features.len(), features.get(b"a").unwrap()[0]), (2, 4.0));
    }
}
