//! Which known word a misspelt one was meant to be: for directives here, for verbs and flags in `cli`.

/// Returns the candidate that the fewest edits (at most two, and fewer than half of the word) turn `word` into.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // A word of another length class is no misspelling; the bound keeps the work small whatever was typed.
    if word.len() > 64 {
        return None;
    }
    let allowed = if word.len() < 5 { 1 } else { 2 };
    candidates
        .into_iter()
        .filter(|candidate| candidate.len().abs_diff(word.len()) <= allowed)
        .map(|candidate| (edits(word.as_bytes(), candidate.as_bytes()), candidate))
        .filter(|(edits, _)| *edits <= allowed)
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, candidate)| candidate)
}

/// Counts insertions, deletions, replacements and swaps of neighbours between two words.
fn edits(from: &[u8], to: &[u8]) -> usize {
    let mut before: Vec<usize> = vec![0; to.len() + 1];
    let mut above: Vec<usize> = (0..=to.len()).collect();
    for (row, &byte) in from.iter().enumerate() {
        let mut line = vec![row + 1; to.len() + 1];
        for (column, &other) in to.iter().enumerate() {
            let replaced = above[column] + usize::from(byte != other);
            let mut least = replaced.min(above[column + 1] + 1).min(line[column] + 1);
            if row > 0 && column > 0 && byte == to[column - 1] && from[row - 1] == other {
                least = least.min(before[column - 1] + 1);
            }
            line[column + 1] = least;
        }
        before = above;
        above = line;
    }
    above[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(word: &str, expected: Option<&str>) {
        assert_eq!(nearest(word, ["exec", "shell", "inspect", "instance", "mount home"]), expected, "{word}");
    }

    #[test]
    fn a_slip_of_the_fingers_is_recognised() {
        check("exce", Some("exec"));
        check("shel", Some("shell"));
        check("insepct", Some("inspect"));
        check("mount hom", Some("mount home"));
    }

    #[test]
    fn a_different_word_is_left_alone() {
        check("nonsense", None);
        check("ex", None);
        check("", None);
        check(&"x".repeat(100_000), None);
    }
}
