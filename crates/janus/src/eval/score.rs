//! Whether a picture shows what its prompt asked for: exactly that, nothing missing and nothing more.

use janus_model::image::Rgb8;
use serde::Serialize;

use super::look::{Seen, find_objects};
use super::scene::Relation;
use super::suite::{Expected, Prompt};

/// What came of looking at a picture with its prompt in hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    /// It shows what was asked for.
    Right,
    /// Something in it has no clear shape or colour.
    Unclear,
    /// Too many or too few objects.
    WrongNumber,
    /// As many objects as asked for, but not all of the shapes and colours asked for.
    WrongObjects,
    /// The right objects in the wrong place.
    WrongPlace,
}

impl Verdict {
    pub(crate) fn is_right(self) -> bool {
        self == Verdict::Right
    }
}

/// Looks at a picture painted for a prompt.
pub(crate) fn judge(picture: &Rgb8, prompt: &Prompt) -> Verdict {
    judge_seen(&find_objects(picture), &prompt.expected, prompt.relation)
}

fn judge_seen(seen: &[Seen], expected: &[Expected], relation: Option<Relation>) -> Verdict {
    if seen.iter().any(|s| s.shape.is_none() || s.colour.is_none()) {
        return Verdict::Unclear;
    }
    if seen.len() != expected.iter().map(|e| e.count).sum::<usize>() {
        return Verdict::WrongNumber;
    }
    let Some(groups) = assign(seen, expected) else {
        return Verdict::WrongObjects;
    };
    match (relation, groups.as_slice()) {
        (Some(relation), [first, second, ..]) if Relation::between(*first, *second) != Some(relation) => Verdict::WrongPlace,
        _ => Verdict::Right,
    }
}

/// Gives every expected entry objects of its own and returns the centre of the first of each, in the order of
/// `expected`. Entries with a colour choose first, so that one that takes any colour cannot rob them.
fn assign(seen: &[Seen], expected: &[Expected]) -> Option<Vec<(f64, f64)>> {
    let mut order: Vec<usize> = (0..expected.len()).collect();
    order.sort_by_key(|&i| expected[i].colour.is_none());
    let mut left: Vec<&Seen> = seen.iter().collect();
    let mut centres = vec![(0.0, 0.0); expected.len()];
    for i in order {
        let wanted = &expected[i];
        for n in 0..wanted.count {
            let fits = |s: &&Seen| s.shape == Some(wanted.shape) && (wanted.colour.is_none() || s.colour == wanted.colour);
            let taken = left.remove(left.iter().position(fits)?);
            if n == 0 {
                centres[i] = taken.centre;
            }
        }
    }
    Some(centres)
}

#[cfg(test)]
mod tests {
    use janus_model::image::resize_bicubic;

    use super::*;
    use crate::eval::layout::{Dice, scene_for};
    use crate::eval::scene::{BACKGROUND, CANVAS, Colour, Object, Shape, draw};
    use crate::eval::suite::{self, Category};

    fn prompts() -> Vec<Prompt> {
        suite::prompts(None).expect("the built-in list")
    }

    fn scene(prompt: &Prompt) -> Vec<Object> {
        scene_for(prompt, &mut Dice::new(prompt.seed))
    }

    /// How many of the prompts' scenes, changed by `change`, are judged right.
    fn right(change: impl Fn(&Prompt, Vec<Object>) -> Rgb8) -> (usize, usize) {
        let prompts = prompts();
        (prompts.iter().filter(|p| judge(&change(p, scene(p)), p).is_right()).count(), prompts.len())
    }

    #[test]
    fn true_renders_are_right() {
        assert_eq!(right(|_, objects| draw(&objects)), (576, 576));
    }

    #[test]
    fn noise_does_not_hide_what_is_there() {
        let noisy = |prompt: &Prompt, objects: Vec<Object>| {
            let mut dice = Dice::new(prompt.seed + 1);
            let mut picture = draw(&objects);
            for byte in &mut picture.data {
                let noise = dice.below(31) as i32 - 15;
                *byte = (i32::from(*byte) + noise).clamp(0, 255) as u8;
            }
            picture
        };
        assert_eq!(right(noisy), (576, 576));
    }

    #[test]
    fn a_slight_blur_is_forgiven_and_a_heavy_one_is_not() {
        let (slight, total) = right(|_, objects| blurred(&draw(&objects)));
        assert!(slight * 100 >= total * 97, "{slight} of {total}");
        let smear = |picture: &Rgb8| resize_bicubic(&resize_bicubic(picture, 10, 10), CANVAS, CANVAS);
        let (heavy, total) = right(|_, objects| smear(&draw(&objects)));
        assert!(heavy * 10 <= total, "{heavy} of {total}");
    }

    #[test]
    fn a_missing_or_an_extra_object_is_wrong() {
        for prompt in prompts() {
            let mut objects = scene(&prompt);
            objects.pop();
            assert_eq!(judge(&draw(&objects), &prompt), Verdict::WrongNumber, "{}: one missing", prompt.id);
            let mut objects = scene(&prompt);
            let corners = [(0, 0), (48, 48), (0, 48), (48, 0), (24, 24)];
            let free =
                |(x, y): &(usize, usize)| objects.iter().all(|o| o.x.abs_diff(*x).max(o.y.abs_diff(*y)) > o.size.max(16));
            if let Some(&(x, y)) = corners.iter().find(|c| free(c)) {
                objects.push(Object { shape: Shape::Circle, colour: Colour::Red, size: 16, x, y });
                assert_eq!(judge(&draw(&objects), &prompt), Verdict::WrongNumber, "{}: one more", prompt.id);
            }
        }
    }

    #[test]
    fn a_wrong_colour_is_wrong_where_a_colour_was_asked_for() {
        for prompt in prompts() {
            let mut objects = scene(&prompt);
            let free = prompt.expected[0].colour.is_none();
            let others = |o: &Object| Colour::ALL.into_iter().filter(|c| *c != o.colour).collect::<Vec<_>>();
            // A colour that no other object of the prompt has, so that the change cannot be a mere exchange.
            let unused = others(&objects[0]).into_iter().find(|c| prompt.expected.iter().all(|e| e.colour != Some(*c)));
            objects[0].colour = unused.expect("six colours");
            assert_eq!(judge(&draw(&objects), &prompt).is_right(), free, "{}", prompt.id);
        }
    }

    #[test]
    fn a_wrong_shape_is_wrong() {
        for prompt in prompts() {
            let mut objects = scene(&prompt);
            let unused = Shape::ALL.into_iter().find(|s| prompt.expected.iter().all(|e| e.shape != *s));
            objects[0].shape = unused.expect("four shapes");
            assert_eq!(judge(&draw(&objects), &prompt), Verdict::WrongObjects, "{}", prompt.id);
        }
    }

    #[test]
    fn exchanged_colours_are_wrong_attribution() {
        let apart = |p: &Prompt| {
            p.category == Category::ColorAttr
                && p.expected[0].shape != p.expected[1].shape
                && p.expected[0].colour != p.expected[1].colour
        };
        let mut tried = 0;
        for prompt in prompts().into_iter().filter(apart) {
            let mut objects = scene(&prompt);
            (objects[0].colour, objects[1].colour) = (objects[1].colour, objects[0].colour);
            assert_eq!(judge(&draw(&objects), &prompt), Verdict::WrongObjects, "{}", prompt.id);
            tried += 1;
        }
        assert!(tried > 20);
    }

    #[test]
    fn a_mirrored_relation_is_the_wrong_place() {
        let mut tried = 0;
        for prompt in prompts().into_iter().filter(|p| p.category == Category::Position) {
            let mut objects = scene(&prompt);
            let size = objects[0].size;
            for object in &mut objects {
                (object.x, object.y) = (CANVAS - size - object.x, CANVAS - size - object.y);
            }
            assert_eq!(judge(&draw(&objects), &prompt), Verdict::WrongPlace, "{}", prompt.id);
            tried += 1;
        }
        assert!(tried > 50);
    }

    #[test]
    fn blank_and_noise_are_never_right() {
        let blank = Rgb8::filled(CANVAS, CANVAS, BACKGROUND);
        let mut dice = Dice::new(3);
        let noise = Rgb8 { data: (0..CANVAS * CANVAS * 3).map(|_| dice.roll() as u8).collect(), ..blank.clone() };
        for prompt in prompts() {
            assert_eq!(judge(&blank, &prompt), Verdict::WrongNumber, "{}", prompt.id);
            assert_eq!(judge(&noise, &prompt), Verdict::Unclear, "{}", prompt.id);
        }
    }

    #[test]
    fn a_smear_beside_the_right_object_is_unclear() {
        let single = |p: &Prompt| p.category == Category::Colors;
        for prompt in prompts().into_iter().filter(single) {
            let mut picture = draw(&[Object { x: 0, y: 0, ..scene(&prompt)[0].clone() }]);
            for y in 50..56 {
                for x in 30..60 {
                    picture.data[(y * CANVAS + x) * 3..][..3].copy_from_slice(&[90, 90, 90]);
                }
            }
            assert_eq!(judge(&picture, &prompt), Verdict::Unclear, "{}", prompt.id);
        }
    }

    /// The mean of every pixel and its neighbours, 3 x 3.
    fn blurred(picture: &Rgb8) -> Rgb8 {
        let mut out = picture.clone();
        for (i, byte) in out.data.iter_mut().enumerate() {
            let (x, y, channel) = (i / 3 % CANVAS, i / 3 / CANVAS, i % 3);
            let near = |c: usize| c.saturating_sub(1)..(c + 2).min(CANVAS);
            let sum: u32 = near(y).flat_map(|y| near(x).map(move |x| u32::from(picture.pixel(x, y)[channel]))).sum();
            *byte = (sum / (near(x).len() * near(y).len()) as u32) as u8;
        }
        out
    }
}
