//! What every foreseeable failure says: `step: object: cause; hint`, on one line.

use std::fmt::{self, Display};

/// A failure that someone foresaw. `object` and `hint` may be empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    step: String,
    object: String,
    cause: String,
    hint: String,
    /// Lines that somebody else said (the daemon's last words); printed below the sentence.
    quoted: Vec<String>,
}

pub type Outcome<T> = Result<T, Failure>;

impl Failure {
    pub fn new(step: &str, object: impl Display, cause: impl Display) -> Self {
        Self {
            step: step.to_owned(),
            object: object.to_string(),
            cause: cause.to_string(),
            hint: String::new(),
            quoted: Vec::new(),
        }
    }

    pub fn hint(mut self, hint: &str) -> Self {
        hint.clone_into(&mut self.hint);
        self
    }

    pub fn quote(mut self, lines: impl IntoIterator<Item = String>) -> Self {
        self.quoted.extend(lines);
        self
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = [&self.step, &self.object, &self.cause];
        let parts: Vec<&str> = said.into_iter().map(|part| part.trim_end()).filter(|part| !part.is_empty()).collect();
        write!(f, "{}", parts.join(": "))?;
        if !self.hint.is_empty() {
            write!(f, "; {}", self.hint)?;
        }
        self.quoted.iter().try_for_each(|line| write!(f, "\n  {line}"))
    }
}

/// Says what was being done, and to what, when it failed.
pub trait During<T> {
    fn during(self, step: &str, object: impl Display) -> Outcome<T>;
}

impl<T, E: Display> During<T> for Result<T, E> {
    fn during(self, step: &str, object: impl Display) -> Outcome<T> {
        self.map_err(|cause| Failure::new(step, object, cause))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_one_sentence() {
        let failure = Failure::new("read config", "/x", "not found").hint("create it");
        assert_eq!(failure.to_string(), "read config: /x: not found; create it");
        assert_eq!(Failure::new("read stdin", "", "closed").to_string(), "read stdin: closed");
    }

    #[test]
    fn quoted_lines_are_indented_below_it() {
        let failure = Failure::new("start daemon", "p", "died").quote(["one".to_owned(), "two".to_owned()]);
        assert_eq!(failure.to_string(), "start daemon: p: died\n  one\n  two");
    }
}
