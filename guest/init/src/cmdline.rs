//! The kernel command line.

/// The parameters that decide how the root is mounted.
#[derive(Debug, PartialEq, Eq)]
pub struct Root<'a> {
    /// `root=`, a device node such as `/dev/vda`.
    pub device: Option<&'a str>,
    /// `rootfstype=`, squashfs when absent.
    pub fstype: &'a str,
    /// `rootflags=`, passed on to the file system.
    pub flags: &'a str,
}

impl<'a> Root<'a> {
    /// The last of several equal parameters wins, as in the kernel.
    #[must_use]
    pub fn parse(cmdline: &'a str) -> Self {
        let value = |key: &str| {
            let mut values =
                cmdline.split_ascii_whitespace().filter_map(|word| word.strip_prefix(key)?.strip_prefix('='));
            values.next_back().filter(|value| !value.is_empty())
        };
        Self {
            device: value("root"),
            fstype: value("rootfstype").unwrap_or("squashfs"),
            flags: value("rootflags").unwrap_or(""),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Root;

    #[test]
    fn reads_the_root_parameters() {
        let root = Root::parse("quiet root=/dev/vda rootfstype=erofs ro rootflags=dax panic=1\n");
        assert_eq!(root, Root { device: Some("/dev/vda"), fstype: "erofs", flags: "dax" });
    }

    #[test]
    fn last_one_wins_and_squashfs_is_the_default() {
        let root = Root::parse("root=/dev/vda root=/dev/vdb");
        assert_eq!(root, Root { device: Some("/dev/vdb"), fstype: "squashfs", flags: "" });
    }

    #[test]
    fn a_longer_name_is_another_parameter() {
        assert_eq!(Root::parse("rootwait rootdelay=3 xroot=/dev/vda root=").device, None);
    }
}
