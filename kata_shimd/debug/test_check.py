"""Each check passes on a host that has what it asks for, and fails with a way out on one that has not."""

import hashlib
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from kata_shimd.config.load import examine
from kata_shimd.debug import check, check_host, check_programs, check_systemd
from kata_shimd.debug.check import Answer, Row, Scene, Verdict

LAUNCHER = "containerd-shim-kata-v2"
MOUNTINFO = "20 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n21 20 0:5 / {run} rw,nosuid - tmpfs tmpfs rw\n"
LIMITS = "Limit             Soft Limit   Hard Limit   Units\nMax open files    1024         {}   files\n"


class Host:
    """A host in a directory, and programs that say what a test makes them say."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.said: dict[str, Answer] = {}
        self.scene = self._scene()

    def _scene(self) -> Scene:
        root = self.root
        for name in ("proc/self", "proc/7", "dev", "cgroup", "run", "bin", "guest"):
            (root / name).mkdir(parents=True)
        self.write("proc/self/status", "Name:\tx\nCapEff:\t000001ffffffffff\n")
        self.write("proc/self/mountinfo", MOUNTINFO.format(run=root / "run"))
        self.write("proc/self/limits", LIMITS.format("1048576"))
        self.write("proc/meminfo", "MemTotal: 9000000 kB\nMemAvailable:  8000000 kB\n")
        self.write("cgroup/cgroup.controllers", "cpu memory\n")
        for name in ("qemu", "virtiofsd", "containerd", LAUNCHER, "python3"):
            self.program(name)
        for name in ("vmlinuz", "rootfs.img"):
            self.write(f"guest/{name}", name)
        (root / "run").chmod(0o700)
        self.say("qemu --version", "QEMU emulator version 7.2.22 (Debian)\n")
        self.say("qemu -machine none -device help", 'name "virtio-blk-pci", bus PCI\n')
        self.say("virtiofsd --version", "virtiofsd 1.10.0\n")
        self.say("containerd --version", "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20\n")
        self.say(f"{LAUNCHER} -v", f"{LAUNCHER} (kata-shimd) 0.1.0 abcdef\n")
        self.say("python3 -I -c import kata_shimd.daemon", "")
        return Scene(
            config=self.configured(),
            run_dir=root / "run",
            version="0.1.0",
            path=str(root / "bin"),
            ask=self.ask,
            accelerator=lambda setting: ("tcg", "the CPU has no vmx"),
            kvm_obstacle=lambda: "/dev/kvm: Permission denied",
            virtiofsd=lambda said: "Rust" if said.startswith("virtiofsd 1") else "C",
            transport="virtio-serial",
            devices=("virtio-blk-pci",),
            proc=root / "proc",
            dev=root / "dev",
            cgroup=root / "cgroup",
        )

    def configured(self, more: str = ""):
        root = self.root
        body = f"""
            [hypervisor.qemu]
            path = "{root}/bin/qemu"
            valid_hypervisor_paths = ["{root}/bin/qemu"]
            kernel = "{root}/guest/vmlinuz"
            image = "{root}/guest/rootfs.img"
            virtio_fs_daemon = "{root}/bin/virtiofsd"
            {more}
        """
        return examine(None, body.encode(), None, {}, search=())

    def write(self, name: str, text: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def program(self, name: str) -> None:
        self.write(f"bin/{name}", "").chmod(0o755)

    def say(self, command: str, text: str, status: int | None = 0) -> None:
        self.said[command] = Answer(status, text)

    def ask(self, argv) -> Answer:
        program, *rest = map(str, argv)
        return self.said.get(" ".join([Path(program).name, *rest]), Answer(None, "No such file or directory"))

    def rows(self, what, **changes) -> list[Row]:
        return list(what(replace(self.scene, **changes)))

    def row(self, what, **changes) -> Row:
        (row,) = self.rows(what, **changes)
        return row


@pytest.fixture
def host():
    """Not in tmp_path, which may be too long for the sockets of a run directory."""
    with tempfile.TemporaryDirectory(prefix="check-", dir="/tmp") as root:
        yield Host(Path(root))


def failed(row: Row, *words: str) -> bool:
    assert row.verdict is Verdict.FAIL, row
    assert row.fix, "a failure without a way out"
    missing = [word for word in words if word not in f"{row.why} {row.fix}"]
    assert not missing, row
    return True


def passed(row: Row, *words: str) -> bool:
    assert row.verdict is Verdict.PASS, row
    missing = [word for word in words if word not in f"{row.why} {row.fix}"]
    assert not missing, row
    return True


# --- the host --------------------------------------------------------------------------------------------------------


def test_privileges(host):
    assert passed(host.row(check_host.privileges))
    host.write("proc/self/status", "CapEff:\t0000000000000000\n")
    assert failed(host.row(check_host.privileges), "CAP_SYS_ADMIN", "root")


def test_configuration(host):
    assert passed(host.row(check_host.configuration), "built-in defaults")
    wrong = host.configured('default_vcpus = "many"')
    assert failed(host.row(check_host.configuration, config=wrong), "default_vcpus", "config check")
    odd = host.configured("default_vcpu = 1")
    assert passed(host.row(check_host.configuration, config=odd), "1 warning: see `kata-shimd config check`")


def test_accelerator(host):
    assert passed(host.row(check_host.accelerator), "tcg", "the CPU has no vmx", "slower")
    forced = examine(None, b'[shimd]\naccelerator = "kvm"', None, {}, search=())
    assert failed(host.row(check_host.accelerator, config=forced), "Permission denied", "auto")
    kvm = {"accelerator": lambda setting: ("kvm", "/dev/kvm works"), "kvm_obstacle": lambda: ""}
    assert passed(host.row(check_host.accelerator, config=forced, **kvm), "kvm")


def test_vsock(host):
    assert host.row(check_host.vsock).verdict is Verdict.SKIP
    assert failed(host.row(check_host.vsock, transport="vsock"), "vhost_vsock")
    (host.root / "dev/vhost-vsock").symlink_to("/dev/null")
    assert passed(host.row(check_host.vsock, transport="vsock"))


def test_cgroups(host):
    assert passed(host.row(check_host.cgroups), "v2")
    (host.root / "cgroup/cgroup.controllers").unlink()
    assert failed(host.row(check_host.cgroups), "cgroup2")
    (host.root / "cgroup/memory").mkdir()
    assert passed(host.row(check_host.cgroups), "v1")
    host.write("cgroup/unified/cgroup.controllers", "")
    assert passed(host.row(check_host.cgroups), "hybrid")


def test_mounts(host):
    tried = "unshare --mount --propagation slave mount --bind --make-shared / /"
    assert host.row(check_host.mounts).verdict is Verdict.SKIP
    host.say(tried, "")
    assert passed(host.row(check_host.mounts), "shared mount")
    host.say(tried, "mount: /: permission denied.\n", 32)
    assert failed(host.row(check_host.mounts), "permission denied", "AppArmor")


def test_memory(host):
    assert passed(host.row(check_host.memory), "7812 MiB")
    host.write("proc/meminfo", "MemAvailable:  1024 kB\n")
    assert failed(host.row(check_host.memory), "1 MiB")


def test_descriptors_of_this_process_and_of_containerd(host):
    assert passed(host.row(check_host.descriptors), "1048576", "does not run")
    host.write("proc/7/comm", "containerd\n")
    host.write("proc/7/limits", LIMITS.format("1024"))
    assert failed(host.row(check_host.descriptors), "1024", "pid 7", "LimitNOFILE")
    host.write("proc/7/limits", LIMITS.format("unlimited"))
    assert passed(host.row(check_host.descriptors), "unlimited")


def test_run_directory(host):
    assert passed(host.row(check_host.run_directory), "on tmpfs")
    assert passed(host.row(check_host.run_directory, run_dir=host.root / "run/y"), "on tmpfs")
    assert failed(host.row(check_host.run_directory, run_dir=Path("/" + "x" * 80)), "too long")
    (host.root / "run").chmod(0o777)
    assert failed(host.row(check_host.run_directory), "chmod")


# --- programs and files ----------------------------------------------------------------------------------------------


def test_qemu(host):
    assert passed(host.row(check_programs.qemu), "7.2", "all devices")
    assert failed(host.row(check_programs.qemu, devices=("virtio-blk-pci", "vhost-user-fs-pci")), "vhost-user-fs-pci")
    host.say("qemu --version", "QEMU emulator version 5.2.0")
    assert failed(host.row(check_programs.qemu), "5.2", "7.2")
    host.said.clear()
    assert failed(host.row(check_programs.qemu), "No such file", "install QEMU")


def test_virtiofsd(host):
    assert passed(host.row(check_programs.virtiofsd), "the Rust one")
    host.say("virtiofsd --version", "error while loading shared libraries", 127)
    assert failed(host.row(check_programs.virtiofsd), "shared libraries")
    (host.root / "bin/virtiofsd").unlink()
    assert failed(host.row(check_programs.virtiofsd), "no such program")


def test_a_guest_of_somebody_elses(host):
    kernel, image = host.rows(check_programs.guest)
    assert passed(kernel, "vmlinuz", "nothing says what it should be")
    assert passed(image, "rootfs.img")


def test_our_guest_is_compared_with_its_record(host):
    digests = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("vmlinuz", "rootfs.img")}
    record = {"outputs": {name: {"sha256": digest} for name, digest in digests.items()}}
    host.write("guest/manifest.json", json.dumps(record))
    assert all(passed(row, "as manifest.json says") for row in host.rows(check_programs.guest))
    host.write("guest/rootfs.img", "rotten")
    _, image = host.rows(check_programs.guest)
    assert failed(image, "not what manifest.json says", "--force")
    (host.root / "guest/rootfs.img").unlink()
    _, image = host.rows(check_programs.guest)
    assert failed(image, "No such file", "guest build")


def test_containerd(host):
    assert passed(host.row(check_programs.containerd), "1.6", "does not run now")
    host.write("proc/7/comm", "containerd\n")
    host.write("proc/7/environ", f"HOME=/\0PATH={host.root}/bin\0")
    assert passed(host.row(check_programs.containerd, path="/nowhere"), "pid 7")
    host.say("containerd --version", "containerd github.com/containerd/containerd 1.4.3")
    assert failed(host.row(check_programs.containerd), "1.4.3", "1.6")
    (host.root / "bin/containerd").unlink()
    assert failed(host.row(check_programs.containerd), "not in PATH")


def test_runtime_and_launcher(host):
    runtime, launcher = host.rows(check_programs.runtime)
    assert passed(runtime, "0.1.0") and passed(launcher, "bin/python3")


@pytest.mark.parametrize(
    ("said", "status", "words"),
    [
        ("containerd-shim-kata-v2 (kata-shimd) 0.0.9", 0, ("0.0.9", "0.1.0", "one installation")),
        ("Kata Containers containerd shim (Golang): id: io.containerd.kata.v2, version: 3.2.0", 0, ("another shim",)),
        ("Segmentation fault", -11, ("Segmentation fault", "again")),
    ],
)
def test_another_runtime(host, said, status, words):
    host.say(f"{LAUNCHER} -v", said, status)
    runtime, _ = host.rows(check_programs.runtime)
    assert failed(runtime, *words)


def test_no_runtime(host):
    (host.root / f"bin/{LAUNCHER}").unlink()
    runtime, launcher = host.rows(check_programs.runtime)
    assert failed(runtime, "not in containerd's PATH", "ln -s")
    assert launcher.verdict is Verdict.SKIP


def test_a_launcher_without_a_python(host):
    (host.root / "bin/python3").unlink()
    assert failed(host.rows(check_programs.runtime)[1], "neither python3 nor kata-shimd")
    host.write("bin/kata-shimd", f"#!{host.root}/bin/python3\nimport x\n")
    assert passed(host.rows(check_programs.runtime)[1])
    host.say("python3 -I -c import kata_shimd.daemon", "ModuleNotFoundError: kata_shimd", 1)
    assert failed(host.rows(check_programs.runtime)[1], "ModuleNotFoundError")


@pytest.mark.parametrize(
    ("script", "interpreter"),
    [
        ("#!/venv/bin/python3.11\nimport x\n", "/venv/bin/python3.11"),
        ("#!/venv/bin/python -E\n", "/venv/bin/python"),
        ("#!/bin/sh\n'''exec' \"/a long/path/python\" \"$0\" \"$@\"\n' '''\n", "/a long/path/python"),
        ("#!/bin/sh\n'''exec' /a/path/python \"$0\" \"$@\"\n' '''\n", "/a/path/python"),
        ("import x\n", ""),
        ("#!/bin/sh\necho\n", ""),
        ("#!\n", ""),
        ("", ""),
    ],
)
def test_the_interpreter_of_a_script_is_the_launchers(tmp_path, script, interpreter):
    """The same table as in the launcher's tests, whose rule this is."""
    (tmp_path / "kata-shimd").write_text(script)
    assert check_programs._interpreter(tmp_path / "kata-shimd") == interpreter


# --- systemd ---------------------------------------------------------------------------------------------------------


def keeper(setting):
    return examine(None, f'[shimd]\nkeeper = "{setting}"'.encode(), None, {}, search=())


@pytest.fixture
def node(host):
    """Where pods are units."""
    for program in ("systemctl", LAUNCHER):
        host.program(program)
    host.say("systemctl --version", "systemd 252 (252.39-1~deb12u1)\n+PAM +AUDIT\n")
    unit = f"[Service]\nExecStart={host.root}/bin/{LAUNCHER} unit /run/kata-shimd/pods/%i\n"
    host.write("etc/kata-pod@.service", unit)
    for pid in ("1", "7", "self"):
        for name in check_systemd.NAMESPACES:
            (host.root / "proc" / pid / "ns").mkdir(parents=True, exist_ok=True)
            (host.root / "proc" / pid / "ns" / name).symlink_to(f"{name}:[1]")
    (host.root / "booted").mkdir()
    places = (host.root / "run/none", host.root / "etc")
    host.scene = replace(host.scene, booted=host.root / "booted", unit_places=places, unit=unit)
    return host


@pytest.mark.parametrize("setting", ["off", "auto", "systemd"])
def test_pods_are_units(node, setting):
    row = node.row(check_systemd.systemd, config=keeper(setting))
    assert passed(row, "systemd 252", "kata-pod@.service") and not row.fix


def test_a_keeper_that_is_refused_in_units(node):
    row = node.row(check_systemd.systemd, config=keeper("launcher"))
    assert failed(row, "refused", 'keeper = "auto"', "systemd remove")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda node: (node.root / "booted").rmdir(), ("not this host's first process", '"launcher"')),
        (lambda node: (node.root / "etc/kata-pod@.service").unlink(), ("no kata-pod@.service", "systemd install")),
        (lambda node: swap(node.root / "proc/self/ns/mnt"), ("this process", "namespaces: mnt")),
        (
            lambda node: (node.write("proc/7/comm", "containerd\n"), swap(node.root / "proc/7/ns/pid")),
            ("containerd, pid 7", "namespaces: pid", "where systemd runs"),
        ),
    ],
)
def test_pods_that_are_no_units(node, spoil, words):
    """Which is nobody's fault, unless systemd is to keep them."""
    spoil(node)
    row = node.row(check_systemd.systemd, config=keeper("auto"))
    assert (row.verdict, words[0] in row.why) == (Verdict.SKIP, True), row
    assert failed(node.row(check_systemd.systemd, config=keeper("systemd")), *words)


def swap(link):
    link.unlink()
    link.symlink_to("mnt:[2]")


def test_a_systemd_that_is_too_old_or_silent(node):
    node.say("systemctl --version", "systemd 245 (245.4-4ubuntu3)\n")
    assert failed(node.row(check_systemd.systemd), "systemd 245", "246 or newer")
    node.say("systemctl --version", "error while loading shared libraries", 127)
    assert failed(node.row(check_systemd.systemd), "shared libraries")
    (node.root / "bin/systemctl").unlink()
    assert failed(node.row(check_systemd.systemd), "no systemctl in containerd's PATH")


def test_a_template_of_another_version_or_installation(node):
    row = node.row(check_systemd.systemd, unit=f"{node.scene.unit}WatchdogSec=60\n")
    assert passed(row, "systemd 252", "not as this installation would write it", "systemd install")


@pytest.mark.parametrize("text", ["[Service]\nExecStart=/nowhere/launcher unit x\n", "[Service]\n"])
def test_a_template_whose_launcher_is_gone(node, text):
    node.write("etc/kata-pod@.service", text)
    assert failed(node.row(check_systemd.systemd), "cannot be executed", "systemd install")


# --- the table -------------------------------------------------------------------------------------------------------

EVERY = (
    check_host.accelerator,
    check_host.devices,
    check_host.vsock,
    check_programs.qemu,
    check_programs.virtiofsd,
    check_programs.guest,
    check_systemd.systemd,
)


@pytest.mark.parametrize("what", EVERY)
def test_without_a_configuration_what_needs_one_is_skipped(host, what):
    broken = replace(host.scene.config, config=None)
    assert host.row(what, config=broken).verdict is Verdict.SKIP


def test_a_check_that_cannot_look_fails_alone(host):
    (host.root / "proc/meminfo").unlink()
    rows = check.run(host.scene, {"memory-free": check_host.memory, "cgroups": check_host.cgroups})
    assert failed(rows[0], "meminfo", "No such file")
    assert passed(rows[1])


ROWS = (Row("a", Verdict.PASS, "well"), Row("bcd", Verdict.FAIL, "bad\x1b[2J", "mend it"), Row("e", Verdict.SKIP, "no"))


def test_table():
    assert check.as_table(ROWS) == (
        "pass  a    well\nfail  bcd  bad\\x1b[2J\n           → mend it\nskip  e    no\n1 pass, 1 fail, 1 skip\n"
    )


def test_json():
    answer = json.loads(check.as_json(ROWS))
    assert (answer["schema_version"], answer["ok"]) == (1, False)
    assert answer["checks"][1] == {"name": "bcd", "verdict": "fail", "why": "bad\x1b[2J", "fix": "mend it"}
    assert json.loads(check.as_json(ROWS[:1]))["ok"]
