//! Where objects go when a picture of given things is wanted: the layouts of `shapes/DATA.md`.
//!
//! Used to draw, for every held-out prompt, a picture that is right by construction: through the VQ encoder and decoder
//! it shows the best any painter with that codebook could do.

use super::scene::{Colour, Object, Relation, Shape};
use super::suite::Prompt;

const PATCH: usize = 8;
/// Corners of a large sprite's box, in patches, run from 0 to here.
const LAST: u64 = 5;

/// A small seeded generator (SplitMix64): layouts must be the same everywhere and for ever.
#[derive(Debug, Clone)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Uniform in `0..below` (`below` at least 1 and small: the bias is far below one in a billion).
    pub(crate) fn below(&mut self, below: u64) -> u64 {
        self.roll() % below
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// A scene that shows exactly what the prompt asks for; free colours are drawn by lot, one per entry of the prompt.
pub(crate) fn scene_for(prompt: &Prompt, dice: &mut Dice) -> Vec<Object> {
    let mut kinds = Vec::new();
    for expected in &prompt.expected {
        let colour = expected.colour.unwrap_or_else(|| dice.pick(&Colour::ALL));
        kinds.extend(std::iter::repeat_n((colour, expected.shape), expected.count));
    }
    place(&kinds, prompt.relation, dice)
}

/// Puts one to nine things on the canvas; more than nine do not fit and are left out.
fn place(kinds: &[(Colour, Shape)], relation: Option<Relation>, dice: &mut Dice) -> Vec<Object> {
    let (corners, size) = match (kinds.len(), relation) {
        (0 | 1, _) => (vec![(dice.below(LAST + 1), dice.below(LAST + 1))], 24),
        (2, None) => (apart(dice), 24),
        (2, Some(relation)) => (related(relation, dice), 24),
        (n, _) => (cells(n, dice), 16),
    };
    let objects = kinds.iter().zip(corners).map(|(&(colour, shape), (x, y))| Object {
        shape,
        colour,
        size,
        x: PATCH * x as usize,
        y: PATCH * y as usize,
    });
    objects.collect()
}

/// Two corners with at least one empty patch between their boxes.
fn apart(dice: &mut Dice) -> Vec<(u64, u64)> {
    loop {
        let mut side = || dice.below(LAST + 1);
        let (a, b) = ((side(), side()), (side(), side()));
        if a.0.abs_diff(b.0).max(a.1.abs_diff(b.1)) >= 4 {
            return vec![a, b];
        }
    }
}

/// Two corners, the first `relation` the second, nearly level on the other axis.
fn related(relation: Relation, dice: &mut Dice) -> Vec<(u64, u64)> {
    let (near, far) = dice.pick(&[(0, 4), (0, 5), (1, 5)]);
    let (p, q) = loop {
        let (p, q) = (dice.below(LAST + 1), dice.below(LAST + 1));
        if p.abs_diff(q) <= 1 {
            break (p, q);
        }
    };
    match relation {
        Relation::LeftOf => vec![(near, p), (far, q)],
        Relation::RightOf => vec![(far, p), (near, q)],
        Relation::Above => vec![(p, near), (q, far)],
        Relation::Below => vec![(p, far), (q, near)],
    }
}

/// Distinct cells of the 3 x 3 lattice, in random order.
fn cells(n: usize, dice: &mut Dice) -> Vec<(u64, u64)> {
    let mut free: Vec<(u64, u64)> = (0..9).map(|i| (i % 3 * 3, i / 3 * 3)).collect();
    (0..n.min(9)).map(|_| free.swap_remove(dice.below(free.len() as u64) as usize)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::suite;

    #[test]
    fn every_held_out_prompt_can_be_laid_out() {
        for prompt in suite::prompts(None).expect("the built-in list") {
            let objects = scene_for(&prompt, &mut Dice::new(prompt.seed));
            let wanted: usize = prompt.expected.iter().map(|e| e.count).sum();
            assert_eq!(objects.len(), wanted, "{}", prompt.id);
            for (i, a) in objects.iter().enumerate() {
                assert!(a.x + a.size <= 64 && a.y + a.size <= 64, "{}: {a:?}", prompt.id);
                for b in &objects[i + 1..] {
                    let gap = a.x.abs_diff(b.x).max(a.y.abs_diff(b.y));
                    assert!(gap >= a.size + PATCH, "{}: {a:?} touches {b:?}", prompt.id);
                }
            }
        }
    }

    #[test]
    fn the_same_seed_lays_out_the_same_scene() {
        let prompts = suite::prompts(Some(3)).expect("the built-in list");
        for prompt in prompts {
            let lay = |seed| scene_for(&prompt, &mut Dice::new(seed));
            assert_eq!(lay(5), lay(5));
        }
        let varied: Vec<u64> = (0..20).map(|seed| Dice::new(seed).below(6)).collect();
        assert!((0..6).all(|face| varied.contains(&face)), "{varied:?}");
    }
}
