//! `UpdateContainer`: new limits of a container that exists.
//!
//! Owns: the conversion of OCI resources to files of a version 2 group. Zero and empty mean "leave as it is".

use super::Cgroup;
use crate::error::{Code, Context, Error, Result};
use crate::protocol::oci::{LinuxBlockIO, LinuxCPU, LinuxMemory, LinuxResources, LinuxThrottleDevice};

/// One file to write.
#[derive(Debug, PartialEq, Eq)]
struct Write {
    file: String,
    value: String,
    /// The kernel may be built without it; then the setting has no effect, which is reported in the log.
    optional: bool,
}

impl Write {
    fn new(file: &str, value: impl ToString) -> Self {
        Self { file: file.to_owned(), value: value.to_string(), optional: false }
    }
}

/// Applies what the resources say. Stops at the first file that cannot be written.
///
/// # Errors
/// `UNIMPLEMENTED` for what version 2 of the control groups has not; then nothing is written.
pub fn apply(cgroup: &Cgroup, resources: &LinuxResources) -> Result<()> {
    refuse(resources)?;
    let current = |file: &str| cgroup.read(file).at("read", file);
    for write in plan(resources, &current)? {
        if write.optional && !cgroup.has(&write.file) {
            log::warn!("{} is not in this kernel: {} has no effect", write.file, write.value);
            continue;
        }
        cgroup.write(&write.file, &write.value)?;
    }
    Ok(())
}

/// Limits of version 1. Device rules are the exception: they are the container's from its creation on, and every client
/// of an update repeats them.
fn refuse(resources: &LinuxResources) -> Result<()> {
    let none = LinuxMemory::default();
    let memory = resources.Memory.as_ref().unwrap_or(&none);
    let io = resources.BlockIO.as_ref();
    let realtime = resources.CPU.as_ref().is_some_and(|cpu| cpu.RealtimeRuntime != 0 || cpu.RealtimePeriod != 0);
    let asked = [
        ("memory.kernel", memory.Kernel != 0),
        ("memory.kernelTCP", memory.KernelTCP != 0),
        ("memory.swappiness", memory.Swappiness != 0),
        ("memory.disableOOMKiller", memory.DisableOOMKiller),
        ("cpu.realtimeRuntime, cpu.realtimePeriod", realtime),
        ("blockIO.leafWeight", io.is_some_and(|io| io.LeafWeight != 0)),
        ("blockIO.weightDevice", io.is_some_and(|io| !io.WeightDevice.is_empty())),
    ];
    match asked.into_iter().find(|(_, asked)| *asked) {
        Some((what, _)) => Err(Error::new(
            Code::UNIMPLEMENTED,
            format!("update: {what}: control groups of version 2 have no such limit"),
        )),
        None => Ok(()),
    }
}

fn plan(resources: &LinuxResources, current: &impl Fn(&str) -> Result<String>) -> Result<Vec<Write>> {
    let mut writes = Vec::new();
    if let Some(memory) = resources.Memory.as_ref() {
        writes.extend(plan_memory(memory, current)?);
    }
    if let Some(cpu) = resources.CPU.as_ref() {
        writes.extend(plan_cpu(cpu, current)?);
    }
    if let Some(pids) = resources.Pids.as_ref().filter(|pids| pids.Limit != 0) {
        writes.push(Write::new("pids.max", bytes(pids.Limit)));
    }
    writes.extend(
        resources.HugepageLimits.iter().map(|page| Write::new(&format!("hugetlb.{}.max", page.Pagesize), page.Limit)),
    );
    if let Some(io) = resources.BlockIO.as_ref() {
        writes.extend(plan_io(io));
    }
    Ok(writes)
}

/// A negative limit is none.
fn bytes(limit: i64) -> String {
    if limit < 0 {
        "max".to_owned()
    } else {
        limit.to_string()
    }
}

/// The message's swap is memory and swap together; the group's is swap alone. A growing limit must be raised before the swap that
/// depends on nothing, so the order does not matter.
fn plan_memory(memory: &LinuxMemory, current: &impl Fn(&str) -> Result<String>) -> Result<Vec<Write>> {
    let mut writes = Vec::new();
    if memory.Swap < 0 {
        writes.push(Write::new("memory.swap.max", "max"));
    } else if memory.Swap > 0 {
        let limit = if memory.Limit > 0 { memory.Limit } else { current("memory.max")?.trim().parse().unwrap_or(0) };
        writes.push(Write::new("memory.swap.max", memory.Swap.saturating_sub(limit).max(0)));
    }
    if memory.Limit != 0 {
        writes.push(Write::new("memory.max", bytes(memory.Limit)));
    }
    if memory.Reservation != 0 {
        writes.push(Write::new("memory.low", bytes(memory.Reservation)));
    }
    Ok(writes)
}

fn plan_cpu(cpu: &LinuxCPU, current: &impl Fn(&str) -> Result<String>) -> Result<Vec<Write>> {
    let mut writes = Vec::new();
    if cpu.Shares != 0 {
        writes.push(Write::new("cpu.weight", weight(cpu.Shares)));
    }
    if cpu.Quota != 0 || cpu.Period != 0 {
        let quota = match cpu.Quota {
            0 => current("cpu.max")?.split_whitespace().next().unwrap_or("max").to_owned(),
            quota => bytes(quota),
        };
        let period = if cpu.Period != 0 { format!(" {}", cpu.Period) } else { String::new() };
        writes.push(Write::new("cpu.max", format!("{quota}{period}")));
    }
    let lists = [("cpuset.cpus", &cpu.Cpus), ("cpuset.mems", &cpu.Mems)];
    writes.extend(lists.into_iter().filter(|(_, list)| !list.is_empty()).map(|(file, list)| Write::new(file, list)));
    Ok(writes)
}

/// Shares 2..=262144 to weight 1..=10000, on a straight line as all runtimes draw it.
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

fn plan_io(io: &LinuxBlockIO) -> Vec<Write> {
    let limits = [
        ("rbps", &io.ThrottleReadBpsDevice),
        ("wbps", &io.ThrottleWriteBpsDevice),
        ("riops", &io.ThrottleReadIOPSDevice),
        ("wiops", &io.ThrottleWriteIOPSDevice),
    ];
    let line = |key: &str, device: &LinuxThrottleDevice| {
        Write::new("io.max", format!("{}:{} {key}={}", device.Major, device.Minor, device.Rate))
    };
    let throttles = limits.iter().flat_map(|(key, devices)| devices.iter().map(move |device| line(key, device)));
    let weight = (io.Weight != 0).then(|| Write { optional: true, ..Write::new("io.bfq.weight", io.Weight) });
    throttles.chain(weight).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writes(resources: &LinuxResources) -> Vec<(String, String)> {
        let current = |file: &str| {
            Ok(match file {
                "cpu.max" => "20000 100000\n",
                "memory.max" => "1000\n",
                _ => "max\n",
            }
            .to_owned())
        };
        plan(resources, &current).unwrap().into_iter().map(|write| (write.file, write.value)).collect()
    }

    fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        expected.iter().map(|(file, value)| ((*file).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn nothing_said_is_nothing_written() {
        let resources = LinuxResources {
            Memory: Some(LinuxMemory::default()).into(),
            CPU: Some(LinuxCPU::default()).into(),
            ..Default::default()
        };
        assert!(writes(&resources).is_empty());
    }

    #[test]
    fn limits_of_version_1_are_refused() {
        let memory = LinuxMemory { Limit: 4096, KernelTCP: 5, ..Default::default() };
        let resources = LinuxResources { Memory: Some(memory).into(), ..Default::default() };
        assert_eq!(refuse(&resources).unwrap_err().code, Code::UNIMPLEMENTED);
        let cpu = LinuxCPU { RealtimePeriod: 5, ..Default::default() };
        assert!(refuse(&LinuxResources { CPU: Some(cpu).into(), ..Default::default() }).is_err());
        assert!(refuse(&LinuxResources::default()).is_ok());
    }

    #[test]
    fn memory_and_swap() {
        let memory = |limit, swap| LinuxResources {
            Memory: Some(LinuxMemory { Limit: limit, Swap: swap, ..Default::default() }).into(),
            ..Default::default()
        };
        assert_eq!(writes(&memory(4096, 6096)), pairs(&[("memory.swap.max", "2000"), ("memory.max", "4096")]));
        assert_eq!(writes(&memory(-1, -1)), pairs(&[("memory.swap.max", "max"), ("memory.max", "max")]));
        assert_eq!(writes(&memory(0, 1500)), pairs(&[("memory.swap.max", "500")]));
        assert_eq!(writes(&memory(4096, 4096)), pairs(&[("memory.swap.max", "0"), ("memory.max", "4096")]));
    }

    #[test]
    fn cpu() {
        let cpu = |quota, period| LinuxResources {
            CPU: Some(LinuxCPU { Quota: quota, Period: period, ..Default::default() }).into(),
            ..Default::default()
        };
        assert_eq!(writes(&cpu(50_000, 100_000)), pairs(&[("cpu.max", "50000 100000")]));
        assert_eq!(writes(&cpu(-1, 0)), pairs(&[("cpu.max", "max")]));
        assert_eq!(writes(&cpu(0, 50_000)), pairs(&[("cpu.max", "20000 50000")]));
    }

    #[test]
    fn shares_span_the_whole_range() {
        assert_eq!([2, 1024, 262_144].map(weight), [1, 39, 10_000]);
        assert_eq!([1, u64::MAX].map(weight), [1, 10_000]);
    }

    #[test]
    fn io_and_pages() {
        let io = LinuxBlockIO {
            Weight: 100,
            ThrottleReadBpsDevice: vec![LinuxThrottleDevice { Major: 8, Minor: 1, Rate: 99, ..Default::default() }],
            ..Default::default()
        };
        let resources = LinuxResources { BlockIO: Some(io).into(), ..Default::default() };
        assert_eq!(writes(&resources), pairs(&[("io.max", "8:1 rbps=99"), ("io.bfq.weight", "100")]));
    }
}
