//! What the agent was told: the kernel's command line in a guest, arguments on a host.
//!
//! Owns: names and defaults of the parameters. Must never happen: a bad parameter keeps a guest from starting; it is reported and
//! its default is used.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use log::LevelFilter;
use tokio_vsock::VMADDR_CID_ANY;

/// Where the ttrpc server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// `vsock://CID:PORT`; CID -1 is any.
    Vsock {
        /// Our own context id.
        cid: u32,
        /// The port.
        port: u32,
    },
    /// `unix://PATH`.
    Unix(PathBuf),
}

impl Address {
    /// Reads the URL form.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(path) = text.strip_prefix("unix://") {
            return (!path.is_empty()).then(|| Self::Unix(path.into()));
        }
        let (cid, port) = text.strip_prefix("vsock://")?.split_once(':')?;
        let cid = if cid == "-1" { VMADDR_CID_ANY } else { cid.parse().ok()? };
        Some(Self::Vsock { cid, port: port.parse().ok()? })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vsock { cid: VMADDR_CID_ANY, port } => write!(f, "vsock://-1:{port}"),
            Self::Vsock { cid, port } => write!(f, "vsock://{cid}:{port}"),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

/// Everything that can be set.
#[derive(Debug, Clone)]
pub struct Options {
    /// `agent.server_addr`, `--server`.
    pub server: Address,
    /// We are the guest's init: mount, watch the port, power off at the end. `--no-init` says no.
    pub init: bool,
    /// Containers get control groups. `--no-cgroups` says no, for hosts where crun cannot make them.
    pub cgroups: bool,
    /// `agent.log`.
    pub log: LevelFilter,
    /// `agent.container_pipe_size`, bytes; 0 leaves the kernel's.
    pub pipe_size: i32,
    /// `agent.hotplug_timeout`, seconds: how long a device is waited for.
    pub hotplug_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            server: Address::Vsock { cid: VMADDR_CID_ANY, port: 1024 },
            init: true,
            cgroups: true,
            log: LevelFilter::Info,
            pipe_size: 0,
            hotplug_timeout: Duration::from_secs(3),
        }
    }
}

impl Options {
    /// Applies the command line of the kernel; returns the parameters that make no sense.
    pub fn apply_kernel(&mut self, line: &str) -> Vec<String> {
        let bad = line.split_ascii_whitespace().filter(|word| self.apply_parameter(word).is_none());
        bad.map(str::to_owned).collect()
    }

    /// Applies `name=value`. Names we do not know are others' business.
    fn apply_parameter(&mut self, word: &str) -> Option<()> {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        match name {
            "agent.log" => self.log = level(value)?,
            "agent.server_addr" => self.server = Address::parse(value)?,
            "agent.container_pipe_size" => self.pipe_size = value.parse().ok().filter(|size| *size >= 0)?,
            "agent.hotplug_timeout" => self.hotplug_timeout = seconds(value)?,
            _ => {}
        }
        Some(())
    }

    /// Applies our own arguments.
    ///
    /// # Errors
    /// The argument that makes no sense.
    pub fn apply_arguments(&mut self, mut arguments: impl Iterator<Item = String>) -> Result<(), String> {
        while let Some(argument) = arguments.next() {
            self.apply_argument(&argument, &mut arguments).ok_or(argument)?;
        }
        Ok(())
    }

    fn apply_argument(&mut self, argument: &str, rest: &mut impl Iterator<Item = String>) -> Option<()> {
        match argument {
            "--no-init" => self.init = false,
            "--no-cgroups" => self.cgroups = false,
            "--server" => self.server = Address::parse(&rest.next()?)?,
            "--log" => self.log = level(&rest.next()?)?,
            _ => return None,
        }
        Some(())
    }
}

/// Kata's names of levels, which are one more than `log` has.
fn level(name: &str) -> Option<LevelFilter> {
    match name {
        "critical" | "fatal" | "panic" => Some(LevelFilter::Error),
        "warning" => Some(LevelFilter::Warn),
        _ => name.parse().ok(),
    }
}

/// At most a day, so that a time in the future can always be computed.
fn seconds(value: &str) -> Option<Duration> {
    value.parse().ok().filter(|seconds| (1..=86_400).contains(seconds)).map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_parameters() {
        let mut options = Options::default();
        let line = "quiet agent.log=debug agent.server_addr=vsock://-1:1030 agent.container_pipe_size=1048576 agent.hotplug_timeout=9 panic=1";
        assert!(options.apply_kernel(line).is_empty());
        assert_eq!(options.log, LevelFilter::Debug);
        assert_eq!(options.server, Address::Vsock { cid: u32::MAX, port: 1030 });
        assert_eq!(options.pipe_size, 1 << 20);
        assert_eq!(options.hotplug_timeout, Duration::from_secs(9));
    }

    #[test]
    fn bad_parameters_are_named_and_change_nothing() {
        let mut options = Options::default();
        let bad = options.apply_kernel(
            "agent.log=loud agent.hotplug_timeout=0 agent.server_addr=tcp://x agent.container_pipe_size=-1",
        );
        assert_eq!(bad.len(), 4);
        assert_eq!(options.log, LevelFilter::Info);
        assert_eq!(options.hotplug_timeout, Duration::from_secs(3));
    }

    #[test]
    fn arguments() {
        let mut options = Options::default();
        let arguments = ["--server", "unix:///tmp/a", "--no-init", "--no-cgroups"].map(String::from);
        options.apply_arguments(arguments.into_iter()).unwrap();
        assert_eq!(options.server.to_string(), "unix:///tmp/a");
        assert!(!options.init && !options.cgroups);
        assert_eq!(options.apply_arguments(["--what".to_string()].into_iter()), Err("--what".into()));
    }

    #[test]
    fn addresses_round_trip() {
        for url in ["vsock://-1:1024", "vsock://3:5", "unix:///run/a.sock"] {
            assert_eq!(Address::parse(url).unwrap().to_string(), url);
        }
        for url in ["unix://", "vsock://", "vsock://x:1", "vsock://1", "http://x"] {
            assert_eq!(Address::parse(url), None, "{url}");
        }
    }
}
