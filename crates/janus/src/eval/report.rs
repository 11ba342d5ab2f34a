//! What was measured, counted up; serialised, it is the answer of `--json`. [`super::table`] prints it for people.
//!
//! Pictures in GenEval's categories, their overall score the mean of the categories' (Ghosh et al. 2023); yes/no
//! answers with POPE's figures, "yes" the positive class (Li et al. 2023); other answers by exact match.

use serde::Serialize;

use super::score::Verdict;
use super::suite::{Category, Kind, Prompt, Question};

/// With what was measured; printed and written as it is.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Settings {
    /// As the caller named it.
    pub(crate) model: String,
    /// Guidance weight.
    pub(crate) cfg_weight: f32,
    /// Sampling temperature of pictures.
    pub(crate) temperature: f32,
    /// Added to every prompt's own seed.
    pub(crate) seed: u64,
}

/// One picture that was painted.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Painted {
    id: String,
    category: Category,
    prompt: String,
    held_out: bool,
    seed: u64,
    verdict: Verdict,
}

/// One question that was answered.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Answered {
    id: String,
    kind: Kind,
    question: String,
    held_out: bool,
    #[serde(skip)]
    detail: String,
    right_answer: String,
    answer: String,
}

/// One drawn picture after the VQ encoder and decoder.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rebuilt {
    pub(crate) category: Category,
    pub(crate) right: bool,
}

/// Everything measured.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Report {
    pub(super) suite: &'static str,
    #[serde(flatten)]
    pub(super) settings: Settings,
    pub(super) pictures: Pictures,
    pub(super) answers: Answers,
    pub(super) vq_ceiling: Pictures,
    pub(super) painted: Vec<Painted>,
    pub(super) answered: Vec<Answered>,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct Pictures {
    pub(super) categories: Vec<Row<Category>>,
    /// Mean of the categories' scores.
    pub(super) overall: f64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) mistakes: Vec<Mistakes>,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct Answers {
    pub(super) kinds: Vec<Row<Kind>>,
    pub(super) overall: Tally,
    pub(super) presence: Pope,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct Row<Name> {
    pub(super) name: Name,
    #[serde(flatten)]
    pub(super) tally: Tally,
    /// The part whose combination training never saw; absent if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) held_out: Option<Tally>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Tally {
    pub(super) right: usize,
    pub(super) total: usize,
    /// `right / total`, 0 of nothing.
    pub(super) score: f64,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct Mistakes {
    pub(super) verdict: Verdict,
    pub(super) count: usize,
}

/// Yes/no questions about presence.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Pope {
    pub(super) total: usize,
    pub(super) accuracy: f64,
    pub(super) precision: f64,
    pub(super) recall: f64,
    pub(super) f1: f64,
    /// Share of questions answered "yes"; the right share is `positives / total`.
    pub(super) yes_ratio: f64,
    pub(super) positives: usize,
    /// Accuracy by how the absent thing was chosen; without a row where no question is of that sort.
    pub(super) absent: Vec<Row<String>>,
}

impl Painted {
    pub(crate) fn new(prompt: &Prompt, seed: u64, verdict: Verdict) -> Self {
        let (id, text) = (prompt.id.clone(), prompt.prompt.clone());
        Self { id, category: prompt.category, prompt: text, held_out: prompt.held_out, seed, verdict }
    }
}

impl Answered {
    pub(crate) fn new(question: &Question, answer: &str) -> Self {
        Self {
            id: question.id.clone(),
            kind: question.kind,
            question: question.question.clone(),
            held_out: question.held_out,
            detail: question.detail.clone(),
            right_answer: question.answer.clone(),
            answer: answer.to_owned(),
        }
    }

    fn is_right(&self) -> bool {
        self.answer == self.right_answer
    }
}

impl Tally {
    fn of(results: impl Iterator<Item = bool>) -> Self {
        let (mut right, mut total) = (0, 0);
        for result in results {
            right += usize::from(result);
            total += 1;
        }
        Self { right, total, score: share(right, total) }
    }

    /// `None` of nothing.
    fn of_any(results: impl Iterator<Item = bool>) -> Option<Self> {
        Some(Self::of(results)).filter(|tally| tally.total > 0)
    }
}

/// `part / whole`, 0 of nothing.
pub(super) fn share(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

impl Report {
    pub(crate) fn new(settings: Settings, painted: Vec<Painted>, answered: Vec<Answered>, rebuilt: Vec<Rebuilt>) -> Self {
        let pictures = Pictures::of_painted(&painted);
        let answers = Answers::of(&answered);
        let vq_ceiling = Pictures::of_rebuilt(&rebuilt);
        Self { suite: "shapes", settings, pictures, answers, vq_ceiling, painted, answered }
    }
}

impl Pictures {
    fn of_painted(painted: &[Painted]) -> Self {
        let rows = Category::ALL.into_iter().map(|name| {
            let of = painted.iter().filter(move |p| p.category == name);
            let held_out = Tally::of_any(of.clone().filter(|p| p.held_out).map(|p| p.verdict.is_right()));
            Row { name, tally: Tally::of(of.map(|p| p.verdict.is_right())), held_out }
        });
        let wrong = [Verdict::Unclear, Verdict::WrongNumber, Verdict::WrongObjects, Verdict::WrongPlace];
        let count = |verdict| painted.iter().filter(|p| p.verdict == verdict).count();
        let mistakes = wrong.into_iter().map(|verdict| Mistakes { verdict, count: count(verdict) }).collect();
        Self::new(rows.collect(), mistakes)
    }

    fn of_rebuilt(rebuilt: &[Rebuilt]) -> Self {
        let rows = Category::ALL.into_iter().map(|name| {
            let of = rebuilt.iter().filter(move |r| r.category == name);
            Row { name, tally: Tally::of(of.map(|r| r.right)), held_out: None }
        });
        Self::new(rows.collect(), Vec::new())
    }

    fn new(categories: Vec<Row<Category>>, mistakes: Vec<Mistakes>) -> Self {
        let scores: f64 = categories.iter().map(|row| row.tally.score).sum();
        let overall = scores / categories.len().max(1) as f64;
        Self { categories, overall, mistakes }
    }
}

impl Answers {
    fn of(answered: &[Answered]) -> Self {
        let rows = Kind::ALL.into_iter().map(|name| {
            let of = answered.iter().filter(move |a| a.kind == name);
            let held_out = Tally::of_any(of.clone().filter(|a| a.held_out).map(Answered::is_right));
            Row { name, tally: Tally::of(of.map(Answered::is_right)), held_out }
        });
        let presence: Vec<&Answered> = answered.iter().filter(|a| a.kind == Kind::Presence).collect();
        Self {
            kinds: rows.collect(),
            overall: Tally::of(answered.iter().map(Answered::is_right)),
            presence: Pope::of(&presence),
        }
    }
}

impl Pope {
    /// An answer that is neither "yes" nor "no" is wrong and counts as not saying yes.
    fn of(presence: &[&Answered]) -> Self {
        let count = |of: &dyn Fn(&Answered) -> bool| presence.iter().filter(|a| of(a)).count();
        let positives = count(&|a| a.right_answer == "yes");
        let said_yes = count(&|a| a.answer == "yes");
        let hits = count(&|a| a.answer == "yes" && a.right_answer == "yes");
        let (precision, recall) = (share(hits, said_yes), share(hits, positives));
        let absent = ["random", "popular", "adversarial"].into_iter().filter_map(|how| {
            let of = presence.iter().filter(|a| a.detail == how);
            let tally = Tally::of_any(of.map(|a| a.is_right()))?;
            Some(Row { name: how.to_owned(), tally, held_out: None })
        });
        Self {
            total: presence.len(),
            accuracy: share(count(&Answered::is_right), presence.len()),
            precision,
            recall,
            f1: if hits == 0 { 0.0 } else { 2.0 * precision * recall / (precision + recall) },
            yes_ratio: share(said_yes, presence.len()),
            positives,
            absent: absent.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn painted(category: Category, verdict: Verdict, held_out: bool) -> Painted {
        Painted { id: String::new(), category, prompt: String::new(), held_out, seed: 0, verdict }
    }

    fn presence(right_answer: &str, answer: &str, detail: &str) -> Answered {
        let (id, question) = (String::new(), String::new());
        let (right_answer, answer, detail) = (right_answer.to_owned(), answer.to_owned(), detail.to_owned());
        Answered { id, kind: Kind::Presence, question, held_out: false, detail, right_answer, answer }
    }

    fn settings() -> Settings {
        Settings { model: "shapes".to_owned(), cfg_weight: 2.0, temperature: 0.7, seed: 5 }
    }

    #[test]
    fn overall_is_the_mean_of_the_categories_not_of_the_pictures() {
        let mut all = vec![painted(Category::SingleObject, Verdict::Right, false); 9];
        for category in &Category::ALL[1..] {
            all.push(painted(*category, Verdict::Unclear, true));
        }
        let pictures = Pictures::of_painted(&all);
        assert!((pictures.overall - 1.0 / 6.0).abs() < 1e-12);
        assert_eq!(pictures.categories[0].held_out, None);
        assert_eq!(pictures.categories[1].held_out, Some(Tally { right: 0, total: 1, score: 0.0 }));
    }

    #[test]
    fn pope_figures_by_hand() {
        let all = [
            presence("yes", "yes", "positive"),
            presence("yes", "yes", "positive"),
            presence("yes", "no", "positive"),
            presence("no", "yes", "adversarial"),
            presence("no", "no", "random"),
            presence("no", "red", "random"),
        ];
        let pope = Pope::of(&all.iter().collect::<Vec<_>>());
        assert_eq!((pope.total, pope.positives), (6, 3));
        assert!((pope.accuracy - 0.5).abs() < 1e-12);
        assert!((pope.precision - 2.0 / 3.0).abs() < 1e-12);
        assert!((pope.recall - 2.0 / 3.0).abs() < 1e-12);
        assert!((pope.f1 - 2.0 / 3.0).abs() < 1e-12);
        assert!((pope.yes_ratio - 0.5).abs() < 1e-12);
        let absent: Vec<_> = pope.absent.iter().map(|r| (r.name.as_str(), r.tally.right, r.tally.total)).collect();
        assert_eq!(absent, [("random", 1, 2), ("adversarial", 0, 1)]);
    }

    #[test]
    fn nothing_measured_gives_zeros_not_nan() {
        let report = Report::new(settings(), Vec::new(), Vec::new(), Vec::new());
        let json = serde_json::to_string(&report).expect("JSON");
        assert!(!json.contains("null") && !json.contains("NaN"), "{json}");
        assert!(!report.to_string().contains("NaN"));
    }
}
