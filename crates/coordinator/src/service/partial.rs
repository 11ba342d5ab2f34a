//! Partial pictures: an unfinished picture is decoded now and then, when a decoder has idle cores, and drawn from the palette
//! when none has.

use image::RgbImage;
use image::imageops::{FilterType, resize};

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

/// The picture of ids `[grid, grid]` as `palette` has them, as RGB `[size, size, 3]`: each id is its colour in the middle of its
/// cell, and between the middles colours go over into one another (bilinear). `None` if an id has no colour.
pub(super) fn draw(palette: &[u8], ids: &[u32], grid: usize, size: usize) -> Option<Vec<u8>> {
    let colours: Vec<&[u8]> = ids.iter().map(|id| palette.get(3 * *id as usize..)?.get(..3)).collect::<Option<_>>()?;
    let (grid, size) = (grid as u32, size as u32);
    let cells = RgbImage::from_raw(grid, grid, colours.concat())?;
    Some(resize(&cells, size, size, FilterType::Triangle).into_raw())
}

impl Shared {
    /// An unfinished picture: decoded, if a decoder has time to spare, else drawn from the palette. Nothing is tried twice.
    pub(super) async fn partial(self: Arc<Self>, index: usize, partial: u32, known: Vec<u32>) -> Option<v1::ImagePartial> {
        let (grid, size) = (self.model.spec.vq.grid, self.model.spec.vq.image_size);
        let ids = fill(&known, grid);
        let request = v1::DecodeRequest { hello: Some(self.hello()), ids: ids.clone(), partial: true };
        let decoded = self.decoders.call_idle(|mut decoder| async move { decoder.decode(request).await }).await;
        let sketch = decoded.is_none();
        let (width, height, rgb) = match decoded {
            Some(v1::DecodeResponse { width, height, rgb }) => (width, height, rgb),
            None => (size as u32, size as u32, draw(&self.palette(true).await, &ids, grid, size)?.into()),
        };
        let (index, known) = (index as u32, known.len() as u32);
        Some(v1::ImagePartial { index, partial, known, width, height, rgb, sketch })
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

    #[test]
    fn a_drawing_has_its_colours_in_the_middle_of_the_cells_and_mixtures_between() {
        let palette = [0, 0, 0, 200, 100, 40, 255, 255, 255];
        // One cell, one colour.
        assert_eq!(draw(&palette, &[1], 1, 2).unwrap(), [200, 100, 40].repeat(4));
        // Two by two cells of three pixels: their middles are pixels 1 and 4.
        let drawn = draw(&palette, &[0, 1, 1, 0], 2, 6).unwrap();
        let pixel = |row: usize, column: usize| &drawn[3 * (6 * row + column)..][..3];
        assert_eq!((pixel(1, 1), pixel(1, 4), pixel(4, 4)), (&[0, 0, 0][..], &[200, 100, 40][..], &[0, 0, 0][..]));
        assert_eq!((pixel(0, 0), pixel(5, 0)), (pixel(1, 1), pixel(4, 1)), "corners are as the nearest middle");
        let [third, two_thirds] = [2, 3].map(|column| i32::from(pixel(1, column)[0]));
        assert!((third - 67).abs() <= 1 && (two_thirds - 133).abs() <= 1, "{third}, {two_thirds}");
        assert_eq!(draw(&palette, &[3], 1, 2), None, "no such colour");
        assert_eq!(draw(&palette, &[0, 1], 2, 6), None, "not a whole picture");
        assert_eq!(draw(&[], &[0], 1, 2), None, "no palette");
    }
}
