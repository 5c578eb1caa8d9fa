//! `StatsContainer` from the files of a control group.
//!
//! Owns: the mapping of version 2's names to the message, which has version 1's shape. A file that is not there (a controller that
//! is off) leaves its part zero.

use std::collections::HashMap;
use std::fs;

use super::{pairs, value, Cgroup};
use crate::protocol::agent::{
    BlkioStats, BlkioStatsEntry, CgroupStats, CpuStats, CpuUsage, HugetlbStats, MemoryData, MemoryStats, NetworkStats,
    PidsStats, ThrottlingData,
};

/// Everything the group tells about its use.
pub fn collect(cgroup: &Cgroup) -> CgroupStats {
    let read = |file: &str| cgroup.read(file).unwrap_or_default();
    CgroupStats {
        cpu_stats: Some(cpu(&read("cpu.stat"))).into(),
        memory_stats: Some(memory(&read)).into(),
        pids_stats: Some(PidsStats {
            current: number(&read("pids.current")),
            // No limit is 0 here, as in version 1.
            limit: read("pids.max").trim().parse().unwrap_or(0),
            ..Default::default()
        })
        .into(),
        blkio_stats: Some(io(&read("io.stat"))).into(),
        hugetlb_stats: page_sizes().into_iter().map(|size| (size.clone(), hugetlb(&read, &size))).collect(),
        ..Default::default()
    }
}

fn cpu(stat: &str) -> CpuStats {
    let nanoseconds = |key| value(stat, key).unwrap_or(0).saturating_mul(1000);
    CpuStats {
        cpu_usage: Some(CpuUsage {
            total_usage: nanoseconds("usage_usec"),
            usage_in_kernelmode: nanoseconds("system_usec"),
            usage_in_usermode: nanoseconds("user_usec"),
            ..Default::default()
        })
        .into(),
        throttling_data: Some(ThrottlingData {
            periods: value(stat, "nr_periods").unwrap_or(0),
            throttled_periods: value(stat, "nr_throttled").unwrap_or(0),
            throttled_time: nanoseconds("throttled_usec"),
            ..Default::default()
        })
        .into(),
        ..Default::default()
    }
}

fn memory(read: &impl Fn(&str) -> String) -> MemoryStats {
    let stat = read("memory.stat");
    let events = read("memory.events");
    let owned = |(key, value): (&str, u64)| (key.to_owned(), value);
    let data = |usage: &str, peak: &str, max: &str, events: &str| MemoryData {
        usage: number(&read(usage)),
        max_usage: number(&read(peak)),
        failcnt: value(&read(events), "max").unwrap_or(0),
        limit: limit(&read(max)),
        ..Default::default()
    };
    MemoryStats {
        cache: value(&stat, "file").unwrap_or(0),
        usage: Some(data("memory.current", "memory.peak", "memory.max", "memory.events")).into(),
        swap_usage: Some(data("memory.swap.current", "memory.swap.peak", "memory.swap.max", "memory.swap.events"))
            .into(),
        kernel_usage: Some(MemoryData { usage: value(&stat, "kernel").unwrap_or(0), ..Default::default() }).into(),
        use_hierarchy: true,
        // No line of memory.stat has a name of memory.events; the protocol has no other place for them.
        stats: pairs(&stat).chain(pairs(&events)).map(owned).collect(),
        ..Default::default()
    }
}

/// Lines `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`.
fn io(stat: &str) -> BlkioStats {
    let mut stats = BlkioStats::default();
    for (major, minor, fields) in stat.lines().filter_map(device_line) {
        let entry = |op: &str, key: &str| BlkioStatsEntry {
            major,
            minor,
            op: op.to_owned(),
            value: fields.get(key).copied().unwrap_or(0),
            ..Default::default()
        };
        stats.io_service_bytes_recursive.extend([
            entry("Read", "rbytes"),
            entry("Write", "wbytes"),
            entry("Discard", "dbytes"),
        ]);
        stats.io_serviced_recursive.extend([entry("Read", "rios"), entry("Write", "wios"), entry("Discard", "dios")]);
    }
    stats
}

fn device_line(line: &str) -> Option<(u64, u64, HashMap<&str, u64>)> {
    let mut words = line.split_whitespace();
    let (major, minor) = words.next()?.split_once(':')?;
    let fields =
        words.filter_map(|word| word.split_once('=')).filter_map(|(key, value)| Some((key, value.parse().ok()?)));
    Some((major.parse().ok()?, minor.parse().ok()?, fields.collect()))
}

fn hugetlb(read: &impl Fn(&str) -> String, size: &str) -> HugetlbStats {
    HugetlbStats {
        usage: number(&read(&format!("hugetlb.{size}.current"))),
        failcnt: value(&read(&format!("hugetlb.{size}.events")), "max").unwrap_or(0),
        ..Default::default()
    }
}

/// The sizes of huge pages as control groups name them, `2MB`, `1GB`.
fn page_sizes() -> Vec<String> {
    let entries = fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
    let name = |entry: fs::DirEntry| entry.file_name().into_string().ok();
    entries.filter_map(name).filter_map(|name| page_size(&name)).collect()
}

/// `hugepages-2048kB` is `2MB`.
fn page_size(directory: &str) -> Option<String> {
    let kilobytes: u64 = directory.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
    Some(match kilobytes {
        size if size >= 1 << 20 => format!("{}GB", size >> 20),
        size if size >= 1 << 10 => format!("{}MB", size >> 10),
        size => format!("{size}KB"),
    })
}

fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or(0)
}

/// `max` is the largest number, as version 1 had it.
fn limit(text: &str) -> u64 {
    text.trim().parse().unwrap_or(u64::MAX)
}

/// Counters of the guest's network interfaces, which all containers of the pod share. Loopback is left out.
pub fn network() -> Vec<NetworkStats> {
    let entries = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name != "lo").map(|name| interface(&name)).collect()
}

fn interface(name: &str) -> NetworkStats {
    let counter = |file: &str| {
        number(&fs::read_to_string(format!("/sys/class/net/{name}/statistics/{file}")).unwrap_or_default())
    };
    NetworkStats {
        name: name.to_owned(),
        rx_bytes: counter("rx_bytes"),
        rx_packets: counter("rx_packets"),
        rx_errors: counter("rx_errors"),
        rx_dropped: counter("rx_dropped"),
        tx_bytes: counter("tx_bytes"),
        tx_packets: counter("tx_packets"),
        tx_errors: counter("tx_errors"),
        tx_dropped: counter("tx_dropped"),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_times_are_nanoseconds() {
        let stats = cpu("usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_periods 7\nnr_throttled 1\nthrottled_usec 4\n");
        assert_eq!(stats.cpu_usage.total_usage, 5000);
        assert_eq!(stats.cpu_usage.usage_in_usermode, 3000);
        assert_eq!(stats.throttling_data.throttled_time, 4000);
        assert_eq!(stats.throttling_data.periods, 7);
    }

    #[test]
    fn memory_has_every_line_of_its_stat() {
        let files = HashMap::from([
            ("memory.stat", "anon 10\nfile 20\nkernel 5\ninactive_file 15\n"),
            ("memory.current", "123\n"),
            ("memory.peak", "200\n"),
            ("memory.max", "max\n"),
            ("memory.swap.max", "4096\n"),
            ("memory.events", "low 0\nmax 9\noom_kill 1\n"),
        ]);
        let stats = memory(&|file: &str| files.get(file).copied().unwrap_or_default().to_owned());
        assert_eq!(
            (stats.usage.usage, stats.usage.max_usage, stats.usage.limit, stats.usage.failcnt),
            (123, 200, u64::MAX, 9)
        );
        assert_eq!(stats.swap_usage.limit, 4096);
        assert_eq!(stats.stats["inactive_file"], 15);
        assert_eq!((stats.stats["oom_kill"], stats.stats["max"]), (1, 9));
        assert_eq!((stats.cache, stats.kernel_usage.usage), (20, 5));
    }

    #[test]
    fn io_has_an_entry_per_device_and_operation() {
        let stats = io("254:0 rbytes=4096 wbytes=10 rios=1 wios=2 dbytes=0 dios=0\nnonsense\n8:16 rbytes=1\n");
        assert_eq!(stats.io_service_bytes_recursive.len(), 6);
        let first = &stats.io_service_bytes_recursive[0];
        assert_eq!((first.major, first.minor, first.op.as_str(), first.value), (254, 0, "Read", 4096));
        assert_eq!(stats.io_serviced_recursive[1].value, 2);
    }

    #[test]
    fn page_sizes_are_named_as_in_the_files() {
        assert_eq!(page_size("hugepages-2048kB").as_deref(), Some("2MB"));
        assert_eq!(page_size("hugepages-1048576kB").as_deref(), Some("1GB"));
        assert_eq!(page_size("hugepages-64kB").as_deref(), Some("64KB"));
        assert_eq!(page_size("other"), None);
    }
}
