//! A virtual machine with the agent as its first process, reached over virtio-serial.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use kata_agent::relay::scanner::{ACK, HELLO};
use serde_json::{json, Value};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::pod::Pod;

/// Where a built guest lies (`kata-shimd guest build`).
const GUEST: &str = "KATA_GUEST_DIR";
const PARAMETERS: &str =
    "root=/dev/vda rootfstype=squashfs ro console=hvc0 quiet panic=1 no_timer_check net.ifnames=0 \
    reboot=k cgroup_no_v1=all systemd.unified_cgroup_hierarchy=1 agent.log=debug";
/// The guest's network card.
pub const HARDWARE: &str = "02:00:00:00:00:32";
/// The PCI path of the second disk.
pub const DISK: &str = "1e";
const SECRET: [u8; 32] = [0x42; 32];

/// A running QEMU; killed when dropped.
pub struct Machine {
    process: Child,
    directory: PathBuf,
}

impl Machine {
    /// Boots; `disk` is a squashfs image. Returns before the guest is up.
    pub fn boot(name: &str, disk: Option<&Path>) -> Self {
        let directory =
            PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("machine-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let guest = PathBuf::from(std::env::var(GUEST).unwrap_or_else(|_| panic!("{GUEST} names a built guest")));
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(
            "-machine q35,accel=tcg -cpu max -m 512M,slots=2,maxmem=1G -smp 1,maxcpus=2 -nodefaults -no-user-config"
                .split(' '),
        )
        .args("-nographic -vga none --no-reboot -device virtio-serial-pci".split(' '))
        .args(["-append", PARAMETERS, "-kernel"])
        .arg(guest.join("vmlinuz"))
        .arg("-initrd")
        .arg(guest.join("initrd.img"));
        qemu.args(drive("root", &guest.join("rootfs.img"), "0x10"));
        qemu.args(disk.into_iter().flat_map(|path| drive("data", path, "0x1e")));
        qemu.args([
            "-netdev",
            "user,id=net,restrict=on",
            "-device",
            &format!("virtio-net-pci,netdev=net,mac={HARDWARE}"),
        ]);
        qemu.args(["-chardev", &format!("file,id=console,path={}", directory.join("console").display())]);
        qemu.args(["-device", "virtconsole,chardev=console"]);
        qemu.args([
            "-chardev",
            &format!("socket,id=agent,server=on,wait=off,path={}", directory.join("agent.sock").display()),
        ]);
        qemu.args(["-device", "virtserialport,chardev=agent,name=org.kata-shimd.agent.0"]);
        // QEMU makes its sockets before it answers here, so connecting waits for nothing else.
        qemu.args(["-qmp", &format!("unix:{},server=on,wait=on", directory.join("qmp.sock").display())]);
        let process = qemu.stdin(Stdio::null()).spawn().expect("QEMU is installed");
        Self { process, directory }
    }

    async fn socket(&self, name: &str) -> UnixStream {
        let path = self.directory.join(name);
        let connect = async {
            loop {
                match UnixStream::connect(&path).await {
                    Ok(stream) => return stream,
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        };
        timeout(Duration::from_secs(10), connect).await.unwrap_or_else(|_| panic!("QEMU has no {name}"))
    }

    /// The monitor; QEMU waits for it before it starts the guest.
    pub async fn monitor(&self) -> Monitor {
        let mut monitor = Monitor(BufReader::new(self.socket("qmp.sock").await));
        monitor.line().await;
        monitor.run("qmp_capabilities", json!({})).await;
        monitor
    }

    /// Begins a session on a new connection.
    pub async fn session(&self, session: u8) -> Pod {
        let mut stream = self.socket("agent.sock").await;
        shake_hands(&mut stream, &SECRET, session).await;
        Pod::new(stream)
    }

    /// A connection on which nothing was said.
    pub async fn raw(&self) -> UnixStream {
        self.socket("agent.sock").await
    }

    /// Waits for the machine to end by itself.
    pub async fn end(&mut self) -> ExitStatus {
        let wait = async {
            loop {
                match self.process.try_wait().unwrap() {
                    Some(status) => return status,
                    None => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        };
        timeout(Duration::from_secs(30), wait).await.expect("the machine ends")
    }

    pub fn console(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.directory.join("console")).unwrap_or_default()).into_owned()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("the console:\n{}", self.console());
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn drive(id: &str, path: &Path, slot: &str) -> [String; 4] {
    let drive = format!("if=none,id={id},file={},format=raw,readonly=on", path.display());
    ["-drive".into(), drive, "-device".into(), format!("virtio-blk-pci,drive={id},addr={slot}")]
}

/// Sends the handshake every quarter second until the answer comes, as a host does.
async fn shake_hands(stream: &mut UnixStream, secret: &[u8; 32], session: u8) {
    let hello = [&HELLO[..], secret, &[session; 16]].concat();
    let wanted = [&ACK[..], &[session; 16]].concat();
    let mut heard = Vec::new();
    for _ in 0..240 {
        stream.write_all(&hello).await.unwrap();
        if timeout(Duration::from_millis(250), hear(stream, &wanted, &mut heard)).await.is_ok() {
            return;
        }
    }
    panic!("no answer to the handshake");
}

/// Reads byte by byte up to the answer, so that nothing of what follows is taken.
async fn hear(stream: &mut UnixStream, wanted: &[u8], heard: &mut Vec<u8>) {
    while !heard.ends_with(wanted) {
        heard.push(stream.read_u8().await.expect("QEMU lives"));
    }
}

/// QEMU's monitor.
pub struct Monitor(BufReader<UnixStream>);

impl Monitor {
    async fn line(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).await.unwrap();
        serde_json::from_str(&line).unwrap()
    }

    /// Runs a command; events are skipped.
    pub async fn run(&mut self, command: &str, arguments: Value) -> Value {
        let request = json!({"execute": command, "arguments": arguments});
        self.0.get_mut().write_all(format!("{request}\n").as_bytes()).await.unwrap();
        loop {
            let reply = self.line().await;
            assert!(reply.get("error").is_none(), "{command}: {reply}");
            if let Some(value) = reply.get("return") {
                return value.clone();
            }
        }
    }
}
