//! The held-out prompts and questions, built into the program.
//!
//! `shapes/evaluate.py lists` wrote the two files from seeds of its own; none of the combinations marked `held_out`
//! occurs in a training caption.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::scene::{Colour, Object, Relation, Shape};
use crate::failure::{Failure, Outcome};

const PROMPTS: &str = include_str!("../../shapes/heldout_prompts.jsonl");
const QUESTIONS: &str = include_str!("../../shapes/heldout_questions.jsonl");

/// GenEval's six categories of prompts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Category {
    SingleObject,
    TwoObject,
    Counting,
    Colors,
    Position,
    ColorAttr,
}

/// What a question asks about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Colour,
    Shape,
    Count,
    Presence,
    Relation,
}

/// Things of one kind that must be in a picture.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Expected {
    pub(crate) shape: Shape,
    /// `None`: any colour will do.
    pub(crate) colour: Option<Colour>,
    pub(crate) count: usize,
}

/// A text to paint and what the picture must then show.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Prompt {
    pub(crate) id: String,
    pub(crate) category: Category,
    /// The text given to the model.
    pub(crate) prompt: String,
    /// Everything in the picture, no more and no less.
    pub(crate) expected: Vec<Expected>,
    /// How the first expected thing lies to the second, where the prompt says.
    pub(crate) relation: Option<Relation>,
    /// Whether training never saw this combination.
    pub(crate) held_out: bool,
    /// Added to the caller's seed, so that every picture has its own.
    pub(crate) seed: u64,
}

/// A picture to draw, a question about it and the one right answer.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Question {
    pub(crate) id: String,
    pub(crate) kind: Kind,
    pub(crate) objects: Vec<Object>,
    pub(crate) question: String,
    pub(crate) answer: String,
    /// For presence: `positive`, or how the absent thing was chosen (`random`, `popular`, `adversarial`: harder and
    /// harder). For relation: `where` or `yesno`. Else empty.
    pub(crate) detail: String,
    /// Whether the picture shows a combination never seen in training.
    pub(crate) held_out: bool,
}

impl Category {
    pub(crate) const ALL: [Category; 6] = [
        Category::SingleObject,
        Category::TwoObject,
        Category::Counting,
        Category::Colors,
        Category::Position,
        Category::ColorAttr,
    ];

    /// As GenEval's tables call it.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Category::SingleObject => "single object",
            Category::TwoObject => "two objects",
            Category::Counting => "counting",
            Category::Colors => "colours",
            Category::Position => "position",
            Category::ColorAttr => "colour attribution",
        }
    }
}

impl Kind {
    pub(crate) const ALL: [Kind; 5] = [Kind::Colour, Kind::Shape, Kind::Count, Kind::Presence, Kind::Relation];

    pub(crate) fn title(self) -> &'static str {
        match self {
            Kind::Colour => "colour",
            Kind::Shape => "shape",
            Kind::Count => "count",
            Kind::Presence => "presence (yes/no)",
            Kind::Relation => "relation",
        }
    }
}

/// The held-out prompts, category by category; at most `limit` of each, spread over the list.
pub(crate) fn prompts(limit: Option<usize>) -> Outcome<Vec<Prompt>> {
    let all: Vec<Prompt> = parse("prompts", PROMPTS)?;
    let of = |category| all.iter().filter(move |p: &&Prompt| p.category == category).cloned().collect();
    Ok(Category::ALL.into_iter().flat_map(|category| spread(of(category), limit)).collect())
}

/// The held-out questions, kind by kind; at most `limit` of each, spread over the list.
pub(crate) fn questions(limit: Option<usize>) -> Outcome<Vec<Question>> {
    let all: Vec<Question> = parse("questions", QUESTIONS)?;
    let of = |kind| all.iter().filter(move |q: &&Question| q.kind == kind).cloned().collect();
    Ok(Kind::ALL.into_iter().flat_map(|kind| spread(of(kind), limit)).collect())
}

fn parse<T: DeserializeOwned>(what: &str, lines: &str) -> Outcome<Vec<T>> {
    let parsed = lines.lines().enumerate().map(|(i, line)| {
        serde_json::from_str(line)
            .map_err(|e| Failure::Broken(format!("line {} of the built-in list of {what}: {e}", i + 1)))
    });
    parsed.collect()
}

/// `limit` items at even distances, the first among them: a small sample then covers what a list orders by.
fn spread<T>(items: Vec<T>, limit: Option<usize>) -> Vec<T> {
    let (total, wanted) = (items.len(), limit.unwrap_or(usize::MAX).min(items.len()));
    let kept: Vec<usize> = (0..wanted).map(|i| i * total / wanted).collect();
    let numbered = items.into_iter().enumerate();
    numbered.filter(|(i, _)| kept.binary_search(i).is_ok()).map(|(_, item)| item).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lists_are_complete_and_consistent() {
        let prompts = prompts(None).expect("prompts");
        for category in Category::ALL {
            let of = prompts.iter().filter(|p| p.category == category);
            assert!(of.count() >= 50, "{category:?}");
        }
        for prompt in &prompts {
            assert_eq!(prompt.relation.is_some(), prompt.category == Category::Position, "{}", prompt.id);
            assert!(prompt.expected.iter().all(|e| (1..=4).contains(&e.count)), "{}", prompt.id);
        }
        let questions = questions(None).expect("questions");
        for kind in Kind::ALL {
            assert!(questions.iter().filter(|q| q.kind == kind).count() >= 50, "{kind:?}");
        }
        let presence = questions.iter().filter(|q| q.kind == Kind::Presence);
        assert!(presence.clone().all(|q| (q.answer == "yes") == (q.detail == "positive")));
        assert!(presence.clone().all(|q| ["yes", "no"].contains(&q.answer.as_str())));
    }

    #[test]
    fn a_limit_takes_that_many_of_each_spread_over_the_list() {
        assert_eq!(spread((0..10).collect(), Some(3)).len(), 3);
        assert_eq!(spread((0..10).collect(), Some(1)), [0]);
        assert_eq!(spread((0..4).collect(), Some(9)), [0, 1, 2, 3]);
        assert_eq!(spread((0..8).collect(), Some(2)), [0, 4]);
        assert!(spread(Vec::<u8>::new(), Some(2)).is_empty());
        let few = prompts(Some(5)).expect("prompts");
        assert!(Category::ALL.iter().all(|c| few.iter().filter(|p| p.category == *c).count() == 5));
    }

    #[test]
    fn a_broken_line_is_named() {
        let error = parse::<Prompt>("prompts", "{}\n").expect_err("no fields").to_string();
        assert!(error.contains("line 1 of the built-in list of prompts"), "{error}");
    }
}
