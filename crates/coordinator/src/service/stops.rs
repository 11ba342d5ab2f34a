//! Stop strings: text that may be the beginning of one is held back until that is decided.

/// The text of an answer on its way to a caller who gave stop strings.
///
/// The answer ends before the stop that is complete first; of two that are complete at once, before the longer one. So it
/// does not matter in which pieces the text comes.
pub(super) struct Stops {
    strings: Vec<String>,
    /// The end of the text so far, as far as it is the beginning of a stop.
    held: String,
}

/// What became of a piece of text.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Passed {
    /// Text that is certain now.
    pub(super) text: String,
    /// A stop is complete: nothing comes after `text`.
    pub(super) stopped: bool,
}

impl Stops {
    /// No string may be empty.
    pub(super) fn new(strings: Vec<String>) -> Self {
        Stops { strings, held: String::new() }
    }

    /// Takes the next piece.
    pub(super) fn push(&mut self, piece: &str) -> Passed {
        let mut text = std::mem::take(&mut self.held);
        text.push_str(piece);
        let first = self.strings.iter().filter_map(|stop| text.find(stop.as_str()).map(|at| (at + stop.len(), at))).min();
        if let Some((_, start)) = first {
            text.truncate(start);
            return Passed { text, stopped: true };
        }
        let undecided = self.strings.iter().map(|stop| begun(stop, &text)).max().unwrap_or(0);
        self.held = text.split_off(text.len() - undecided);
        Passed { text, stopped: false }
    }

    /// What is held back when the answer ends without a stop.
    pub(super) fn finish(self) -> String {
        self.held
    }
}

/// Bytes at the end of `text` that begin `stop`.
fn begun(stop: &str, text: &str) -> usize {
    let prefixes = stop.char_indices().map(|(at, _)| at).rev();
    prefixes.into_iter().find(|&length| text.ends_with(&stop[..length])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STOPS: [&[&str]; 9] = [
        &[],
        &["a"],
        &["ab"],
        &["aab"],
        &["abab", "b\u{e9}"],
        &["\u{e9}\u{e9}", "ab\u{e9}"],
        &["b", "aba"],
        &["a\u{e9}b", "\u{e9}"],
        &["baab", "aa", "\u{e9}a", "bb"],
    ];

    fn strings(stops: &[&str]) -> Vec<String> {
        stops.iter().map(ToString::to_string).collect()
    }

    /// What a caller sees of text that comes in these pieces, after each of them and at the end.
    fn seen(stops: &[&str], pieces: &[String]) -> (Vec<String>, bool) {
        let mut filter = Stops::new(strings(stops));
        let mut seen = vec![String::new()];
        for piece in pieces {
            let passed = filter.push(piece);
            seen.push(seen[seen.len() - 1].clone() + &passed.text);
            if passed.stopped {
                return (seen, true);
            }
        }
        let all = seen[seen.len() - 1].clone() + &filter.finish();
        seen.push(all);
        (seen, false)
    }

    /// The definition, by trying every end: the stop that ends first, of those the one that begins first.
    fn expected(stops: &[&str], text: &str) -> (String, bool) {
        for end in (0..=text.len()).filter(|&end| text.is_char_boundary(end)) {
            let starts = stops.iter().filter(|stop| text[..end].ends_with(**stop)).map(|stop| end - stop.len());
            if let Some(start) = starts.min() {
                return (text[..start].to_owned(), true);
            }
        }
        (text.to_owned(), false)
    }

    /// Every text of up to seven characters out of three, in every division into pieces.
    fn every_text_and_division(mut check: impl FnMut(&str, &[String])) {
        for length in 0..=7_u32 {
            for number in 0..3_usize.pow(length) {
                let letters: Vec<char> = (0..length).map(|i| ['a', 'b', '\u{e9}'][number / 3_usize.pow(i) % 3]).collect();
                let text: String = letters.iter().collect();
                for division in 0..1_u32 << length.saturating_sub(1) {
                    let mut pieces = vec![String::new()];
                    for (i, letter) in letters.iter().enumerate() {
                        if i > 0 && division >> (i - 1) & 1 == 1 {
                            pieces.push(String::new());
                        }
                        pieces.last_mut().unwrap().push(*letter);
                    }
                    check(&text, &pieces);
                }
            }
        }
    }

    #[test]
    fn any_division_of_a_text_gives_the_same_answer() {
        every_text_and_division(|text, pieces| {
            for stops in STOPS {
                let (seen, stopped) = seen(stops, pieces);
                assert_eq!((seen.last().unwrap().clone(), stopped), expected(stops, text), "{stops:?} in {pieces:?}");
            }
        });
    }

    #[test]
    fn nothing_is_given_out_that_turns_out_to_belong_to_a_stop() {
        every_text_and_division(|_, pieces| {
            for stops in STOPS {
                let (seen, _) = seen(stops, pieces);
                let whole = seen.last().unwrap();
                assert!(stops.iter().all(|stop| !whole.contains(stop)), "{stops:?} in {pieces:?}: {whole}");
                assert!(seen.iter().all(|part| whole.starts_with(part.as_str())), "{stops:?} in {pieces:?}: {seen:?}");
            }
        });
    }

    #[test]
    fn text_is_held_back_no_longer_than_needed() {
        let mut filter = Stops::new(strings(&["<end>"]));
        let mut push = |piece: &str| filter.push(piece).text;
        assert_eq!([push("one <"), push("e"), push("ast> <en"), push("<e")], ["one ", "", "<east> ", "<en"]);
        assert_eq!(filter.finish(), "<e");
        let all = Stops::new(Vec::new()).push("as it comes");
        assert_eq!(all, Passed { text: "as it comes".to_owned(), stopped: false });
    }

    #[test]
    fn a_stop_over_several_pieces_ends_the_answer_before_it() {
        let mut filter = Stops::new(strings(&["\n\nQ", "never"]));
        assert_eq!(filter.push("yes.\n"), Passed { text: "yes.".to_owned(), stopped: false });
        assert_eq!(filter.push("\n"), Passed { text: String::new(), stopped: false });
        assert_eq!(filter.push("Q: why?"), Passed { text: String::new(), stopped: true });
    }
}
