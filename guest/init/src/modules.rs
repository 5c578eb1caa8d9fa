//! Kernel modules: the list that the image builder wrote, and which of it this machine needs.

use std::fs::{self, File};
use std::path::Path;

use rustix::io::Errno;
use rustix::system::finit_module;

use crate::failure::{During, Failure};

/// One module a line, dependencies before dependants: its name, and for one that only certain devices need, the
/// patterns of their modaliases. Modules without patterns come first: they make the buses on which the others look.
const LIST: &str = "/modules.list";
/// Where the initrd keeps them, as `NAME.ko`, uncompressed.
const DIRECTORY: &str = "/modules";
/// The buses whose devices are looked at.
const BUSES: [&str; 2] = ["virtio", "pci"];

/// Loads, in order, what the list says and this machine has a device for.
///
/// # Errors
/// The list or a module cannot be read, or the kernel refuses one.
pub fn load() -> Result<(), Failure> {
    let list = fs::read_to_string(LIST).during("read the module list", LIST)?;
    let (always, on_device): (Vec<Line>, Vec<Line>) =
        list.lines().filter_map(Line::parse).partition(|line| line.patterns.is_empty());
    always.iter().try_for_each(|line| insert(line.name))?;
    let devices = if on_device.is_empty() { Vec::new() } else { modaliases(Path::new("/sys/bus")) };
    on_device.iter().filter(|line| line.wanted_by(&devices)).try_for_each(|line| insert(line.name))
}

struct Line<'a> {
    name: &'a str,
    patterns: Vec<&'a str>,
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        Some(Self { name: words.next()?, patterns: words.collect() })
    }

    fn wanted_by(&self, devices: &[String]) -> bool {
        devices.iter().any(|device| self.patterns.iter().any(|pattern| matches(pattern, device)))
    }
}

fn insert(name: &str) -> Result<(), Failure> {
    let file = File::open(format!("{DIRECTORY}/{name}.ko")).during("open module", name)?;
    match finit_module(&file, c"", 0) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(Failure::new("load module", name, errno.to_string())
            .hint("modules and kernel must come from one package; build the guest again")),
    }
}

/// What the devices say they are. A device that goes away meanwhile needs no module.
fn modaliases(buses: &Path) -> Vec<String> {
    let listings = BUSES.iter().filter_map(|bus| fs::read_dir(buses.join(bus).join("devices")).ok());
    let files = listings.flatten().filter_map(Result::ok).map(|device| device.path().join("modalias"));
    files.filter_map(|path| fs::read_to_string(path).ok()).map(|text| text.trim_end().to_owned()).collect()
}

/// Does the text fit the pattern, in which `*` stands for anything?
fn matches(pattern: &str, text: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(text) = text.strip_prefix(start) else { return false };
    // Each `*` takes the shortest text that lets the rest fit; a pattern has a handful of them.
    (0..=text.len()).any(|taken| text.get(taken..).is_some_and(|left| matches(rest, left)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_as_modprobe_has_it() {
        for (pattern, text, expected) in [
            ("virtio:d00000008v*", "virtio:d00000008v00001AF4", true),
            ("virtio:d00000008v*", "virtio:d00000013v00001AF4", false),
            ("pci:v00001AF4d*sv*sd*bc*sc*i*", "pci:v00001AF4d00001004sv00001AF4sd00000008bc01sc00i00", true),
            ("pci:v00001AF4d*bc02*", "pci:v00001AF4d00001004sv00001AF4sd00000008bc01sc00i00", false),
            ("exact", "exact", true),
            ("exact", "exactly", false),
            ("*", "", true),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn a_line_wants_a_device_of_any_of_its_patterns() {
        let line = Line::parse("scsi_mod virtio:d00000008v* pci:x*").unwrap();
        assert_eq!(line.name, "scsi_mod");
        assert!(line.wanted_by(&["virtio:d00000003v1".into(), "virtio:d00000008v1".into()]));
        assert!(!line.wanted_by(&["virtio:d00000003v1".into()]));
        assert!(Line::parse("").is_none());
    }

    #[test]
    fn modaliases_of_both_buses_are_read() {
        let buses = std::env::temp_dir().join(format!("guest-init-buses-{}", std::process::id()));
        for (device, alias) in [("virtio/devices/virtio0", "virtio:a\n"), ("pci/devices/0000:00:01.0", "pci:b\n")] {
            fs::create_dir_all(buses.join(device)).unwrap();
            fs::write(buses.join(device).join("modalias"), alias).unwrap();
        }
        assert_eq!(modaliases(&buses), ["virtio:a", "pci:b"]);
        fs::remove_dir_all(&buses).unwrap();
        assert!(modaliases(&buses).is_empty());
    }
}
