//! From pixels to objects: what a person would say is in the picture.
//!
//! Foreground is cut into connected pieces; each piece is named by the colour most of its inner pixels have and by the
//! sprite it overlaps best. A piece that fits no colour or no sprite well stays without that name, and a picture with
//! such a piece is never right: a person would not recognise it either. The rules and numbers are those of the scorer in
//! `shapes/DATA.md`.

use std::sync::LazyLock;

use janus_model::image::{Rgb8, resize_bicubic};

use super::scene::{BACKGROUND, CANVAS, Colour, SIZES, Shape};

/// Largest difference of a channel from the background that still is background.
const FOREGROUND: i32 = 48;
/// Smaller pieces are specks and overlooked.
const LEAST_PIXELS: usize = 12;
/// The share of a piece's core that must agree on a colour...
const LEAST_VOTES: f64 = 0.7;
/// ...and how far those pixels may lie from it, root mean square over RGB.
const FARTHEST: f64 = 60.0;
/// Least overlap (intersection over union of coverages) with a sprite.
const LEAST_OVERLAP: f64 = 0.75;

/// An object found in a picture.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Seen {
    /// `None`: it has no clear shape.
    pub(crate) shape: Option<Shape>,
    /// `None`: it has no clear colour.
    pub(crate) colour: Option<Colour>,
    /// Centre of its bounding box, x and y in pixels.
    pub(crate) centre: (f64, f64),
    /// Overlap with the sprite it resembles most, 0 to 1.
    pub(crate) overlap: f64,
}

/// All objects in a picture, top to bottom by their first row. A picture of another size is brought to
/// [`CANVAS`] x [`CANVAS`] first.
pub(crate) fn find_objects(picture: &Rgb8) -> Vec<Seen> {
    let resized = resize_bicubic(picture, CANVAS, CANVAS);
    let pixels: Vec<[i32; 3]> = resized.data.chunks_exact(3).map(|p| [p[0].into(), p[1].into(), p[2].into()]).collect();
    pieces(&pixels).iter().filter(|piece| piece.len() >= LEAST_PIXELS).map(|piece| describe(&pixels, piece)).collect()
}

/// Connected foreground pixels (four neighbours), as indices into the picture.
fn pieces(pixels: &[[i32; 3]]) -> Vec<Vec<usize>> {
    let background = BACKGROUND.map(i32::from);
    let differs = |p: &[i32; 3]| p.iter().zip(background).any(|(a, b)| (a - b).abs() > FOREGROUND);
    let mut waiting: Vec<bool> = pixels.iter().map(differs).collect();
    let mut found = Vec::new();
    for start in 0..waiting.len() {
        if !std::mem::take(&mut waiting[start]) {
            continue;
        }
        let mut piece = vec![start];
        let mut next = 0;
        while let Some(&at) = piece.get(next) {
            next += 1;
            for neighbour in neighbours(at) {
                if std::mem::take(&mut waiting[neighbour]) {
                    piece.push(neighbour);
                }
            }
        }
        found.push(piece);
    }
    found
}

/// The pixels above, below, left and right of one, as far as the canvas goes.
fn neighbours(at: usize) -> impl Iterator<Item = usize> {
    let (x, y) = (at % CANVAS, at / CANVAS);
    let left = (x > 0).then(|| at - 1);
    let right = (x + 1 < CANVAS).then(|| at + 1);
    let above = (y > 0).then(|| at - CANVAS);
    let below = (y + 1 < CANVAS).then(|| at + CANVAS);
    [above, below, left, right].into_iter().flatten()
}

fn describe(pixels: &[[i32; 3]], piece: &[usize]) -> Seen {
    let mut member = vec![false; pixels.len()];
    piece.iter().for_each(|&at| member[at] = true);
    let (colour, clear) = vote(pixels, piece, &member);
    let bounds = Bounds::of(piece);
    let (shape, overlap) = resemble(&coverage(pixels, piece, &member, colour), &bounds);
    Seen {
        shape: shape.filter(|_| overlap >= LEAST_OVERLAP),
        colour: clear.then_some(colour),
        centre: bounds.centre(),
        overlap,
    }
}

/// The colour nearest to most pixels of the core, and whether it is clear.
fn vote(pixels: &[[i32; 3]], piece: &[usize], member: &[bool]) -> (Colour, bool) {
    // The rim is blended with the background; a piece too thin to have a core votes with all of it.
    let inner = |at: &&usize| neighbours(**at).filter(|&n| member[n]).count() == 4;
    let mut core: Vec<usize> = piece.iter().filter(inner).copied().collect();
    if core.is_empty() {
        core = piece.to_vec();
    }
    let mut votes = [0usize; Colour::ALL.len()];
    let mut squares = [0i64; Colour::ALL.len()];
    for &at in &core {
        let distances = Colour::ALL.map(|colour| square_distance(pixels[at], colour));
        let nearest = (1..distances.len()).fold(0, |best, i| if distances[i] < distances[best] { i } else { best });
        votes[nearest] += 1;
        squares[nearest] += distances[nearest];
    }
    let best = (1..votes.len()).fold(0, |best, i| if votes[i] > votes[best] { i } else { best });
    let spread = (squares[best] as f64 / votes[best].max(1) as f64).sqrt();
    (Colour::ALL[best], votes[best] as f64 >= LEAST_VOTES * core.len() as f64 && spread <= FARTHEST)
}

fn square_distance(pixel: [i32; 3], colour: Colour) -> i64 {
    pixel.iter().zip(colour.rgb()).map(|(&a, b)| i64::from(a - i32::from(b)).pow(2)).sum()
}

/// How much of each pixel the colour covers, 0 to 1, on the piece and the pixels next to it.
fn coverage(pixels: &[[i32; 3]], piece: &[usize], member: &[bool], colour: Colour) -> Vec<f64> {
    let background = BACKGROUND.map(i32::from);
    let towards: Vec<i32> = colour.rgb().iter().zip(background).map(|(&c, b)| i32::from(c) - b).collect();
    let length: i32 = towards.iter().map(|t| t * t).sum();
    let share = |at: usize| {
        let along: i32 = (0..3).map(|i| (pixels[at][i] - background[i]) * towards[i]).sum();
        (f64::from(along) / f64::from(length)).clamp(0.0, 1.0)
    };
    let mut covered = vec![0.0; pixels.len()];
    for &at in piece {
        covered[at] = share(at);
        neighbours(at).filter(|&n| !member[n]).for_each(|n| covered[n] = share(n));
    }
    covered
}

/// The rectangle around a piece; `right` and `bottom` are one past the last pixel.
struct Bounds {
    left: usize,
    top: usize,
    right: usize,
    bottom: usize,
}

impl Bounds {
    fn of(piece: &[usize]) -> Self {
        let start = Bounds { left: CANVAS, top: CANVAS, right: 0, bottom: 0 };
        piece.iter().fold(start, |b, at| {
            let (x, y) = (at % CANVAS, at / CANVAS);
            Bounds { left: b.left.min(x), top: b.top.min(y), right: b.right.max(x + 1), bottom: b.bottom.max(y + 1) }
        })
    }

    fn centre(&self) -> (f64, f64) {
        ((self.left + self.right) as f64 / 2.0, (self.top + self.bottom) as f64 / 2.0)
    }

    fn longer_side(&self) -> usize {
        (self.right - self.left).max(self.bottom - self.top)
    }
}

/// A sprite to hold against a piece.
struct Template {
    shape: Shape,
    size: usize,
    /// Coverage of each pixel of the box, 0 to 1.
    covered: Vec<f64>,
    total: f64,
}

static TEMPLATES: LazyLock<Vec<Template>> = LazyLock::new(|| {
    let template = |size, shape: Shape| {
        let covered: Vec<f64> = shape.coverage(size).iter().map(|&c| f64::from(c) / 64.0).collect();
        Template { shape, size, total: covered.iter().sum(), covered }
    };
    SIZES.into_iter().flat_map(|size| Shape::ALL.into_iter().map(move |shape| template(size, shape))).collect()
});

/// The sprite with the greatest overlap among those of about the right size, at offsets of up to a pixel.
fn resemble(covered: &[f64], bounds: &Bounds) -> (Option<Shape>, f64) {
    let total: f64 = covered.iter().sum();
    let (cx, cy) = bounds.centre();
    let mut best = (None, 0.0);
    for template in TEMPLATES.iter().filter(|t| bounds.longer_side().abs_diff(t.size - 2) <= 5) {
        // A sprite keeps a margin of a pixel all around, hence the 2 above.
        let corner = |centre: f64| (centre - template.size as f64 / 2.0).round_ties_even() as isize;
        for dy in -1..=1 {
            for dx in -1..=1 {
                let common = intersection(covered, template, corner(cx) + dx, corner(cy) + dy);
                let overlap = common / (total + template.total - common);
                if overlap > best.1 {
                    best = (Some(template.shape), overlap);
                }
            }
        }
    }
    best
}

/// Sum of the smaller coverage over the template's box with its corner at (`left`, `top`); beyond the canvas is nothing.
fn intersection(covered: &[f64], template: &Template, left: isize, top: isize) -> f64 {
    let mut sum = 0.0;
    for (row, line) in template.covered.chunks_exact(template.size).enumerate() {
        let y = top + row as isize;
        if !(0..CANVAS as isize).contains(&y) {
            continue;
        }
        for (column, &wanted) in line.iter().enumerate() {
            let x = left + column as isize;
            if (0..CANVAS as isize).contains(&x) {
                sum += wanted.min(covered[y as usize * CANVAS + x as usize]);
            }
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::fixtures;

    #[test]
    fn objects_are_those_drawing_py_finds() {
        let scenes = fixtures::scenes("seen.jsonl");
        assert!(scenes.len() >= 10);
        for scene in scenes {
            let seen = find_objects(&scene.picture);
            assert_eq!(seen.len(), scene.seen.len(), "{}", scene.file);
            for (ours, theirs) in seen.iter().zip(&scene.seen) {
                assert_eq!((ours.shape, ours.colour), (theirs.shape, theirs.colour), "{}", scene.file);
                assert_eq!(ours.centre, (theirs.cx, theirs.cy), "{}", scene.file);
                assert!((ours.overlap - theirs.iou).abs() < 1e-9, "{}: {ours:?} {theirs:?}", scene.file);
            }
        }
    }

    #[test]
    fn pictures_of_other_sizes_are_looked_at_too() {
        let scene = &fixtures::scenes("drawn.jsonl")[8];
        let large = resize_bicubic(&scene.picture, 384, 384);
        let names = |picture| find_objects(picture).iter().map(|s| (s.shape, s.colour)).collect::<Vec<_>>();
        assert_eq!(names(&large), names(&scene.picture));
        assert!(!names(&large).is_empty());
    }

    #[test]
    fn an_empty_canvas_and_a_full_one_hold_nothing_recognisable() {
        assert!(find_objects(&Rgb8::filled(CANVAS, CANVAS, BACKGROUND)).is_empty());
        let full = find_objects(&Rgb8::filled(CANVAS, CANVAS, Colour::Red.rgb()));
        assert_eq!(full.len(), 1);
        assert_eq!(full[0].shape, None);
    }
}
