//! A report as people read it: GenEval's table, the answers, POPE's figures.

use std::fmt;

use super::report::{Mistakes, Pope, Report, Row, Settings, Tally, share};
use super::score::Verdict;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Settings { model, cfg_weight, temperature, seed } = &self.settings;
        writeln!(f, "{model}: guidance {cfg_weight}, temperature {temperature}, seed {seed}")?;
        writeln!(f, "\n{:<20} {:>9} {:>7} {:>9} {:>11}", "pictures", "right", "score", "held out", "VQ ceiling")?;
        for (row, ceiling) in self.pictures.categories.iter().zip(&self.vq_ceiling.categories) {
            line(f, row.name.title(), row)?;
            writeln!(f, " {:>11.3}", ceiling.tally.score)?;
        }
        let (overall, ceiling) = (self.pictures.overall, self.vq_ceiling.overall);
        writeln!(f, "{:<20} {:>9} {overall:>7.3} {:>9} {ceiling:>11.3}", "overall (mean)", "", "")?;
        let mistakes: Vec<String> = self.pictures.mistakes.iter().map(Mistakes::to_string).collect();
        writeln!(f, "wrong: {}", mistakes.join(", "))?;

        writeln!(f, "\n{:<20} {:>9} {:>7} {:>9}", "answers", "right", "score", "held out")?;
        for row in &self.answers.kinds {
            line(f, row.name.title(), row)?;
            writeln!(f)?;
        }
        line(f, "all", &Row { name: (), tally: self.answers.overall, held_out: None })?;
        writeln!(f)?;
        write!(f, "\n{}", self.answers.presence)
    }
}

/// Name, count, score and held-out score, without the line's end.
fn line<Name>(f: &mut fmt::Formatter<'_>, title: &str, row: &Row<Name>) -> fmt::Result {
    let Tally { right, total, score } = row.tally;
    let held_out = row.held_out.map_or_else(|| "-".to_owned(), |tally| format!("{:.3}", tally.score));
    write!(f, "{title:<20} {:>9} {score:>7.3} {held_out:>9}", format!("{right}/{total}"))
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = match self.verdict {
            Verdict::Right => "right",
            Verdict::Unclear => "something unclear",
            Verdict::WrongNumber => "wrong number",
            Verdict::WrongObjects => "wrong objects",
            Verdict::WrongPlace => "wrong place",
        };
        write!(f, "{} {why}", self.count)
    }
}

impl fmt::Display for Pope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { accuracy, precision, recall, f1, yes_ratio, .. } = self;
        write!(f, "presence as in POPE: accuracy {accuracy:.3}, precision {precision:.3}, recall {recall:.3}, ")?;
        writeln!(f, "F1 {f1:.3}, yes ratio {yes_ratio:.3} (of {:.3})", share(self.positives, self.total))?;
        let absent = self.absent.iter().map(|row| format!("{} {}/{}", row.name, row.tally.right, row.tally.total));
        write!(f, "absent things rightly denied: {}", absent.collect::<Vec<_>>().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use crate::eval::report::{Answered, Painted, Rebuilt, Report, Settings};
    use crate::eval::score::Verdict;
    use crate::eval::suite::{self, Category};

    /// One picture per category, painted and rebuilt right, but for counting: one right and one wrong.
    fn report() -> Report {
        let prompts = suite::prompts(Some(1)).expect("prompts");
        let mut painted: Vec<Painted> = prompts.iter().map(|p| Painted::new(p, p.seed, Verdict::Right)).collect();
        let counting = prompts.iter().find(|p| p.category == Category::Counting).expect("one of each");
        painted.push(Painted::new(counting, 0, Verdict::WrongNumber));
        let rebuilt = prompts.iter().map(|p| Rebuilt { category: p.category, right: true }).collect();
        let questions = suite::questions(Some(1)).expect("questions");
        let answered = questions.iter().map(|q| Answered::new(q, &q.answer)).collect();
        let settings = Settings { model: "shapes".to_owned(), cfg_weight: 2.0, temperature: 0.7, seed: 5 };
        Report::new(settings, painted, answered, rebuilt)
    }

    #[test]
    fn the_table_reads_as_geneval_does() {
        let table = report().to_string();
        let row = |start: &str| table.lines().find(|l| l.starts_with(start)).unwrap_or_default().to_owned();
        assert_eq!(row("shapes"), "shapes: guidance 2, temperature 0.7, seed 5");
        assert_eq!(row("counting"), "counting                   1/2   0.500     0.500       1.000");
        assert_eq!(row("single"), "single object              1/1   1.000         -       1.000");
        assert_eq!(row("overall"), "overall (mean)                   0.917                 1.000");
        assert_eq!(row("wrong"), "wrong: 0 something unclear, 1 wrong number, 0 wrong objects, 0 wrong place");
        assert_eq!(row("relation"), "relation                   1/1   1.000         -");
        assert!(row("presence as in POPE").contains("F1 1.000, yes ratio 1.000 (of 1.000)"), "{table}");
    }
}
