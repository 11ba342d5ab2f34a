//! The world of `shapes`: what can be in a picture, and the one way it is drawn.
//!
//! The rules are those of `shapes/DATA.md`, whose reference is `shapes/drawing.py`; the tests compare pixel by pixel.
//! Everything is integer arithmetic, so a scene is the same bytes everywhere.

use janus_model::image::Rgb8;
use serde::{Deserialize, Serialize};

/// Side of every picture in pixels.
pub(crate) const CANVAS: usize = 64;
/// The colour behind the objects.
pub(crate) const BACKGROUND: [u8; 3] = [238, 238, 244];
/// The sizes sprites come in: side of the square box that holds one, in pixels.
pub(crate) const SIZES: [usize; 2] = [16, 24];
/// Each pixel is divided into this many samples along a side.
const SAMPLES: i64 = 8;

/// Outline of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Shape {
    Circle,
    Square,
    Triangle,
    Star,
}

/// Colour of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Colour {
    Red,
    Orange,
    Yellow,
    Green,
    Blue,
    Purple,
}

/// Where one object is, seen from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Relation {
    #[serde(rename = "left of")]
    LeftOf,
    #[serde(rename = "right of")]
    RightOf,
    #[serde(rename = "above")]
    Above,
    #[serde(rename = "below")]
    Below,
}

/// One sprite of a scene.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Object {
    pub(crate) shape: Shape,
    pub(crate) colour: Colour,
    /// Side of the box in pixels, one of [`SIZES`].
    pub(crate) size: usize,
    /// Left edge of the box in pixels.
    pub(crate) x: usize,
    /// Top edge of the box in pixels.
    pub(crate) y: usize,
}

impl Shape {
    pub(crate) const ALL: [Shape; 4] = [Shape::Circle, Shape::Square, Shape::Triangle, Shape::Star];

    /// Whether a sample lies inside; `u` to the right and `v` downwards from the centre of the box in sixteenths of a
    /// pixel (always odd), `r` half the side of the box in the same unit.
    fn contains(self, u: i64, v: i64, r: i64) -> bool {
        match self {
            Shape::Circle => u * u + v * v <= (r - 8) * (r - 8),
            Shape::Square => u.abs() <= r - 16 && v.abs() <= r - 16,
            Shape::Triangle => 2 * u.abs() <= v + (r - 16) && v <= r - 16,
            // A point of a five-pointed star is beyond at most one of the five edge lines.
            Shape::Star => {
                let w = v - 3 * r / 32;
                let edges = [(0, -1000), (951, -309), (588, 809), (-588, 809), (-951, -309)];
                edges.iter().filter(|(nx, ny)| nx * u + ny * w > 309 * r).count() <= 1
            }
        }
    }

    /// How many of the 64 samples of each pixel of a box of `size` pixels lie inside, row by row.
    pub(crate) fn coverage(self, size: usize) -> Vec<u8> {
        let r = SAMPLES * size as i64;
        let place = |k: i64| 2 * k + 1 - r;
        let mut inside = Vec::with_capacity(size * size);
        for y in 0..size as i64 {
            for x in 0..size as i64 {
                let samples = (0..SAMPLES * SAMPLES).filter(|k| {
                    let (u, v) = (SAMPLES * x + k % SAMPLES, SAMPLES * y + k / SAMPLES);
                    self.contains(place(u), place(v), r)
                });
                inside.push(samples.count() as u8);
            }
        }
        inside
    }
}

impl Colour {
    pub(crate) const ALL: [Colour; 6] =
        [Colour::Red, Colour::Orange, Colour::Yellow, Colour::Green, Colour::Blue, Colour::Purple];

    pub(crate) fn rgb(self) -> [u8; 3] {
        match self {
            Colour::Red => [220, 30, 45],
            Colour::Orange => [250, 135, 15],
            Colour::Yellow => [250, 220, 40],
            Colour::Green => [35, 160, 70],
            Colour::Blue => [40, 90, 220],
            Colour::Purple => [140, 55, 175],
        }
    }
}

impl Relation {
    /// How a thing centred on `a` lies to one centred on `b` (x, y in pixels), if one axis clearly dominates.
    pub(crate) fn between(a: (f64, f64), b: (f64, f64)) -> Option<Self> {
        let (dx, dy) = (b.0 - a.0, b.1 - a.1);
        if dx.abs() >= 12.0 && dx.abs() > dy.abs() {
            Some(if dx > 0.0 { Relation::LeftOf } else { Relation::RightOf })
        } else if dy.abs() >= 12.0 && dy.abs() > dx.abs() {
            Some(if dy > 0.0 { Relation::Above } else { Relation::Below })
        } else {
            None
        }
    }
}

/// The picture of a scene, [`CANVAS`] pixels square. Boxes are copied in whole, later ones over earlier ones; what lies
/// outside the canvas is cut off.
pub(crate) fn draw(objects: &[Object]) -> Rgb8 {
    let mut picture = Rgb8::filled(CANVAS, CANVAS, BACKGROUND);
    for object in objects {
        let colour = object.colour.rgb();
        for (i, &inside) in object.shape.coverage(object.size).iter().enumerate() {
            let (x, y) = (object.x + i % object.size, object.y + i / object.size);
            if x >= CANVAS || y >= CANVAS {
                continue;
            }
            let at = (y * CANVAS + x) * 3;
            for (channel, byte) in picture.data[at..at + 3].iter_mut().enumerate() {
                *byte = blend(BACKGROUND[channel], colour[channel], inside);
            }
        }
    }
    picture
}

/// A pixel of which `inside` of 64 samples have the colour, rounded to the nearest byte.
fn blend(background: u8, colour: u8, inside: u8) -> u8 {
    let (background, colour, inside) = (u32::from(background), u32::from(colour), u32::from(inside));
    ((background * (64 - inside) + colour * inside + 32) / 64) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::fixtures;

    #[test]
    fn drawings_equal_those_of_drawing_py() {
        let scenes = fixtures::scenes("drawn.jsonl");
        assert!(scenes.len() >= 10);
        let mut kinds = Vec::new();
        for scene in scenes {
            let drawn = draw(&scene.objects);
            let wrong = drawn.data.iter().zip(&scene.picture.data).filter(|(a, b)| a != b).count();
            assert_eq!(wrong, 0, "{}: bytes differ", scene.file);
            kinds.extend(scene.objects.iter().map(|o| (o.shape as usize, o.colour as usize, o.size)));
        }
        kinds.sort_unstable();
        kinds.dedup();
        assert_eq!(kinds.len(), Shape::ALL.len() * Colour::ALL.len() * SIZES.len(), "every sprite is compared");
    }

    #[test]
    fn sprites_stay_inside_their_box_and_fill_it_well() {
        for shape in Shape::ALL {
            for size in SIZES {
                let coverage = shape.coverage(size);
                let samples: usize = coverage.iter().map(|&c| usize::from(c)).sum();
                let share = samples as f64 / (size * size * 64) as f64;
                assert!((0.2..0.9).contains(&share), "{shape:?} {size}: {share}");
                assert!(coverage.iter().all(|&c| c <= 64));
            }
        }
    }

    #[test]
    fn relations_need_a_dominant_axis() {
        let at = |x, y| Relation::between((0.0, 0.0), (x, y));
        assert_eq!(at(20.0, 5.0), Some(Relation::LeftOf));
        assert_eq!(at(-20.0, 5.0), Some(Relation::RightOf));
        assert_eq!(at(3.0, 12.0), Some(Relation::Above));
        assert_eq!(at(3.0, -12.0), Some(Relation::Below));
        assert_eq!(at(11.0, 0.0), None);
        assert_eq!(at(20.0, 20.0), None);
    }

    #[test]
    fn what_leaves_the_canvas_is_cut_off() {
        let object = Object { shape: Shape::Square, colour: Colour::Red, size: 24, x: 50, y: 60 };
        let picture = draw(&[object]);
        assert_eq!(picture.pixel(60, 63), Colour::Red.rgb());
        assert_eq!(picture.pixel(0, 0), BACKGROUND);
    }
}
