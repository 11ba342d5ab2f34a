//! Partial pictures: an unfinished picture is decoded now and then, when a decoder has nothing else to do.

use super::*;

/// Most of one picture.
pub(super) const MAX_PARTIALS: u32 = 3;

/// When one picture's partials are due: at even distances between the ids it began with and all of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Due {
    kept: usize,
    total: usize,
    asked: u32,
    /// The next one.
    next: u32,
}

impl Due {
    pub(super) fn new(kept: usize, total: usize, asked: u32) -> Self {
        Due { kept, total, asked, next: 0 }
    }

    fn at(&self, partial: u32) -> usize {
        let left = self.total - self.kept;
        self.kept + (left * (partial as usize + 1) / (self.asked as usize + 1)).max(1)
    }

    /// The partial that `known` ids are enough for, once; those before it that were missed are left out.
    pub(super) fn reached(&mut self, known: usize) -> Option<u32> {
        let mut due = None;
        while self.next < self.asked && self.at(self.next) <= known && known < self.total {
            due = Some(self.next);
            self.next += 1;
        }
        due
    }
}

/// Ids of a whole picture: those that are not known are as the ones above them, in the first row as the one before.
pub(super) fn fill(known: &[u32], grid: usize) -> Vec<u32> {
    let mut ids = known.to_vec();
    for at in ids.len()..grid * grid {
        let guess = if at >= grid { ids.get(at - grid) } else { ids.last() };
        ids.push(guess.copied().unwrap_or_default());
    }
    ids
}

impl Shared {
    /// Decodes an unfinished picture, if a decoder is idle. It gives way to finished ones; nothing is tried twice.
    pub(super) async fn partial(self: Arc<Self>, index: usize, partial: u32, known: Vec<u32>) -> Option<v1::ImagePartial> {
        let ids = fill(&known, self.model.spec.vq.grid);
        let request = v1::DecodeRequest { hello: Some(self.hello()), ids, partial: true };
        let picture = self.decoders.call_idle(|mut decoder| async move { decoder.decode(request).await }).await?;
        let v1::DecodeResponse { width, height, rgb } = picture;
        Some(v1::ImagePartial { index: index as u32, partial, known: known.len() as u32, width, height, rgb })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(mut due: Due, known: impl Iterator<Item = usize>) -> Vec<(usize, u32)> {
        known.filter_map(|known| due.reached(known).map(|partial| (known, partial))).collect()
    }

    #[test]
    fn partials_are_due_at_even_distances_and_once() {
        assert_eq!(all(Due::new(0, 64, 3), 1..=64), [(16, 0), (32, 1), (48, 2)]);
        assert_eq!(all(Due::new(32, 64, 1), 33..=64), [(48, 0)]);
        assert_eq!(all(Due::new(0, 64, 0), 1..=64), []);
        // Two steps at once, and a reader that slept through all of it.
        assert_eq!(all(Due::new(0, 64, 3), [20, 50, 64].into_iter()), [(20, 0), (50, 2)]);
        assert_eq!(all(Due::new(0, 64, 3), [64].into_iter()), []);
        assert_eq!(all(Due::new(63, 64, 3), 63..=64), []);
    }

    #[test]
    fn what_is_unknown_is_guessed_from_above() {
        assert_eq!(fill(&[1, 2, 3, 4, 5], 3), [1, 2, 3, 4, 5, 3, 4, 5, 3]);
        assert_eq!(fill(&[7], 2), [7, 7, 7, 7]);
        assert_eq!(fill(&[1, 2, 3, 4], 2), [1, 2, 3, 4]);
    }
}
