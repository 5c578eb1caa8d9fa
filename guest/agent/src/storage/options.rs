//! Mount options as text.
//!
//! Owns: which words are flags of mount(2). Everything else is the file system's.

use nix::mount::MsFlags;

/// Words that set flags.
const SET: [(&str, MsFlags); 15] = [
    ("ro", MsFlags::MS_RDONLY),
    ("nosuid", MsFlags::MS_NOSUID),
    ("nodev", MsFlags::MS_NODEV),
    ("noexec", MsFlags::MS_NOEXEC),
    ("sync", MsFlags::MS_SYNCHRONOUS),
    ("dirsync", MsFlags::MS_DIRSYNC),
    ("mand", MsFlags::MS_MANDLOCK),
    ("noatime", MsFlags::MS_NOATIME),
    ("nodiratime", MsFlags::MS_NODIRATIME),
    ("relatime", MsFlags::MS_RELATIME),
    ("strictatime", MsFlags::MS_STRICTATIME),
    ("lazytime", MsFlags::MS_LAZYTIME),
    ("remount", MsFlags::MS_REMOUNT),
    ("bind", MsFlags::MS_BIND),
    ("rbind", MsFlags::MS_BIND.union(MsFlags::MS_REC)),
];

/// Words that clear them.
const CLEAR: [(&str, MsFlags); 9] = [
    ("rw", MsFlags::MS_RDONLY),
    ("suid", MsFlags::MS_NOSUID),
    ("dev", MsFlags::MS_NODEV),
    ("exec", MsFlags::MS_NOEXEC),
    ("async", MsFlags::MS_SYNCHRONOUS),
    ("nomand", MsFlags::MS_MANDLOCK),
    ("atime", MsFlags::MS_NOATIME),
    ("diratime", MsFlags::MS_NODIRATIME),
    ("norelatime", MsFlags::MS_RELATIME),
];

/// Options that were read.
#[derive(Debug, PartialEq, Eq)]
pub struct Options {
    /// For mount(2).
    pub flags: MsFlags,
    /// For the file system.
    pub data: String,
    /// `fsgid=`: the group that owns the root of the mount.
    pub group: Option<u32>,
}

/// Reads options; each item may itself be a list with commas. `defaults` and empty words mean nothing.
pub fn parse(options: &[String]) -> Options {
    let mut flags = MsFlags::empty();
    let (mut data, mut group) = (Vec::new(), None);
    for word in options.iter().flat_map(|item| item.split(',')).filter(|word| !matches!(*word, "" | "defaults")) {
        if let Some((_, flag)) = SET.iter().find(|(name, _)| *name == word) {
            flags |= *flag;
        } else if let Some((_, flag)) = CLEAR.iter().find(|(name, _)| *name == word) {
            flags &= !*flag;
        } else if let Some(id) = word.strip_prefix("fsgid=") {
            group = id.parse().ok();
        } else {
            data.push(word);
        }
    }
    Options { flags, data: data.join(","), group }
}

/// The value of `name=value`, the last one if there are several.
pub fn value<'a>(options: &'a [String], name: &str) -> Option<&'a str> {
    let words = options.iter().flat_map(|item| item.split(','));
    words.filter_map(|word| word.split_once('=')).filter(|(key, _)| *key == name).map(|(_, value)| value).next_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn flags_and_data() {
        let options = parse(&words(&["noexec,nosuid", "nodev", "mode=1777", "size=65536k", "defaults", ""]));
        assert_eq!(options.flags, MsFlags::MS_NOEXEC | MsFlags::MS_NOSUID | MsFlags::MS_NODEV);
        assert_eq!(options.data, "mode=1777,size=65536k");
        assert_eq!(options.group, None);
    }

    #[test]
    fn later_words_win() {
        assert_eq!(parse(&words(&["ro", "rw"])).flags, MsFlags::empty());
        assert_eq!(parse(&words(&["rw", "ro"])).flags, MsFlags::MS_RDONLY);
    }

    #[test]
    fn the_group_is_not_the_file_systems() {
        let options = parse(&words(&["fsgid=2000", "size=1m"]));
        assert_eq!((options.group, options.data.as_str()), (Some(2000), "size=1m"));
    }

    #[test]
    fn values() {
        let options = words(&["mode=0777,size=5", "size=6"]);
        assert_eq!(value(&options, "size"), Some("6"));
        assert_eq!(value(&options, "mode"), Some("0777"));
        assert_eq!(value(&options, "fsgid"), None);
    }
}
