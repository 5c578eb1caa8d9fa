//! `GetMetrics`: the guest in the text format of Prometheus.

use std::fmt::Write;
use std::fs;

use crate::cgroup::stats;

/// The columns of `/proc/stat`, in clock ticks.
const CPU_MODES: [&str; 8] = ["user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal"];

/// Counters and gauges of the machine, its network and this process.
pub fn text() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let mut text = String::new();
    load(&mut text, &read("/proc/loadavg"));
    memory(&mut text, &read("/proc/meminfo"));
    cpu(&mut text, &read("/proc/stat"));
    network(&mut text);
    agent(&mut text, &read("/proc/self/status"));
    text
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    // Writing to a string cannot fail.
    let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
}

fn sample(text: &mut String, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
    let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}=\"{value}\"")).collect();
    let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
    let _ = writeln!(text, "{name}{labels} {value}");
}

fn load(text: &mut String, loadavg: &str) {
    head(text, "kata_guest_load", "gauge", "Guest system load.");
    for (item, value) in ["load1", "load5", "load15"].into_iter().zip(loadavg.split_whitespace()) {
        sample(text, "kata_guest_load", &[("item", item)], value);
    }
}

fn memory(text: &mut String, meminfo: &str) {
    head(text, "kata_guest_meminfo", "gauge", "Memory of the guest in kB.");
    for line in meminfo.lines() {
        let Some((key, rest)) = line.split_once(':') else { continue };
        let item = key.to_ascii_lowercase().replace(['(', ')'], "_");
        if let Some(value) = rest.split_whitespace().next() {
            sample(text, "kata_guest_meminfo", &[("item", item.trim_end_matches('_'))], value);
        }
    }
}

fn cpu(text: &mut String, stat: &str) {
    head(text, "kata_guest_cpu_time", "counter", "CPU time of the guest in clock ticks.");
    for line in stat.lines().filter(|line| line.starts_with("cpu")) {
        let mut words = line.split_whitespace();
        let name = words.next().unwrap_or("cpu");
        let name = if name == "cpu" { "total" } else { name.trim_start_matches("cpu") };
        for (mode, value) in CPU_MODES.into_iter().zip(words) {
            sample(text, "kata_guest_cpu_time", &[("cpu", name), ("item", mode)], value);
        }
    }
}

fn network(text: &mut String) {
    head(text, "kata_guest_netdev_stat", "counter", "Counters of the guest's network interfaces.");
    for stats in stats::network() {
        let items = [
            ("recv_bytes", stats.rx_bytes),
            ("recv_packets", stats.rx_packets),
            ("recv_errs", stats.rx_errors),
            ("recv_drop", stats.rx_dropped),
            ("xmit_bytes", stats.tx_bytes),
            ("xmit_packets", stats.tx_packets),
            ("xmit_errs", stats.tx_errors),
            ("xmit_drop", stats.tx_dropped),
        ];
        for (item, value) in items {
            sample(text, "kata_guest_netdev_stat", &[("interface", &stats.name), ("item", item)], value);
        }
    }
}

fn agent(text: &mut String, status: &str) {
    let field = |name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value.and_then(|value| value.split_whitespace().next()).and_then(|value| value.parse::<u64>().ok()).unwrap_or(0)
    };
    head(text, "kata_agent_proc_status", "gauge", "The agent's own process; memory in kB.");
    for (item, name) in [("vmrss", "VmRSS"), ("vmsize", "VmSize"), ("threads", "Threads"), ("fdsize", "FDSize")] {
        sample(text, "kata_agent_proc_status", &[("item", item)], field(name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples() {
        let mut text = String::new();
        load(&mut text, "0.50 0.25 0.10 1/100 42\n");
        memory(&mut text, "MemTotal:  2048 kB\nActive(anon):  7 kB\nHugePages_Total: 0\n");
        cpu(&mut text, "cpu  1 2 3 4 5 6 7 8 9 10\ncpu0 1 2 3 4 5 6 7 8 9 10\nintr 5\n");
        for line in [
            "kata_guest_load{item=\"load15\"} 0.10",
            "kata_guest_meminfo{item=\"memtotal\"} 2048",
            "kata_guest_meminfo{item=\"active_anon\"} 7",
            "kata_guest_cpu_time{cpu=\"total\",item=\"steal\"} 8",
            "kata_guest_cpu_time{cpu=\"0\",item=\"idle\"} 4",
            "# TYPE kata_guest_load gauge",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
    }

    #[test]
    fn the_real_files_give_every_family_once() {
        let text = text();
        let types: Vec<&str> = text.lines().filter(|line| line.starts_with("# TYPE")).collect();
        assert_eq!(types.len(), 5);
        assert!(text.contains("kata_agent_proc_status{item=\"vmrss\"} "));
    }
}
