//! A daemon's last words: the end of its stderr, fit for containerd's log.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use crate::failure::Failure;

const LINES_MAX: usize = 20;
const BYTES_MAX: u64 = 4096;

/// The last lines, oldest first: at most 20, at most 4 KiB, printable.
pub struct LastWords(Vec<String>);

/// Read the end of `path`; nothing when it cannot be read, for there is a better failure to report.
pub fn last_words(path: &Path) -> LastWords {
    LastWords(tail(path).map(|bytes| lines(&bytes)).unwrap_or_default())
}

impl LastWords {
    /// The failure of `object`, which ended as `how` says: the very last line is its cause, the others are quoted.
    pub fn explain(mut self, step: &str, object: &str, how: &str) -> Failure {
        match self.0.pop() {
            Some(last) => Failure::new(step, object, format!("{how}: {last}")).quote(self.0),
            None => Failure::new(step, object, how),
        }
    }
}

fn tail(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(BYTES_MAX)))?;
    let mut bytes = Vec::new();
    file.take(BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn lines(bytes: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    let printable = |line: &str| line.chars().map(|c| if c.is_control() && c != '\t' { '?' } else { c }).collect();
    let all: Vec<String> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).map(printable).collect();
    all.into_iter().rev().take(LINES_MAX).rev().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_twenty() {
        let text: String = (0..30).map(|n| format!("line {n}\n")).collect();
        let kept = lines(text.as_bytes());
        assert_eq!((kept.len(), kept.first().map(String::as_str)), (20, Some("line 10")));
    }

    #[test]
    fn nothing_that_moves_a_cursor() {
        assert_eq!(lines(b"a\x1b[2Jb\r\n\n\xff\n"), ["a?[2Jb", "\u{fffd}"]);
    }

    #[test]
    fn the_last_line_is_the_cause() {
        let words = LastWords(vec!["Traceback".to_owned(), "boom".to_owned()]);
        assert_eq!(
            words.explain("start", "p", "exited with 1").to_string(),
            "start: p: exited with 1: boom\n  Traceback"
        );
        assert_eq!(LastWords(vec![]).explain("start", "p", "died").to_string(), "start: p: died");
    }
}
