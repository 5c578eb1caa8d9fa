//! The agent as process 1 of a virtual machine: everything that needs control groups, a virtio-serial port or a power switch.
//! Needs QEMU, mksquashfs, busybox-static and a built guest, named by `KATA_GUEST_DIR`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "common/mod.rs"]
#[allow(dead_code)]
mod common;

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use common::machine::{Machine, DISK, HARDWARE};
use common::pod::{code, patience, Pod};
use common::scenarios;
use common::spec::{bind, container, shell, storage};
use kata_agent::protocol::agent::*;
use kata_agent::protocol::oci;
use kata_agent::relay::scanner::HELLO;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use ttrpc::Code;

async fn boot(name: &str) -> (Machine, Pod) {
    let machine = Machine::boot(name, None);
    machine.monitor().await;
    let pod = machine.session(1).await;
    pod.prepare().await;
    (machine, pod)
}

/// A container with its control group to be seen.
fn with_cgroup(id: &str, script: &str) -> CreateContainerRequest {
    let mut request = container(id, shell(script));
    let group = oci::Mount {
        destination: "/sys/fs/cgroup".into(),
        type_: "cgroup".into(),
        source: "cgroup".into(),
        options: vec!["ro".into()],
        ..Default::default()
    };
    request.OCI.as_mut().unwrap().Mounts.push(group);
    request
}

fn limited(mut request: CreateContainerRequest, bytes: i64) -> CreateContainerRequest {
    let memory = oci::LinuxMemory { Limit: bytes, ..Default::default() };
    let cpu = oci::LinuxCPU { Shares: 512, Quota: 50_000, Period: 100_000, ..Default::default() };
    let resources = oci::LinuxResources { Memory: Some(memory).into(), CPU: Some(cpu).into(), ..Default::default() };
    request.OCI.as_mut().unwrap().Linux.as_mut().unwrap().Resources = Some(resources).into();
    request
}

/// One machine, one scenario after the other: a boot costs more than all of them.
#[tokio::test]
async fn every_scenario_of_the_host() {
    let (machine, pod) = boot("scenarios").await;
    macro_rules! run {
        ($($scenario:ident)*) => {
            $(let began = Instant::now();
            scenarios::$scenario(pod.clone()).await;
            println!("{}: {:?}", stringify!($scenario), began.elapsed());)*
        };
    }
    run! {
        pause_holds_the_pods_namespaces
        a_container_joins_anothers_processes
        connections_into_the_pod
        health_and_details
        output_and_exit_code
        many_waiters_before_the_end
        how_long_ago_it_was
        no_byte_is_lost
        output_left_in_the_pipe_outlives_the_process
        standard_input
        a_full_pipe_holds_the_writer_back
        terminals
        execs
        an_exec_is_what_was_asked_for
        a_command_that_is_not_there
        twenty_execs_at_once
        a_child_left_behind_does_not_hold_the_end
        signals
        removing_kills
        hooks
        storages
        requests_that_make_no_sense
    }
    scenarios::network(pod, HARDWARE).await;
    assert!(!machine.console().contains("leaving it to crun"), "crun's FIFO is where it is expected");
}

#[tokio::test]
async fn control_groups() {
    let (_machine, pod) = boot("cgroups").await;
    let script = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max /sys/fs/cgroup/cpu.weight; cat /proc/self/cgroup; sleep 1000";
    pod.launch_with(&limited(with_cgroup("limits", script), 64 << 20)).await;
    let out = pod.read_until("limits", "limits", "0::/").await;
    assert_eq!(out, "67108864\n50000 100000\n20\n0::/\n");
    let memory = oci::LinuxMemory { Limit: 96 << 20, ..Default::default() };
    let cpu = oci::LinuxCPU { Shares: 1024, Quota: 70_000, ..Default::default() };
    let resources = oci::LinuxResources { Memory: Some(memory).into(), CPU: Some(cpu).into(), ..Default::default() };
    let update = UpdateContainerRequest {
        container_id: "limits".into(),
        resources: Some(resources).into(),
        ..Default::default()
    };
    pod.agent.update_container(patience(), &update).await.unwrap();
    let after = pod
        .exec_to_end("limits", "look", "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max /sys/fs/cgroup/cpu.weight")
        .await;
    assert_eq!(after.out, "100663296\n70000 100000\n39\n");
    statistics(&pod).await;
    freezing(&pod).await;
    nothing_survives_sigkill(&pod).await;
    pod.remove("limits").await.unwrap();
}

async fn statistics(pod: &Pod) {
    let stats = pod.stats("limits").await.unwrap();
    let groups = stats.cgroup_stats;
    assert!(groups.cpu_stats.cpu_usage.total_usage > 0);
    assert_eq!(groups.memory_stats.usage.limit, 96 << 20);
    assert!(groups.memory_stats.usage.usage > 0 && groups.memory_stats.stats.contains_key("inactive_file"));
    assert!(groups.pids_stats.current >= 1);
    assert!(stats.network_stats.iter().any(|card| card.name == "eth0"));
}

async fn freezing(pod: &Pod) {
    pod.exec("limits", "ticks", shell("while :; do echo tick; sleep 0.2; done")).await.unwrap();
    pod.read_until("limits", "ticks", "tick").await;
    let pause = PauseContainerRequest { container_id: "limits".into(), ..Default::default() };
    pod.agent.pause_container(patience(), &pause).await.unwrap();
    assert_eq!(code(pod.agent.pause_container(patience(), &pause).await), Code::FAILED_PRECONDITION);
    assert_eq!(code(pod.exec("limits", "x", shell("true")).await), Code::FAILED_PRECONDITION);
    while timeout(Duration::from_secs(1), pod.read("limits", "ticks", false, 0)).await.is_ok() {}
    let resume = ResumeContainerRequest { container_id: "limits".into(), ..Default::default() };
    pod.agent.resume_container(patience(), &resume).await.unwrap();
    pod.read_until("limits", "ticks", "tick").await;
    assert_eq!(code(pod.agent.resume_container(patience(), &resume).await), Code::FAILED_PRECONDITION);
    pod.agent.pause_container(patience(), &pause).await.unwrap();
}

/// Also not what is frozen.
async fn nothing_survives_sigkill(pod: &Pod) {
    pod.signal("limits", "", libc::SIGKILL).await.unwrap();
    assert_eq!(pod.wait("limits", "").await.unwrap(), 137);
    assert_eq!(pod.wait("limits", "ticks").await.unwrap(), 137);
}

#[tokio::test]
async fn an_oom_kill_is_told_before_the_end() {
    let (_machine, pod) = boot("oom").await;
    let script = "read go; busybox dd if=/dev/zero of=/dev/null bs=200M count=1";
    let request = limited(with_cgroup("greedy", script), 24 << 20);
    pod.launch_with(&request).await;
    let oom_request = GetOOMEventRequest::default();
    let event =
        async { (pod.agent.get_oom_event(patience(), &oom_request).await.unwrap().container_id, Instant::now()) };
    let end = async { (pod.wait("greedy", "").await.unwrap(), Instant::now()) };
    let go = async {
        pod.write("greedy", "", b"go\n").await.unwrap();
        pod.close_stdin("greedy", "").await.unwrap();
    };
    let ((container, told), (status, ended), ()) = tokio::join!(event, end, go);
    assert_eq!(container, "greedy");
    assert_eq!(status, 137);
    assert!(told <= ended, "{:?} late", told.saturating_duration_since(ended));
}

#[tokio::test]
async fn a_new_session_takes_over_where_the_old_one_broke() {
    let (machine, pod) = boot("session").await;
    pod.launch("cat", "cat").await;
    pod.write("cat", "cat", b"one\n").await.unwrap();
    pod.read_until("cat", "cat", "one").await;
    let oom_request = GetOOMEventRequest::default();
    let waiting = pod.agent.get_oom_event(patience(), &oom_request);
    let (waited, ()) = tokio::join!(waiting, async { pod.cut() });
    assert!(waited.is_err());
    let mut torn = machine.raw().await;
    torn.write_all(&[0, 0, 0, 200, 0, 0, 0, 1, 1, 0, b'h', b'a', b'l', b'f']).await.unwrap();
    torn.write_all(&[&HELLO[..], &[0x66; 32], &[9; 16]].concat()).await.unwrap();
    let answer = timeout(Duration::from_secs(2), torn.read_u8()).await;
    assert!(answer.is_err(), "a wrong secret gets no answer: {answer:?}");
    drop(torn);
    let pod = machine.session(2).await;
    pod.write("cat", "cat", b"two\n").await.unwrap();
    assert_eq!(pod.read_until("cat", "cat", "two").await, "two\n");
    pod.close_stdin("cat", "cat").await.unwrap();
    assert_eq!(pod.wait("cat", "cat").await.unwrap(), 0);
    assert!(machine.console().contains("session ends"));
}

#[tokio::test]
async fn an_absent_host_costs_the_guest_nothing() {
    let (machine, pod) = boot("absent").await;
    let before = idle_ticks(&pod).await;
    pod.cut();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let pod = machine.session(2).await;
    let idle = idle_ticks(&pod).await - before;
    assert!(idle > 200, "{idle} of 500 ticks idle: the relay is busy waiting for a host");
}

/// Ticks, hundredths of a second, the guest has been idle.
async fn idle_ticks(pod: &Pod) -> u64 {
    let metrics = pod.agent.get_metrics(patience(), &GetMetricsRequest::default()).await.unwrap().metrics;
    let line = metrics.lines().find_map(|line| line.strip_prefix("kata_guest_cpu_time{cpu=\"total\",item=\"idle\"} "));
    line.unwrap().parse().unwrap()
}

#[tokio::test]
async fn time_randomness_and_power() {
    let (mut machine, pod) = boot("power").await;
    pod.launch("clock", "sleep 1000").await;
    let set = SetGuestDateTimeRequest { Sec: 2_000_000_000, Usec: 5, ..Default::default() };
    pod.agent.set_guest_date_time(patience(), &set).await.unwrap();
    let out = pod.exec_to_end("clock", "e", "busybox date +%s").await.out;
    let seconds: u64 = out.trim().parse().unwrap();
    assert!((2_000_000_000..2_000_000_100).contains(&seconds), "{seconds}");
    assert!(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() < 2_000_000_000);
    let reseed = ReseedRandomDevRequest { data: vec![7; 512], ..Default::default() };
    pod.agent.reseed_random_dev(patience(), &reseed).await.unwrap();
    pod.agent.destroy_sandbox(patience(), &DestroySandboxRequest::default()).await.expect("the last reply gets out");
    assert!(machine.end().await.success());
}

#[tokio::test]
async fn cpus_and_memory_that_are_plugged_in() {
    let machine = Machine::boot("hotplug", None);
    let mut monitor = machine.monitor().await;
    let pod = machine.session(1).await;
    pod.prepare().await;
    let slots = monitor.run("query-hotpluggable-cpus", json!({})).await;
    let free = slots.as_array().unwrap().iter().find(|slot| slot.get("qom-path").is_none()).unwrap();
    let mut device = free["props"].clone();
    device["driver"] = free["type"].clone();
    device["id"] = "cpu1".into();
    let online = OnlineCPUMemRequest { wait: true, nb_cpus: 1, cpu_only: true, ..Default::default() };
    // Asked for before it is there: the agent waits for it.
    let online = pod.agent.online_cpu_mem(patience(), &online);
    let (online, _) = tokio::join!(online, monitor.run("device_add", device));
    online.unwrap();
    monitor.run("object-add", json!({"qom-type": "memory-backend-ram", "id": "ram1", "size": 268_435_456})).await;
    monitor.run("device_add", json!({"driver": "pc-dimm", "id": "dimm1", "memdev": "ram1"})).await;
    let details = GuestDetailsRequest { mem_block_size: true, ..Default::default() };
    let block = pod.agent.get_guest_details(patience(), &details).await.unwrap().mem_block_size_bytes;
    assert_eq!(block, 128 << 20);
    // The kernel adds the blocks on its own time; there is no number in the request to wait for.
    let memory = OnlineCPUMemRequest::default();
    let mut total = 0;
    for _ in 0..50 {
        pod.agent.online_cpu_mem(patience(), &memory).await.unwrap();
        let metrics = pod.agent.get_metrics(patience(), &GetMetricsRequest::default()).await.unwrap().metrics;
        let line = metrics.lines().find_map(|line| line.strip_prefix("kata_guest_meminfo{item=\"memtotal\"} "));
        total = line.unwrap().parse::<u64>().unwrap();
        if total > 600 << 10 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(total > 600 << 10, "{total} kB");
    let out = pod.run("count", "grep -c ^processor /proc/cpuinfo").await.out;
    assert_eq!(out, "2\n");
}

#[tokio::test]
async fn a_disk_by_its_pci_path() {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("disk-{}", std::process::id()));
    std::fs::create_dir_all(directory.join("content")).unwrap();
    std::fs::write(directory.join("content/file"), "from the disk\n").unwrap();
    let image = directory.join("image");
    let made = Command::new("mksquashfs").arg(directory.join("content")).arg(&image).arg("-quiet").output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let machine = Machine::boot("disk", Some(&image));
    machine.monitor().await;
    let pod = machine.session(1).await;
    pod.prepare().await;
    let mount_point = "/run/kata-containers/sandbox/storage/disk";
    let mut request = container("disk", shell("cat /disk/file; stat -c %F /dev/given; sleep 1000"));
    request.storages =
        vec![Storage { source: DISK.into(), fstype: "squashfs".into(), ..storage("blk", mount_point, &["ro"]) }];
    request.devices = vec![Device {
        type_: "blk".into(),
        id: DISK.into(),
        container_path: "/dev/given".into(),
        ..Default::default()
    }];
    request.OCI.as_mut().unwrap().Mounts.push(bind(mount_point, "/disk"));
    pod.launch_with(&request).await;
    let out = pod.read_until("disk", "disk", "special").await;
    assert!(out.starts_with("from the disk\nblock special"), "{out}");
    pod.remove("disk").await.unwrap();
    let mut absent = container("absent", shell("true"));
    absent.storages =
        vec![Storage { source: "1d".into(), fstype: "squashfs".into(), ..storage("blk", "/run/absent", &[]) }];
    assert_eq!(code(pod.create(&absent).await), Code::DEADLINE_EXCEEDED);
    std::fs::remove_dir_all(&directory).unwrap();
}
