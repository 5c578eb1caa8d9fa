"""`gate`: nothing runs before it is let through, and what runs then is what was asked for."""

import json
import os
import pwd
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pytest

from integration.harness.process import find, finish
from integration.harness.waiting import eventually
from integration.launcher.conftest import LAUNCHER

#: Debian's own, which other users may run too.
PYTHON: Final = "/usr/bin/python3"
#: Prints what a process can see of itself.
LOOK = """
import json, os, resource
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
print(json.dumps({
    "pid": os.getpid(), "ids": os.getresuid() + os.getresgid(), "groups": os.getgroups(), "cwd": os.getcwd(),
    "netns": os.readlink("/proc/self/ns/net"), "cgroup": open("/proc/self/cgroup").read(),
    "oom": int(open("/proc/self/oom_score_adj").read()), "nofile": resource.getrlimit(resource.RLIMIT_NOFILE),
    "fds": sorted(map(int, os.listdir("/proc/self/fd")))[:-1], **status,
}))
"""


def gate(*words: str | Path, let_through: bool = True, argv: tuple[str, ...] = (PYTHON, "-ISc", LOOK)) -> Any:
    """Run the gate with these options; the finished process, with its pid."""
    reader, writer = os.pipe()
    child = subprocess.Popen(
        [LAUNCHER, "gate", str(reader), *words, "--", *argv],
        pass_fds=[reader], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(reader)
    if let_through:
        with suppress(BrokenPipeError):  # a gate that does not like its options has ended already
            os.write(writer, b"!")
    os.close(writer)
    stdout, stderr = child.communicate(timeout=20)
    return subprocess.CompletedProcess([child.pid], child.returncode, stdout, stderr)


def look(*words: str | Path) -> dict[str, Any]:
    done = gate(*words)
    assert (done.returncode, done.stderr) == (0, ""), done
    seen: dict[str, Any] = json.loads(done.stdout)
    assert [seen["pid"]] == done.args, "the pid stays the same"
    return seen


def test_a_closed_gate_runs_nothing():
    done = gate(let_through=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_nothing_is_changed_unasked():
    seen = look()
    assert seen["ids"] == [0] * 6 and seen["NoNewPrivs"] == "0"
    assert seen["cwd"] == str(Path.cwd())
    assert seen["fds"] == [0, 1, 2], "the gate itself is not handed on"


def test_signals_are_as_a_program_expects_them():
    seen = look()
    ignored = int(seen["SigIgn"], 16)
    python_ignores = 1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1)
    assert ignored & ~python_ignores == 0 and int(seen["SigBlk"], 16) == 0
    # Python ignores SIGPIPE for itself, so ask somebody who does not.
    done = gate(argv=("/bin/grep", "SigIgn", "/proc/self/status"))
    assert int(done.stdout.split()[1], 16) == 0


def test_ids_and_limits():
    nobody = pwd.getpwnam("nobody")
    seen = look(
        "--uid", str(nobody.pw_uid), "--gid", str(nobody.pw_gid), "--groups", "7,8", "--no-new-privs", "--nofile", "99",
        "--chdir", "/usr", "--oom-score-adj", "321",
    )  # fmt: skip
    assert seen["ids"] == [nobody.pw_uid] * 3 + [nobody.pw_gid] * 3
    assert (seen["groups"], seen["NoNewPrivs"], seen["nofile"]) == ([7, 8], "1", [99, 99])
    assert (seen["cwd"], seen["oom"]) == ("/usr", 321)
    assert int(seen["CapEff"], 16) == int(seen["CapPrm"], 16) == 0


#: Runs a gate whose program outlives it, says that program's pid, and then dies when it is told to.
SPAWNER = """
import os, subprocess, sys
reader, writer = os.pipe()
words = [sys.argv[1], "gate", str(reader), "--die-with", str(os.getpid()), *sys.argv[2:], "--", "/bin/sleep", "1000"]
print(subprocess.Popen(words, pass_fds=[reader]).pid, flush=True)
os.write(writer, b"!")
sys.stdin.read()
"""


@pytest.mark.parametrize("options", [(), ("--uid", "65534", "--gid", "65534", "--drop-caps", "--no-new-privs")])
def test_a_program_that_dies_with_its_spawner(options: tuple[str, ...]):
    pipe = subprocess.PIPE
    spawner = subprocess.Popen([PYTHON, "-ISc", SPAWNER, LAUNCHER, *options], stdin=pipe, stdout=pipe)
    assert spawner.stdout is not None
    program = find(int(spawner.stdout.readline()))
    assert program is not None
    eventually("the program", lambda: "sleep" in program.command().split(" ")[0], within=10)
    spawner.kill()
    finish(spawner)
    eventually("its end", lambda: not program.alive(), within=10)


def test_a_program_whose_spawner_has_died_already():
    done = gate("--die-with", "1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_no_supplementary_groups():
    assert look("--groups", "")["groups"] == []


def test_root_without_capabilities():
    seen = look("--drop-caps")
    assert [int(seen[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")] == [0] * 5
    assert seen["ids"] == [0] * 6


def test_a_network_namespace(netns: Path):
    assert look("--netns", netns)["netns"] == f"net:[{netns.stat().st_ino}]"
    assert gate("--netns", "/no/such").returncode == 127


def test_cgroups(cgroups: list[Path]):
    options = [word for group in cgroups for word in ("--cgroup", group)]
    joined = [line.split(":", 2)[2] for line in look(*options)["cgroup"].splitlines()]
    for group in cgroups:
        assert f"/{group.name}" in joined, group


@pytest.mark.parametrize("argv", [("/no/such/program",), ("/etc/passwd",)])
def test_what_cannot_be_run(argv: tuple[str, ...]):
    done = gate(argv=argv)
    assert done.returncode == 127 and done.stdout == ""
    assert done.stderr.startswith(f"exec: {argv[0]}: ") and done.stderr.count("\n") == 1


def test_an_option_nobody_knows():
    done = gate("--colour", "red")
    assert (done.returncode, done.stdout) == (127, "")
    assert done.stderr == "read gate: --colour: no such option\n"
