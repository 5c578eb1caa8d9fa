//! The command line containerd uses: Go-style flags, the verb last.
//!
//! `-x value`, `-x=value` and `--x` are one thing. A flag nobody here knows is ignored, with its value, so that a newer
//! containerd does not break an older launcher.

use crate::failure::{Failure, Outcome};

/// What the launcher was asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Start,
    Delete,
    /// `-info`: describe the runtime to containerd 2.x.
    Info,
    /// `-v`, `-version`: describe the launcher to a person.
    Version,
}

/// The command line, decoded. Strings are empty when the flag was not given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Args {
    pub namespace: String,
    pub address: String,
    pub id: String,
    pub bundle: String,
    pub debug: bool,
    info: bool,
    version: bool,
    verbs: Vec<String>,
}

impl Args {
    /// Decode `words` (without the program's name).
    pub fn parse(words: &[String]) -> Outcome<Self> {
        let mut args = Self::default();
        let mut rest = words;
        while let Some((word, after)) = rest.split_first() {
            rest = match word.strip_prefix('-') {
                None => {
                    args.verbs.push(word.clone());
                    after
                }
                Some(flag) => args.take_flag(flag.strip_prefix('-').unwrap_or(flag), after)?,
            };
        }
        Ok(args)
    }

    /// Store one flag; answer the words that are left.
    fn take_flag<'a>(&mut self, flag: &str, after: &'a [String]) -> Outcome<&'a [String]> {
        let (name, inline) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (flag, None),
        };
        if let Some(switch) = self.switch(name) {
            *switch = !matches!(inline, Some("false" | "0" | "f" | "F" | "FALSE" | "False"));
            return Ok(after);
        }
        let (value, after) = match (inline, after) {
            (Some(value), _) => (value, after),
            (None, [value, rest @ ..]) if self.takes_value(name, value, rest) => (value.as_str(), rest),
            (None, _) if is_known(name) => return Err(Failure::new("read flags", format!("-{name}"), "no value")),
            (None, _) => return Ok(after),
        };
        if let Some(place) = self.place(name) {
            value.clone_into(place);
        }
        Ok(after)
    }

    /// An unknown flag takes the next word as its value unless that is a flag or the last word: the verb comes last.
    fn takes_value(&self, name: &str, value: &str, rest: &[String]) -> bool {
        is_known(name) || (!value.starts_with('-') && !rest.is_empty())
    }

    fn switch(&mut self, name: &str) -> Option<&mut bool> {
        match name {
            "debug" => Some(&mut self.debug),
            "info" => Some(&mut self.info),
            "v" | "version" => Some(&mut self.version),
            _ => None,
        }
    }

    fn place(&mut self, name: &str) -> Option<&mut String> {
        match name {
            "namespace" => Some(&mut self.namespace),
            "address" => Some(&mut self.address),
            "id" => Some(&mut self.id),
            "bundle" => Some(&mut self.bundle),
            _ => None,
        }
    }

    /// The one thing asked for.
    pub fn verb(&self) -> Outcome<Verb> {
        match (self.version, self.info, self.verbs.as_slice()) {
            (true, _, _) => Ok(Verb::Version),
            (_, true, _) => Ok(Verb::Info),
            (_, _, [verb]) if verb == "start" => Ok(Verb::Start),
            (_, _, [verb]) if verb == "delete" => Ok(Verb::Delete),
            (_, _, verbs) => Err(Failure::new("read verb", verbs.join(" "), "not start or delete")
                .hint("containerd runs this program; people want `kata-shimd --help`")),
        }
    }

    /// `-namespace` and `-id` are there and are names containerd could have given.
    pub fn check(&self) -> Outcome<()> {
        check_name("-namespace", &self.namespace)?;
        check_name("-id", &self.id)
    }
}

/// Flags that always take a value, used or not.
fn is_known(name: &str) -> bool {
    matches!(name, "namespace" | "address" | "id" | "bundle" | "publish-binary" | "socket")
}

/// Names end up in paths of the daemon, so they are held to containerd's own alphabet.
pub fn check_name(what: &str, name: &str) -> Outcome<()> {
    let lawful = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() {
        return Err(Failure::new("check request", what, "empty"));
    }
    if name.len() > 128 || name.starts_with(['.', '-', '_']) || !name.chars().all(lawful) {
        return Err(Failure::new("check request", what, format!("{name:?} is not an identifier")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Args {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        Args::parse(&words).unwrap_or_else(|failure| unreachable!("{failure}"))
    }

    #[test]
    fn containerd_start() {
        let args = parse("-namespace k8s.io -address /run/c.sock -publish-binary /usr/bin/containerd -id abc start");
        assert_eq!((args.namespace.as_str(), args.id.as_str()), ("k8s.io", "abc"));
        assert_eq!((args.address.as_str(), args.debug), ("/run/c.sock", false));
        assert_eq!(args.verb(), Ok(Verb::Start));
    }

    #[test]
    fn containerd_delete() {
        let args = parse("-namespace n -address a -publish-binary b -id i -bundle /b -debug delete");
        assert_eq!((args.bundle.as_str(), args.debug), ("/b", true));
        assert_eq!(args.verb(), Ok(Verb::Delete));
    }

    #[test]
    fn equals_and_double_dash() {
        let args = parse("--namespace=n -id=i --debug=false delete");
        assert_eq!((args.namespace.as_str(), args.id.as_str(), args.debug), ("n", "i", false));
    }

    #[test]
    fn an_empty_value_is_a_value() {
        let words = ["-address", "", "-id", "i", "start"].map(str::to_owned);
        let args = Args::parse(&words);
        assert_eq!(args.as_ref().map(|args| args.address.as_str()), Ok(""));
        assert_eq!(args.and_then(|args| args.verb()), Ok(Verb::Start));
    }

    #[test]
    fn unknown_flags_are_ignored_with_their_values() {
        assert_eq!(parse("-colour red -loud -id i start").id, "i");
        assert_eq!(parse("-id i -loud start").verb(), Ok(Verb::Start));
        assert_eq!(parse("-colour=red -id i start").verb(), Ok(Verb::Start));
    }

    #[test]
    fn describing_ourselves() {
        for line in ["-v", "-version", "--version"] {
            assert_eq!(parse(line).verb(), Ok(Verb::Version));
        }
        assert_eq!(parse("-info").verb(), Ok(Verb::Info));
    }

    #[test]
    fn what_is_refused() {
        assert!(parse("").verb().is_err());
        assert!(parse("stop").verb().is_err());
        assert!(parse("start delete").verb().is_err());
        assert!(Args::parse(&["-id".to_owned()]).is_err());
        assert!(parse("-id i start").check().is_err());
        assert!(parse("-id ../i -namespace n start").check().is_err());
        assert!(parse("-id i -namespace n start").check().is_ok());
    }
}
