"""What the OCI spec says of a process holds in the guest: for a container's first process, and for one that Exec adds."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from integration.harness import shim
from integration.harness.ctr import KATA, Ctr
from integration.harness.sandbox import Sandbox, capabilities, sandbox, table
from integration.harness.shim import ShimSocket
from kata_shimd.ttrpc import RpcError

STATUS: Final = "cat /proc/self/status"
LIMITS: Final = "cat /proc/self/limits"


@pytest.fixture(scope="module")
def pod(ctr: Ctr, rootfs_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with sandbox(ctr, "spec-process", rootfs_dir, tmp_path_factory.mktemp("spec")) as made:
        yield made


def status_of_init(pod: Sandbox, process: Mapping[str, Any], script: str = STATUS) -> str:
    spec = pod.script(script)
    spec.content["process"].update(process)
    return pod.run(spec).ok().out


def status_of_exec(pod: Sandbox, process: Mapping[str, Any], script: str = STATUS) -> str:
    """Exec with a process that owes nothing to the container's own; only the shim's socket allows that."""
    socket, exec_id = ShimSocket.of(pod.ctr, pod.id), pod.fresh("e")
    output = pod.directory / exec_id
    spec = shim.json_any(shim.PROCESS, shim.process("sh", "-c", script, **process))
    socket.call("Exec", id=pod.id, exec_id=exec_id, stdout=f"file://{output}", spec=spec)
    try:
        socket.call("Start", id=pod.id, exec_id=exec_id)
        assert socket.call("Wait", id=pod.id, exec_id=exec_id).exit_status == 0, output.read_text()
    finally:
        socket.call("Delete", id=pod.id, exec_id=exec_id)
    return output.read_text()


both = pytest.mark.parametrize(
    "ask", [pytest.param(status_of_init, id="init"), pytest.param(status_of_exec, id="exec", marks=pytest.mark.vm)]
)


@both
def test_user_and_groups(pod: Sandbox, ask: Any) -> None:
    user = {"uid": 1234, "gid": 2345, "additionalGids": [10, 2000]}
    found = table(ask(pod, {"user": user, "noNewPrivileges": True}))
    assert found["Uid"].split() == ["1234"] * 4
    assert found["Gid"].split() == ["2345"] * 4
    assert set(found["Groups"].split()) >= {"10", "2000"}
    assert "0" not in found["Groups"].split()
    assert found["NoNewPrivs"] == "1"


@pytest.mark.parametrize("umask", [0, 0o77])
def test_umask(pod: Sandbox, umask: int) -> None:
    user = {"uid": 0, "gid": 0, "umask": umask}
    assert int(status_of_init(pod, {"user": user}, "umask"), 8) == umask


@pytest.mark.vm
def test_a_umask_that_an_exec_cannot_be_told_is_refused(pod: Sandbox) -> None:
    assert int(status_of_exec(pod, {"user": {"uid": 0, "gid": 0, "umask": 0o22}}, "umask"), 8) == 0o22
    with pytest.raises(RpcError, match="umask"):
        status_of_exec(pod, {"user": {"uid": 0, "gid": 0, "umask": 0o77}}, "umask")


@both
def test_each_set_of_capabilities(pod: Sandbox, ask: Any) -> None:
    """All sets differ, as far as the kernel lets them: ambient is within inheritable, effective within permitted."""
    sets = {
        "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW", "CAP_SETUID"],
        "permitted": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"],
        "effective": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"],
        "inheritable": ["CAP_CHOWN", "CAP_KILL"],
        "ambient": ["CAP_KILL"],
    }
    # Not root, whose exec would gain everything in bounds and hide what it was given.
    found = table(ask(pod, {"user": {"uid": 1000, "gid": 1000}, "capabilities": sets}))
    assert capabilities(found["CapBnd"]) == set(sets["bounding"])
    assert capabilities(found["CapInh"]) == set(sets["inheritable"])
    assert capabilities(found["CapAmb"]) == {"CAP_KILL"}
    # Of a user's permitted set only the ambient part survives the exec of a plain file.
    assert capabilities(found["CapPrm"]) == capabilities(found["CapEff"]) == {"CAP_KILL"}


@both
def test_no_capability_at_all(pod: Sandbox, ask: Any) -> None:
    empty: dict[str, list[str]] = {
        name: [] for name in ("bounding", "permitted", "effective", "inheritable", "ambient")
    }
    found = table(ask(pod, {"capabilities": empty}))
    assert {int(found[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}


@both
def test_limits(pod: Sandbox, ask: Any) -> None:
    rlimits = [
        {"type": "RLIMIT_NOFILE", "soft": 333, "hard": 444},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
        {"type": "RLIMIT_STACK", "soft": 4 << 20, "hard": (1 << 64) - 1},
    ]
    lines = [line.split() for line in ask(pod, {"rlimits": rlimits}, LIMITS).splitlines()]
    found = {" ".join(words[1:-3]): tuple(words[-3:-1]) for words in lines if words[0] == "Max"}
    assert found["open files"] == ("333", "444")
    assert found["core file size"] == ("0", "0")
    assert found["stack size"] == (str(4 << 20), "unlimited")


@both
@pytest.mark.parametrize("wanted", [False, True])
def test_no_new_privileges(pod: Sandbox, ask: Any, wanted: bool) -> None:
    assert table(ask(pod, {"noNewPrivileges": wanted}))["NoNewPrivs"] == str(int(wanted))


@both
@pytest.mark.parametrize("score", [0, 500])
def test_oom_score(pod: Sandbox, ask: Any, score: int) -> None:
    assert ask(pod, {"oomScoreAdj": score}, "cat /proc/self/oom_score_adj").strip() == str(score)


@both
def test_large_environment_and_arguments(pod: Sandbox, ask: Any) -> None:
    """128 KiB of environment, and one argument near the kernel's bound of 128 KiB for one string."""
    env = [f"V{number}={'x' * 4000}" for number in range(33)]
    script = "env | grep -c '^V[0-9]*=x*$'; printf %s \"$LONG\" | wc -c"
    long = f"LONG={'y' * (128 * 1024 - 100)}"
    process = {"env": ["PATH=/bin", long, *env]}
    assert ask(pod, process, script).split() == ["33", str(len(long) - 5)]


@both
def test_a_relative_command_through_path(pod: Sandbox, ask: Any) -> None:
    """The PATH is the process's own; its shell says under which name it was found."""
    assert ask(pod, {"env": ["PATH=/nowhere:/usr/bin:/bin"]}, "readlink /proc/$$/exe").strip() == "/bin/sh"


@both
def test_environment_without_path(pod: Sandbox, ask: Any) -> None:
    assert "FROM=here" in ask(pod, {"args": ["/bin/sh", "-c", "env"], "env": ["FROM=here"]}, "env").splitlines()


def test_a_user_nobody_knows(pod: Sandbox) -> None:
    """Numbers need no entry in /etc/passwd; a name that has none is refused, by the client already."""
    spec = pod.script("id -u; id -g").set("process.user", {"uid": 54321, "gid": 54321})
    assert pod.run(spec).ok().out.split() == ["54321", "54321"]
    done = pod.ctr.exec(pod.id, pod.fresh("e"), "true", options=["--user", "nosuchuser"])
    assert done.code != 0 and "no users found" in done.err


def test_a_working_directory_that_does_not_exist(pod: Sandbox) -> None:
    """Made for a container, as every runtime does; what an exec names must be there."""
    spec = pod.script("pwd").set("process.cwd", "/tmp/made/for/me")
    spec.content["mounts"].append({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["mode=1777"]})
    assert pod.run(spec).ok().out == "/tmp/made/for/me"
    done = pod.ctr.exec(pod.id, pod.fresh("e"), "pwd", options=["--cwd", "/no/such/directory"])
    assert done.code != 0 and "/no/such/directory" in done.err


def test_a_program_that_is_no_program(pod: Sandbox) -> None:
    done = pod.run(pod.spec("/etc/passwd"))
    assert done.code != 0 and "Permission denied" in done.err
    done = pod.run(pod.spec("no-such-command"))
    assert done.code != 0 and "no-such-command" in done.err


def test_arguments_arrive_as_they_are(pod: Sandbox) -> None:
    arguments = ["", "a b", "tab\there", "new\nline", "ünïcode", '"quoted"', "$HOME", "\\"]
    done = pod.run(pod.spec("sh", "-c", 'for a; do printf "<%s>" "$a"; done', "name", *arguments)).ok()
    assert done.stdout.decode() == "".join(f"<{argument}>" for argument in arguments)


@pytest.mark.vm
def test_annotations_do_not_disturb(pod: Sandbox, runtime: str) -> None:
    assert runtime == KATA
    spec = pod.script("echo fine")
    spec.content["annotations"].update({"org.example/any": "x" * 4096, "io.kubernetes.cri.container-name": "named"})
    assert pod.run(spec).ok().out == "fine"
