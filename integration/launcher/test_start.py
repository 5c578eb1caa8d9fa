"""`start`: one daemon per pod, nothing but the answer on the streams, nothing left of a start that failed."""

import json
import os
import stat
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from integration.harness.process import Process
from integration.harness.waiting import eventually
from integration.launcher.protobuf import make, parse
from integration.launcher.shim import ADDRESS, NAMESPACE, SANDBOX, TYPE, Shim

Living = Callable[[], list[Process]]
#: open, phase, plan socket, plan daemon, made daemon
RECORDS = 5


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_a_sandbox_gets_a_daemon(shim: Shim):
    answer = shim.start("s1").ok()
    pod = shim.pod("s1")
    assert answer == f"unix://{pod}/shim.sock".encode()
    bundle = shim.root / "bundles/s1"
    assert (bundle / "address").read_bytes() == answer
    assert int((bundle / "shim.pid").read_text()) == shim.daemon("s1").pid == shim.found("s1")["pid"]
    assert sorted(path.name for path in bundle.iterdir()) == ["address", "config.json", "shim.pid"]
    assert (mode(pod), mode(pod / "ledger"), mode(pod / "shim.sock"), mode(pod / "daemon.stderr")) == (
        0o700,
        0o600,
        0o600,
        0o600,
    )


def test_the_ledger_names_everything_before_it_is_made(shim: Shim):
    shim.start("s1").ok()
    opened, phase, socket, daemon, made = shim.ledger("s1")
    assert opened == {
        "op": "open", "v": 1, "pod": shim.pod("s1").name, "namespace": NAMESPACE, "id": "s1", "address": ADDRESS
    }  # fmt: skip
    assert phase == {"op": "phase", "phase": "starting"}
    assert socket == {"op": "plan", "n": 1, "scope": "pod", "kind": "file", "path": str(shim.pod("s1") / "shim.sock")}
    assert daemon == {"op": "plan", "n": 2, "scope": "pod", "kind": "process", "what": "daemon"}
    assert (made["op"], made["n"]) == ("made", 2)


def test_what_the_daemon_is_given(shim: Shim):
    options = make("Any", type_url="runtimeoptions.v1.Options", value=b"\x12\x05/a/b.c").SerializeToString()
    shim.start("s1", stdin=options, NOTIFY_SOCKET="/n", LISTEN_FDS="9", LISTEN_FDNAMES="x", SHIM_TEST="kept").ok()
    found = shim.found("s1")
    pod = shim.pod("s1")
    assert found["argv"] == [
        "-I", "-m", "kata_shimd.daemon", "--run-dir", str(shim.run_dir), "--pod-dir", str(pod), "--namespace", NAMESPACE,
        "--id", "s1", "--address", ADDRESS, "--bundle", str(shim.root / "bundles/s1"), "--launcher", str(shim.launcher),
    ]  # fmt: skip
    assert sorted(found["fds"]) == ["0", "1", "2", "3", "4", "5"]
    assert [found["fds"][fd] for fd in "012"] == ["/dev/null", "/dev/null", str(pod / "daemon.stderr")]
    assert found["fds"]["3"].startswith("socket:") and found["fds"]["4"].startswith("pipe:")
    assert "memfd:" in found["fds"]["5"] and bytes.fromhex(found["bootstrap"]) == options
    listen = {name: value for name, value in found["environ"].items() if name.startswith(("LISTEN_", "NOTIFY_"))}
    assert listen == {"LISTEN_PID": str(found["pid"]), "LISTEN_FDS": "3", "LISTEN_FDNAMES": "listen:ready:bootstrap"}
    assert found["environ"]["SHIM_TEST"] == "kept"


def test_where_the_daemon_lives(shim: Shim):
    shim.start("s1").ok()
    found = shim.found("s1")
    assert (found["sid"], found["cwd"], found["umask"]) == (found["pid"], "/", 0o077)
    assert found["mnt"] != Path("/proc/self/ns/mnt").readlink().name
    assert "shared:" in found["root_mount"]
    parent = int(Path("/proc/self/oom_score_adj").read_text())
    assert found["oom_score_adj"] == min(parent + 1, 1000)
    assert found["nofile"][0] == found["nofile"][1]
    assert int(found["blocked"], 16) == 0


def test_core_scheduling_is_no_obstacle(shim: Shim):
    """Where the processor or the kernel has none, a pod starts all the same."""
    shim.start("s1", SCHED_CORE="1").ok()


def test_debug_is_handed_on(shim: Shim):
    shim.run(shim.argv("s1", "-debug", "start"), cwd=shim.bundle("s1")).ok()
    assert shim.found("s1")["argv"][-1] == "--debug"


def test_a_pod_is_found_again(shim: Shim):
    first = shim.start("s1").ok()
    daemon = shim.daemon("s1")
    assert shim.start("s1").ok() == first
    assert shim.start("c1", "s1").ok() == first
    assert shim.daemon("s1") == daemon
    for name in ("s1", "c1"):
        bundle = shim.root / "bundles" / name
        assert (bundle / "address").read_bytes() == first
        assert int((bundle / "shim.pid").read_text()) == daemon.pid


def test_pods_are_apart(shim: Shim):
    assert shim.start("s1").ok() != shim.start("s2").ok()


def test_a_container_needs_its_pod(shim: Shim):
    said = shim.start("c1", "s1").failed()
    assert said == "find pod: sandbox s1: no daemon serves its pod; its sandbox must be started first\n"
    assert shim.left() == []


def test_a_container_of_a_pod_that_is_being_stopped(shim: Shim):
    shim.start("s1").ok()
    shim.record("s1", {"op": "phase", "phase": "stopping"})
    assert "is being stopped" in shim.start("c1", "s1").failed()


@pytest.mark.parametrize(
    ("annotations", "said"),
    [
        (
            {TYPE: "pod"},
            f'find container type: {TYPE}: "pod" is not one; it is sandbox or container, or is not there at all',
        ),
        ({TYPE: "container"}, "names no sandbox"),
        ({TYPE: "container", SANDBOX: "../../etc"}, "not an identifier"),
    ],
)
def test_a_bundle_that_makes_no_sense(shim: Shim, annotations: dict[str, str], said: str):
    shim.bundle("c1", **annotations)
    error = shim.start("c1").failed()
    assert said in error and error.count("\n") == 1
    [told] = map(json.loads, shim.journal("c1").read_text().splitlines())
    assert (told["event"], told["id"], told["container"]) == ("refused", "c1", "c1") and said in told["error"]
    assert shim.left() == []


def test_a_bundle_without_a_spec_is_a_sandbox(shim: Shim):
    (shim.bundle("s1") / "config.json").unlink()
    shim.start("s1").ok()


class TestDialects:
    """What containerd says on stdin decides what it can read."""

    PARAMS = make("BootstrapParams", instance_id="s1", namespace=NAMESPACE, log_level=-4).SerializeToString()

    def test_bootstrap_params(self, shim: Shim):
        result = parse("BootstrapResult", shim.start("s1", stdin=self.PARAMS).ok())
        assert (result.version, result.address, result.protocol) == (2, f"unix://{shim.pod('s1')}/shim.sock", "ttrpc")
        assert bytes.fromhex(shim.found("s1")["bootstrap"]) == self.PARAMS

    def test_bootstrap_params_of_another_are_options(self, shim: Shim):
        other = make("BootstrapParams", instance_id="s2", namespace=NAMESPACE).SerializeToString()
        assert shim.start("s1", stdin=other).ok().startswith(b"unix://")

    def test_garbage_is_somebody_elses_business(self, shim: Shim):
        assert shim.start("s1", stdin=b"\xff" * 100).ok().startswith(b"unix://")

    def test_version_3_only_when_told(self, shim: Shim):
        plain = shim.start("s1", KATA_SHIMD_REPLY="json3").ok()
        address = f"unix://{shim.pod('s1')}/shim.sock"
        assert json.loads(plain) == {"version": 3, "address": address, "protocol": "ttrpc"}
        assert (shim.root / "bundles/s1/address").read_text() == address
        result = parse("BootstrapResult", shim.start("s1", stdin=self.PARAMS, KATA_SHIMD_REPLY="json3").ok())
        assert result.version == 3

    def test_a_reply_nobody_knows(self, shim: Shim):
        assert "KATA_SHIMD_REPLY" in shim.start("s1", KATA_SHIMD_REPLY="yaml").failed()


class TestFailure:
    """A daemon that does not come up leaves its last words, and nothing else."""

    def test_it_dies(self, shim: Shim):
        first, *quoted = shim.start("s1", STAND_IN="die:3").failed().splitlines()
        assert first == (
            "start daemon: s1: exited with 3 before it was ready: boot VM: /no/such/kernel: not found; install a guest image"
        )
        assert quoted == [f"  line {n}?[31m" for n in range(11, 30)]
        assert shim.left() == []

    def test_it_is_killed(self, shim: Shim):
        assert (
            shim.start("s1", STAND_IN="killed").failed() == "start daemon: s1: killed by signal 9 before it was ready\n"
        )
        assert shim.left() == []

    def test_it_closes_its_pipe_and_lives(self, shim: Shim, living: Living):
        assert "without a byte" in shim.start("s1", STAND_IN="mute").failed()
        assert shim.left() == []
        assert living() == []

    def test_it_hangs(self, shim: Shim, living: Living):
        """Takes the whole minute that a daemon is given."""
        assert shim.start("s1", STAND_IN="hang").failed() == "start daemon: s1: not ready within 60 s\n"
        assert shim.left() == []
        assert living() == []

    def test_no_python(self, shim: Shim, tmp_path: Path):
        lonely = tmp_path / "lonely"
        lonely.mkdir()
        shim.launcher = _copy(shim.launcher, lonely)
        assert shim.start("s1").failed().startswith("find Python: ")
        assert shim.left() == []

    def test_the_next_start_is_none_the_worse(self, shim: Shim):
        shim.start("s1", STAND_IN="die:1").failed()
        shim.start("s1").ok()

    def test_nobody_hears_the_answer(self, shim: Shim):
        reader, writer = os.pipe()
        os.close(reader)
        cwd = shim.bundle("s1")
        done = subprocess.run(
            shim.argv("s1", "start"), cwd=cwd, stdin=subprocess.DEVNULL, stdout=writer, stderr=subprocess.PIPE,
            env=shim.environ(None), timeout=30, check=False,
        )  # fmt: skip
        os.close(writer)
        assert done.returncode == 1 and done.stderr.startswith(b"answer containerd: stdout: ")
        assert shim.left() == []

    def test_a_run_directory_that_others_write_to(self, shim: Shim):
        shim.run_dir.mkdir(mode=0o777)
        shim.run_dir.chmod(0o777)
        assert "lets others in" in shim.start("s1").failed()
        assert list(shim.run_dir.iterdir()) == []


def _copy(source: Path, directory: Path) -> Path:
    target = directory / source.name
    target.write_bytes(source.read_bytes())
    target.chmod(0o755)
    return target


def test_the_interpreter_a_script_names(shim: Shim, tmp_path: Path):
    """Where no python3 lies beside the launcher, the console script's first line says which it is."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kata-shimd").write_text(f"#!{shim.launcher.parent / 'python3'}\nimport sys\n")
    shim.launcher = _copy(shim.launcher, elsewhere)
    shim.start("s1").ok()
    assert shim.found("s1")["argv"][-1] == str(elsewhere / shim.launcher.name)


def test_remains_of_a_dead_pod_are_undone(shim: Shim):
    """A socket nobody listens on any more: all that daemon had is taken away before a new one comes."""
    shim.start("s1").ok()
    old = shim.daemon("s1")
    with subprocess.Popen(["sleep", "1000"]) as orphan:
        started = int(Path(f"/proc/{orphan.pid}/stat").read_text().rpartition(")")[2].split()[19])
        shim.record(
            "s1",
            {"op": "plan", "n": 3, "scope": "pod", "kind": "process", "what": "qemu"},
            {"op": "made", "n": 3, "pid": orphan.pid, "start": started},
        )
        old.kill()
        shim.start("s1").ok()
        assert orphan.wait(10) == -9
    assert shim.daemon("s1") != old
    assert len(shim.ledger("s1")) == RECORDS


def test_two_starts_at_once_make_one_daemon(shim: Shim, living: Living):
    shim.bundle("s1")
    answers: list[bytes] = []
    threads = [threading.Thread(target=lambda: answers.append(shim.start("s1").ok())) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(answers)) == 1 and len(answers) == 6
    assert len(shim.ledger("s1")) == RECORDS
    assert living() == [shim.daemon("s1")]


@pytest.mark.parametrize("n", range(1, RECORDS + 1))
class TestKilledAtEveryRecord:
    """The launcher dies right after its n-th record."""

    def kill(self, shim: Shim, n: int, living: Living) -> None:
        answer = shim.start("s1", KATA_SHIMD_DIE_AT=f"launcher:{n}")
        assert (answer.code, answer.stdout, answer.stderr) == (-9, b"", "")
        # The child it forked sees the pipe end, and ends.
        eventually("no process of it lives", lambda: not living(), within=10)
        assert len(shim.ledger("s1")) == n

    def test_delete_leaves_nothing(self, shim: Shim, n: int, living: Living):
        self.kill(shim, n, living)
        shim.delete("s1").ok()
        assert shim.left() == []

    def test_the_next_start_makes_everything_anew(self, shim: Shim, n: int, living: Living):
        self.kill(shim, n, living)
        shim.start("s1").ok()
        assert len(shim.ledger("s1")) == RECORDS


def test_there_are_no_more_records_than_are_killed_at(shim: Shim):
    shim.start("s1", KATA_SHIMD_DIE_AT=f"launcher:{RECORDS + 1}").ok()


def test_killed_while_the_daemon_starts(shim: Shim):
    """The daemon goes on alone, and the next start finds it."""
    child = shim.spawn(
        shim.argv("s1", "start"), cwd=shim.bundle("s1"), stdin=subprocess.DEVNULL, environ={"STAND_IN": "hang"}
    )
    eventually(
        "the daemon is in the ledger",
        lambda: (shim.pod("s1") / "ledger").exists() and len(shim.ledger("s1")) == 5,
        within=10,
    )
    daemon = shim.daemon("s1")
    child.kill()
    child.communicate()
    eventually("the daemon runs", lambda: "stand_in" in daemon.command(), within=10)
    shim.start("s1").ok()
    assert shim.daemon("s1") == daemon


def test_describing_itself(shim: Shim):
    info = parse("RuntimeInfo", shim.run([str(shim.launcher), "-info"]).ok())
    assert info.name == "io.containerd.kata.v2" and info.version.version
    for flag in ("-v", "-version", "--version"):
        assert info.version.version in shim.run([str(shim.launcher), flag]).ok().decode()


def test_no_verb_at_all(shim: Shim):
    assert shim.run([str(shim.launcher)]).failed().startswith("read verb: not start or delete; ")


def test_flags_of_a_containerd_to_come_are_tolerated(shim: Shim):
    known = shim.argv("s1")
    argv = [*known, "-colour", "red", "-loud", "--shape=round", "start"]
    assert shim.run(argv, cwd=shim.bundle("s1")).ok() == f"unix://{shim.pod('s1')}/shim.sock".encode()


def test_it_is_small(launcher: Path):
    """containerd executes it twice for every container: less than 1 MB, symbols stripped."""
    content = launcher.read_bytes()
    assert len(content) < 1_000_000
    assert b".symtab" not in content
