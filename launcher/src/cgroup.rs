//! Bringing a process into our own cgroups, v1 and v2.

use std::fs;
use std::path::{Path, PathBuf};

/// A line of `/proc/PID/cgroup`: the controllers of a v1 hierarchy (or its name), none for v2; and the path in it.
#[derive(Debug, PartialEq, Eq)]
struct Membership<'a> {
    controllers: &'a str,
    path: &'a str,
}

/// A line of `/proc/self/mountinfo` about a cgroup file system.
#[derive(Debug, PartialEq, Eq)]
struct Hierarchy<'a> {
    root: &'a str,
    mount_point: &'a str,
    v2: bool,
    options: &'a str,
}

/// Put `pid` wherever we are and it is not. A hierarchy that is not mounted here is nobody's concern.
pub fn bring(pid: i32) -> Result<(), String> {
    let (ours, its) = (read("/proc/self/cgroup")?, read(&format!("/proc/{pid}/cgroup"))?);
    if ours == its {
        return Ok(());
    }
    let mounts = read("/proc/self/mountinfo")?;
    for line in ours.lines().filter(|line| !its.lines().any(|other| other == *line)) {
        let Some(procs) = membership(line).and_then(|membership| procs(&membership, &mounts)) else { continue };
        fs::write(&procs, pid.to_string()).map_err(|error| format!("{}: {error}", procs.display()))?;
    }
    Ok(())
}

fn read(path: &str) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))
}

fn membership(line: &str) -> Option<Membership<'_>> {
    let mut fields = line.splitn(3, ':').skip(1);
    Some(Membership { controllers: fields.next()?, path: fields.next()? })
}

fn procs(membership: &Membership<'_>, mountinfo: &str) -> Option<PathBuf> {
    let mounted = mountinfo.lines().filter_map(hierarchy).find(|mounted| mounted.has(membership.controllers))?;
    let inside = Path::new(membership.path).strip_prefix(mounted.root).ok()?;
    Some(Path::new(mounted.mount_point).join(inside).join("cgroup.procs"))
}

fn hierarchy(line: &str) -> Option<Hierarchy<'_>> {
    let (before, after) = line.split_once(" - ")?;
    let mut before = before.split(' ').skip(3);
    let mut after = after.split(' ');
    let (root, mount_point) = (before.next()?, before.next()?);
    let v2 = match after.next()? {
        "cgroup2" => true,
        "cgroup" => false,
        _ => return None,
    };
    Some(Hierarchy { root, mount_point, v2, options: after.nth(1)? })
}

impl Hierarchy<'_> {
    fn has(&self, controllers: &str) -> bool {
        match controllers {
            "" => self.v2,
            _ => !self.v2 && controllers.split(',').all(|wanted| self.options.split(',').any(|one| one == wanted)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
30 23 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw,nsdelegate
32 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct
33 30 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
34 30 0:30 /outer /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
";

    fn place(line: &str) -> Option<String> {
        procs(&membership(line)?, MOUNTS).map(|path| path.display().to_string())
    }

    #[test]
    fn each_hierarchy_has_its_place() {
        let cases = [
            ("0::/a/b", Some("/sys/fs/cgroup/unified/a/b/cgroup.procs")),
            ("4:cpu,cpuacct:/x", Some("/sys/fs/cgroup/cpu,cpuacct/x/cgroup.procs")),
            ("1:name=systemd:/", Some("/sys/fs/cgroup/systemd/cgroup.procs")),
            ("5:pids:/outer/in:colon", Some("/sys/fs/cgroup/pids/in:colon/cgroup.procs")),
            ("5:pids:/elsewhere", None),
            ("6:memory:/x", None),
        ];
        for (line, expected) in cases {
            assert_eq!(place(line).as_deref(), expected, "{line}");
        }
    }

    #[test]
    fn we_are_where_we_are() {
        assert_eq!(bring(std::process::id().cast_signed()), Ok(()));
    }
}
