//! What every agent must do, wherever it runs. Each scenario uses containers of its own and removes them.

use std::time::{Duration, Instant};

use futures::future::join_all;
use kata_agent::protocol::agent::*;
use kata_agent::protocol::health::health_check_response::ServingStatus;
use kata_agent::protocol::health::CheckRequest;
use kata_agent::protocol::oci;
use ttrpc::Code;

use super::pod::{code, message, patience, Outcome, Pod};
use super::spec::{bind, container, process, shell, storage, strings, ROOTFS};

fn said(status: i32, out: &str) -> Outcome {
    Outcome { status, out: out.into(), err: String::new() }
}

pub async fn health_and_details(pod: Pod) {
    let check = pod.health.check(patience(), &CheckRequest::default()).await.unwrap();
    assert_eq!(check.status.enum_value(), Ok(ServingStatus::SERVING));
    let version = pod.health.version(patience(), &CheckRequest::default()).await.unwrap();
    assert!(!version.agent_version.is_empty());
    let request = GuestDetailsRequest { mem_block_size: true, mem_hotplug_probe: true, ..Default::default() };
    let details = pod.agent.get_guest_details(patience(), &request).await.unwrap();
    assert!(details.agent_details.storage_handlers.contains(&"virtio-fs".to_owned()));
    let metrics = pod.agent.get_metrics(patience(), &GetMetricsRequest::default()).await.unwrap().metrics;
    assert!(metrics.contains("kata_guest_meminfo{item=\"memtotal\"}"));
}

pub async fn output_and_exit_code(pod: Pod) {
    pod.launch("life", "echo to-out; echo to-err >&2; exit 7").await;
    let outcome = pod.outcome("life", "life").await;
    assert_eq!(outcome, Outcome { status: 7, out: "to-out\n".into(), err: "to-err\n".into() });
    assert_eq!(pod.wait("life", "").await.unwrap(), 7, "a repeated wait gets the same answer");
    assert_eq!(pod.read("life", "life", false, 0).await, b"", "the end is final");
    pod.remove("life").await.unwrap();
    assert_eq!(code(pod.wait("life", "life").await), Code::NOT_FOUND);
    assert_eq!(code(pod.remove("life").await), Code::NOT_FOUND);
}

pub async fn many_waiters_before_the_end(pod: Pod) {
    pod.launch("waiters", "cat; exit 3").await;
    let waiting = join_all((0..5).map(|_| pod.wait("waiters", "waiters")));
    let (statuses, closed) = tokio::join!(waiting, pod.close_stdin("waiters", "waiters"));
    closed.unwrap();
    assert!(statuses.into_iter().all(|status| status.unwrap() == 3));
    pod.remove("waiters").await.unwrap();
}

pub async fn how_long_ago_it_was(pod: Pod) {
    pod.launch("ago", "read line; exit 3").await;
    let began = Instant::now();
    let (first, closed) = tokio::join!(pod.ended("ago", "ago"), pod.close_stdin("ago", "ago"));
    closed.unwrap();
    let whole = u64::try_from(began.elapsed().as_nanos()).unwrap();
    let first = first.unwrap().ago;
    assert!((1..=whole).contains(&first), "{first} of {whole} ns: it ended after it was asked for");
    tokio::time::sleep(Duration::from_millis(300)).await;
    let later = pod.ended("ago", "ago").await.unwrap();
    let whole = u64::try_from(began.elapsed().as_nanos()).unwrap();
    assert_eq!(later.status, 3);
    assert!((first + 250_000_000..=whole).contains(&later.ago), "{first}, then {} of {whole} ns", later.ago);
    pod.remove("ago").await.unwrap();
}

pub async fn no_byte_is_lost(pod: Pod) {
    let outcome = pod.run("bytes", "seq 1 200000; exit 9").await;
    let expected: String = (1..=200_000).map(|number| format!("{number}\n")).collect();
    assert_eq!(outcome.status, 9);
    assert!(outcome.out == expected, "{} of {} bytes", outcome.out.len(), expected.len());
}

pub async fn output_left_in_the_pipe_outlives_the_process(pod: Pod) {
    pod.launch("late", "seq 1 5000; exit 4").await;
    assert_eq!(pod.wait("late", "late").await.unwrap(), 4);
    let expected: String = (1..=5000).map(|number| format!("{number}\n")).collect();
    assert_eq!(pod.read("late", "late", false, 10).await, &expected.as_bytes()[..10], "as much as was asked for");
    assert_eq!(pod.read_all("late", "late", false).await, &expected[10..]);
    pod.remove("late").await.unwrap();
}

pub async fn standard_input(pod: Pod) {
    pod.launch("stdin", "cat; sleep 1000").await;
    assert_eq!(pod.write("stdin", "stdin", b"hello\n").await.unwrap(), 6);
    assert_eq!(pod.read_until("stdin", "stdin", "\n").await, "hello\n");
    assert_eq!(pod.write("stdin", "stdin", b"").await.unwrap(), 0, "empty data closes");
    pod.close_stdin("stdin", "stdin").await.unwrap();
    assert_eq!(code(pod.write("stdin", "stdin", b"x").await), Code::FAILED_PRECONDITION);
    pod.remove("stdin").await.unwrap();
}

pub async fn a_full_pipe_holds_the_writer_back(pod: Pod) {
    pod.launch("full", "sleep 1; wc -c").await;
    let data = vec![b'x'; 1 << 20];
    let began = Instant::now();
    assert_eq!(pod.write("full", "full", &data).await.unwrap(), 1 << 20);
    assert!(began.elapsed() > Duration::from_millis(500), "the write waited for the reader");
    pod.close_stdin("full", "full").await.unwrap();
    assert_eq!(pod.outcome("full", "full").await, said(0, "1048576\n"));
    assert_eq!(code(pod.write("full", "full", b"x").await), Code::FAILED_PRECONDITION);
    pod.close_stdin("full", "full").await.unwrap();
    pod.remove("full").await.unwrap();
}

pub async fn terminals(pod: Pod) {
    let mut request = container("tty", shell("tty; read line; stty size; echo got $line; exit 5"));
    let process = request.OCI.as_mut().unwrap().Process.as_mut().unwrap();
    process.Terminal = true;
    process.ConsoleSize = Some(oci::Box { Height: 30, Width: 100, ..Default::default() }).into();
    pod.launch_with(&request).await;
    pod.read_until("tty", "tty", "/dev/pts/0\r\n").await;
    pod.resize("tty", 40, 120).await.unwrap();
    pod.close_stdin("tty", "tty").await.unwrap();
    pod.write("tty", "tty", b"abc\r").await.unwrap();
    let outcome = pod.outcome("tty", "tty").await;
    assert_eq!(outcome, said(5, "abc\r\n40 120\r\ngot abc\r\n"));
    pod.remove("tty").await.unwrap();
    pod.launch("no-tty", "sleep 1000").await;
    assert_eq!(code(pod.resize("no-tty", 1, 1).await), Code::UNAVAILABLE);
    pod.remove("no-tty").await.unwrap();
}

pub async fn execs(pod: Pod) {
    pod.launch("execs", "sleep 1000").await;
    assert_eq!(pod.exec_to_end("execs", "e1", "echo $FROM; exit 6").await, said(6, "container\n"));
    assert_eq!(pod.wait("execs", "e1").await.unwrap(), 6);
    assert_eq!(
        pod.exec_to_end("execs", "e1", "echo again").await,
        said(0, "again\n"),
        "its end was told: the name is free"
    );
    pod.exec("execs", "untold", shell("echo once")).await.unwrap();
    assert_eq!(pod.read_all("execs", "untold", false).await, "once\n");
    assert_eq!(code(pod.exec("execs", "untold", shell("true")).await), Code::ALREADY_EXISTS, "a request made again");
    assert_eq!(code(pod.exec("execs", "execs", shell("true")).await), Code::ALREADY_EXISTS);
    let mut bare = shell("echo $FROM; pwd; id -u");
    (bare.Env, bare.User, bare.Capabilities) = (Vec::new(), None.into(), None.into());
    pod.exec("execs", "bare", bare).await.unwrap();
    assert_eq!(pod.outcome("execs", "bare").await.out, "container\n/\n0\n");
    pod.remove("execs").await.unwrap();
    assert_eq!(code(pod.exec("execs", "e2", shell("true")).await), Code::NOT_FOUND);
}

pub async fn an_exec_is_what_was_asked_for(pod: Pod) {
    pod.launch("asked", "sleep 1000").await;
    let mut wanted =
        shell("id -u; id -g; id -G; pwd; ulimit -n; echo $A; grep -E 'CapEff|NoNewPrivs' /proc/self/status");
    wanted.User =
        Some(oci::User { UID: 1000, GID: 1001, AdditionalGids: vec![2000, 3000], ..Default::default() }).into();
    wanted.Cwd = "/work".into();
    wanted.Env = strings(&["PATH=/bin", "A=b c"]);
    wanted.Rlimits =
        vec![oci::POSIXRlimit { Type: "RLIMIT_NOFILE".into(), Hard: 300, Soft: 200, ..Default::default() }];
    wanted.NoNewPrivileges = true;
    pod.exec("asked", "e", wanted).await.unwrap();
    let outcome = pod.outcome("asked", "e").await;
    let expected = "1000\n1001\n1001 2000 3000\n/work\n200\nb c\nCapEff:\t0000000000000000\nNoNewPrivs:\t1\n";
    assert_eq!(outcome, said(0, expected));
    let mut capable = shell("grep CapEff /proc/self/status");
    let kill = strings(&["CAP_KILL"]);
    capable.Capabilities = Some(oci::LinuxCapabilities {
        Bounding: kill.clone(),
        Effective: kill.clone(),
        Permitted: kill,
        ..Default::default()
    })
    .into();
    pod.exec("asked", "capable", capable).await.unwrap();
    assert_eq!(pod.outcome("asked", "capable").await.out, "CapEff:\t0000000000000020\n");
    pod.remove("asked").await.unwrap();
}

pub async fn a_command_that_is_not_there(pod: Pod) {
    let request = container("missing", process(&["/bin/no-such-command"]));
    let failure = pod.create(&request).await;
    assert!(message(failure.clone()).contains("no-such-command"), "crun's own words: {failure:?}");
    assert_eq!(code(failure), Code::INVALID_ARGUMENT);
    assert_eq!(code(pod.start("missing").await), Code::NOT_FOUND, "nothing is left");
    assert_eq!(pod.run("missing", "echo here").await, said(0, "here\n"), "and the name is free");
    pod.launch("execs2", "sleep 1000").await;
    let failure = pod.exec("execs2", "e", process(&["no-such-command"])).await;
    assert!(message(failure.clone()).contains("no-such-command"));
    assert_eq!(code(failure), Code::INVALID_ARGUMENT);
    let mut nowhere = shell("true");
    nowhere.Cwd = "/no/such/directory".into();
    assert_eq!(code(pod.exec("execs2", "e", nowhere).await), Code::INVALID_ARGUMENT);
    assert_eq!(pod.exec_to_end("execs2", "e", "echo here").await, said(0, "here\n"), "the name is free");
    pod.remove("execs2").await.unwrap();
}

pub async fn twenty_execs_at_once(pod: Pod) {
    pod.launch("twenty", "sleep 1000").await;
    let one = |number: i32| {
        let pod = pod.clone();
        async move { pod.exec_to_end("twenty", &format!("e{number}"), &format!("echo {number}; exit {number}")).await }
    };
    for (number, outcome) in join_all((0..20).map(one)).await.into_iter().enumerate() {
        assert_eq!(outcome, said(number as i32, &format!("{number}\n")));
    }
    pod.remove("twenty").await.unwrap();
}

pub async fn a_child_left_behind_does_not_hold_the_end(pod: Pod) {
    pod.launch("holder", "sleep 1000").await;
    let began = Instant::now();
    assert_eq!(pod.exec_to_end("holder", "e", "sleep 1000 & echo done").await, said(0, "done\n"));
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    pod.remove("holder").await.unwrap();
}

pub async fn signals(pod: Pod) {
    pod.launch("deaf", "while :; do sleep 1000; done").await;
    pod.signal("deaf", "", libc::SIGTERM).await.unwrap();
    assert_eq!(pod.wait("deaf", "deaf").await.unwrap(), 137, "who does not handle SIGTERM is killed");
    assert_eq!(code(pod.signal("deaf", "deaf", libc::SIGTERM).await), Code::NOT_FOUND);
    pod.signal("deaf", "", libc::SIGKILL).await.unwrap();
    pod.remove("deaf").await.unwrap();
    pod.launch("polite", "trap 'exit 42' TERM; echo ready; while :; do sleep 0.1; done").await;
    pod.read_until("polite", "polite", "ready").await;
    pod.exec("polite", "e", shell("echo ready; sleep 1000")).await.unwrap();
    pod.read_until("polite", "e", "ready").await;
    pod.signal("polite", "e", libc::SIGUSR1).await.unwrap();
    assert_eq!(pod.wait("polite", "e").await.unwrap(), 128 + libc::SIGUSR1);
    assert_eq!(code(pod.signal("polite", "", 999).await), Code::INVALID_ARGUMENT);
    assert_eq!(code(pod.signal("polite", "unknown", libc::SIGTERM).await), Code::NOT_FOUND);
    pod.signal("polite", "", libc::SIGTERM).await.unwrap();
    assert_eq!(pod.wait("polite", "").await.unwrap(), 42);
    assert_eq!(code(pod.exec("polite", "late", shell("true")).await), Code::FAILED_PRECONDITION);
    pod.remove("polite").await.unwrap();
}

pub async fn removing_kills(pod: Pod) {
    pod.launch("running", "sleep 1000").await;
    pod.exec("running", "e", shell("sleep 1000")).await.unwrap();
    let (of_init, of_exec, removed) =
        tokio::join!(pod.wait("running", ""), pod.wait("running", "e"), pod.remove("running"));
    removed.unwrap();
    assert_eq!((of_init.unwrap(), of_exec.unwrap()), (137, 137));
    let request = container("created", shell("true"));
    pod.create(&request).await.unwrap();
    assert_eq!(code(pod.create(&request).await), Code::ALREADY_EXISTS);
    pod.remove("created").await.unwrap();
    assert_eq!(pod.run("created", "echo again").await, said(0, "again\n"));
}

/// Must be the first container of the pod, whose PID namespace is the pod's.
pub async fn pause_holds_the_pods_namespaces(pod: Pod) {
    let mut request = container("pause", process(&["/pause"]));
    let annotations = &mut request.OCI.as_mut().unwrap().Annotations;
    annotations.insert("io.kubernetes.cri.container-type".into(), "sandbox".into());
    pod.launch_with(&request).await;
    assert_eq!(code(pod.exec("pause", "e", shell("true")).await), Code::FAILED_PRECONDITION);
    let mut sharing = container("sharing", shell("hostname; ps -o pid,args | head -n 2; ls /proc/1/root; sleep 1000"));
    sharing.sandbox_pidns = true;
    pod.launch_with(&sharing).await;
    let out = pod.read_until("sharing", "sharing", "/pause").await;
    assert!(out.starts_with("pod-under-test\n"), "the pod's host name: {out}");
    assert!(out.contains("    1 /pause"), "process 1 is the pause: {out}");
    let refused = pod.read("sharing", "sharing", true, 0).await;
    assert!(String::from_utf8_lossy(&refused).contains("Permission denied"), "its root is not to be seen");
    pod.exec("sharing", "orphan", shell("(sleep 0.1; exit 0) & exit 0")).await.unwrap();
    assert_eq!(pod.wait("sharing", "orphan").await.unwrap(), 0);
    pod.remove("sharing").await.unwrap();
    pod.signal("pause", "", libc::SIGTERM).await.unwrap();
    assert_eq!(pod.outcome("pause", "pause").await, said(0, ""));
    pod.remove("pause").await.unwrap();
}

/// As a debugger joins the container that it looks at.
pub async fn a_container_joins_anothers_processes(pod: Pod) {
    pod.launch("target", "echo up; sleep 4321; true").await;
    assert_eq!(pod.read_until("target", "target", "up").await, "up\n");
    let debugger = |id: &str, target: &str| {
        let mut request = container(id, shell("ps -o pid,args; sleep 1000"));
        let namespaces = &mut request.OCI.as_mut().unwrap().Linux.as_mut().unwrap().Namespaces;
        namespaces.retain(|namespace| namespace.Type != "pid");
        let path = format!("container:{target}");
        namespaces.push(oci::LinuxNamespace { Type: "pid".into(), Path: path, ..Default::default() });
        request
    };
    pod.launch_with(&debugger("debugger", "target")).await;
    let out = pod.read_until("debugger", "debugger", "sleep 4321").await;
    assert!(out.contains("    1 /bin/sh -c echo up"), "process 1 is the target's: {out}");
    assert_eq!(code(pod.create(&debugger("lost", "nobody")).await), Code::NOT_FOUND);
    pod.remove("debugger").await.unwrap();
    assert_eq!(pod.exec_to_end("target", "alive", "echo here").await, said(0, "here\n"));
    pod.launch_with(&debugger("again", "target")).await;
    pod.signal("target", "", libc::SIGKILL).await.unwrap();
    assert_eq!(pod.wait("target", "target").await.unwrap(), 137);
    assert_eq!(pod.wait("again", "again").await.unwrap(), 137, "a PID namespace ends with its first process");
    assert_eq!(code(pod.create(&debugger("late", "target")).await), Code::FAILED_PRECONDITION);
    for id in ["again", "target"] {
        pod.remove(id).await.unwrap();
    }
}

pub async fn connections_into_the_pod(pod: Pod) {
    pod.launch_with(&container("pause", process(&["/pause"]))).await;
    let serve = "echo found > /tmp/index.html; echo up; exec busybox httpd -f -p 127.0.0.1:8123 -h /tmp";
    pod.launch("server", serve).await;
    assert_eq!(pod.read_until("server", "server", "up").await, "up\n");
    let connect = |port: &str| process(&["/pause", "connect", port]);
    // The server says that it is up a moment before it listens.
    let outcome = loop {
        pod.exec("pause", "c", connect("8123")).await.unwrap();
        let _ = pod.write("pause", "c", b"GET / HTTP/1.0\r\n\r\n").await;
        let outcome = pod.outcome("pause", "c").await;
        if outcome.status == 0 {
            break outcome;
        }
    };
    assert!(outcome.out.starts_with("HTTP/1") && outcome.out.ends_with("found\n"), "{outcome:?}");
    pod.exec("pause", "nobody", connect("8124")).await.unwrap();
    let refused = pod.outcome("pause", "nobody").await;
    assert_eq!((refused.status, refused.out.as_str()), (1, ""));
    assert_eq!(code(pod.exec("pause", "none", connect("0")).await), Code::FAILED_PRECONDITION);
    pod.remove("server").await.unwrap();
    pod.remove("pause").await.unwrap();
}

pub async fn hooks(pod: Pod) {
    let mut request = container("hooks", shell("ls /work; cat"));
    let hook = |name: &str| oci::Hook {
        Path: "/bin/busybox".into(),
        // A hook that does not read the state it is given fails whenever it ends before crun has written that.
        Args: strings(&["busybox", "sh", "-c", &format!("cat > /dev/null; touch {ROOTFS}/work/{name}")]),
        ..Default::default()
    };
    let hooks =
        oci::Hooks { CreateRuntime: vec![hook("made")], Poststart: vec![hook("started")], ..Default::default() };
    request.OCI.as_mut().unwrap().Hooks = Some(hooks).into();
    pod.launch_with(&request).await;
    pod.close_stdin("hooks", "hooks").await.unwrap();
    assert!(pod.outcome("hooks", "hooks").await.out.starts_with("made\n"));
    pod.remove("hooks").await.unwrap();
    assert_eq!(pod.run("hooked", "ls /work").await, said(0, "made\nstarted\n"));
}

pub async fn storages(pod: Pod) {
    let mount_point = "/run/kata-containers/sandbox/ephemeral/scratch";
    let mut request =
        container("storages", shell("df -k /shm /scratch | tr -s ' '; stat -c '%a %g' /scratch /plain; hostname"));
    request.storages = vec![
        storage("ephemeral", mount_point, &["size=3145728", "mode=0700", "fsgid=2000"]),
        storage("local", "/run/kata-containers/sandbox/local/plain", &["mode=0711"]),
    ];
    request.storages[0].fstype = "tmpfs".into();
    let mounts = &mut request.OCI.as_mut().unwrap().Mounts;
    mounts.push(bind("/run/kata-containers/sandbox/shm", "/shm"));
    mounts.push(bind(mount_point, "/scratch"));
    mounts.push(bind("/run/kata-containers/sandbox/local/plain", "/plain"));
    pod.launch_with(&request).await;
    let out = pod.outcome("storages", "storages").await.out;
    assert!(out.contains(" 2048 ") && out.contains(" 3072 "), "sizes: {out}");
    assert!(out.contains("2770 2000\n711 0\n"), "modes and groups: {out}");
    assert!(out.ends_with("pod-under-test\n"));
    pod.remove("storages").await.unwrap();
    let larger = UpdateEphemeralMountsRequest {
        storages: vec![storage("ephemeral", "/run/kata-containers/sandbox/shm", &["size=4194304"])],
        ..Default::default()
    };
    pod.agent.update_ephemeral_mounts(patience(), &larger).await.unwrap();
    let mut after = container("after", shell("df -k /shm | tr -s ' '"));
    after.OCI.as_mut().unwrap().Mounts.push(bind("/run/kata-containers/sandbox/shm", "/shm"));
    pod.launch_with(&after).await;
    assert!(pod.outcome("after", "after").await.out.contains(" 4096 "));
    pod.remove("after").await.unwrap();
}

pub async fn requests_that_make_no_sense(pod: Pod) {
    for id in ["", "../x", "a/b", "shared", "-x"] {
        assert_eq!(code(pod.create(&container(id, shell("true"))).await), Code::INVALID_ARGUMENT, "{id:?}");
    }
    assert_eq!(code(pod.create(&container("no-args", process(&[]))).await), Code::INVALID_ARGUMENT);
    let mut unknown = container("driver", shell("true"));
    unknown.storages = vec![storage("9p", "/run/x", &[])];
    assert_eq!(code(pod.create(&unknown).await), Code::INVALID_ARGUMENT);
    let mut rootless = container("rootless", shell("true"));
    rootless.OCI.as_mut().unwrap().Root.as_mut().unwrap().Path = "/no/such/root".into();
    assert_eq!(code(pod.create(&rootless).await), Code::INVALID_ARGUMENT);
    assert_eq!(code(pod.start("unknown").await), Code::NOT_FOUND);
    assert_eq!(code(pod.stats("unknown").await), Code::NOT_FOUND);
    assert_eq!(
        code(pod.agent.create_sandbox(patience(), &CreateSandboxRequest::default()).await),
        Code::ALREADY_EXISTS
    );
    assert_eq!(code(pod.agent.set_policy(patience(), &SetPolicyRequest::default()).await), Code::UNIMPLEMENTED);
    pod.launch("exec-ids", "sleep 1000").await;
    for id in ["", "../x", "a b"] {
        assert_eq!(code(pod.exec("exec-ids", id, shell("true")).await), Code::INVALID_ARGUMENT, "{id:?}");
    }
    assert_eq!(code(pod.start("exec-ids").await), Code::FAILED_PRECONDITION);
    pod.remove("exec-ids").await.unwrap();
}

/// The interface with this hardware address gets a name, addresses and routes.
pub async fn network(pod: Pod, hardware: &str) {
    use kata_agent::protocol::types::{ARPNeighbor, IPAddress, Interface, Route};
    let address =
        |address: &str, mask: &str| IPAddress { address: address.into(), mask: mask.into(), ..Default::default() };
    let mut interface = Interface {
        device: "eth0".into(),
        name: "eth0".into(),
        IPAddresses: vec![address("198.51.100.9", "24"), address("fd00:9::5", "64")],
        mtu: 1400,
        hwAddr: hardware.into(),
        ..Default::default()
    };
    for own in ["198.51.100.9", "198.51.100.5"] {
        interface.IPAddresses[0].address = own.into();
        let request = UpdateInterfaceRequest { interface: Some(interface.clone()).into(), ..Default::default() };
        pod.agent.update_interface(patience(), &request).await.unwrap();
    }
    let listed = pod.agent.list_interfaces(patience(), &ListInterfacesRequest::default()).await.unwrap().Interfaces;
    let found = listed.iter().find(|found| found.hwAddr == hardware).unwrap();
    assert_eq!((found.name.as_str(), found.mtu), ("eth0", 1400));
    let v4: Vec<_> = found.IPAddresses.iter().filter(|found| !found.address.contains(':')).cloned().collect();
    assert_eq!(v4, [address("198.51.100.5", "24")], "the old address is gone");
    let route = |dest: &str, gateway: &str| Route {
        dest: dest.into(),
        gateway: gateway.into(),
        device: "eth0".into(),
        ..Default::default()
    };
    let mut wanted = vec![route("192.0.2.0/24", "203.0.113.7"), route("", "198.51.100.1"), route("203.0.113.0/24", "")];
    wanted[2].scope = libc::RT_SCOPE_LINK.into();
    for _ in 0..2 {
        let routes = Routes { Routes: wanted.clone(), ..Default::default() };
        let request = UpdateRoutesRequest { routes: Some(routes).into(), ..Default::default() };
        let now = pod.agent.update_routes(patience(), &request).await.unwrap().Routes;
        for route in &wanted {
            let there = now
                .iter()
                .any(|found| found.dest == route.dest && found.gateway == route.gateway && found.device == "eth0");
            assert!(there, "{route:?} in {now:?}");
        }
    }
    let neighbour = ARPNeighbor {
        toIPAddress: Some(address("198.51.100.1", "")).into(),
        device: "eth0".into(),
        lladdr: "02:00:00:00:00:99".into(),
        state: 0x80,
        ..Default::default()
    };
    let neighbors = ARPNeighbors { ARPNeighbors: vec![neighbour], ..Default::default() };
    let request = AddARPNeighborsRequest { neighbors: Some(neighbors).into(), ..Default::default() };
    pod.agent.add_arp_neighbors(patience(), &request).await.unwrap();
    let gone = Interface { hwAddr: "02:00:00:00:00:fe".into(), name: "x".into(), ..Default::default() };
    let request = UpdateInterfaceRequest { interface: Some(gone).into(), ..Default::default() };
    assert_eq!(code(pod.agent.update_interface(patience(), &request).await), Code::NOT_FOUND);
    let table = pod.run("six", "cat /proc/net/if_inet6").await.out;
    let line = table.lines().find(|line| line.starts_with("fd000009")).unwrap_or_default();
    let flags = line.split_whitespace().nth(4).map(|flags| u32::from_str_radix(flags, 16).unwrap());
    assert_eq!(flags.map(|flags| flags & libc::IFA_F_TENTATIVE), Some(0), "usable at once: {table}");
    let neighbours = pod.run("arp", "cat /proc/net/arp").await.out;
    let gateway = neighbours.lines().find(|line| line.starts_with("198.51.100.1 ")).unwrap_or_default();
    assert!(gateway.contains("02:00:00:00:00:99"), "the neighbour is known: {neighbours}");
}
