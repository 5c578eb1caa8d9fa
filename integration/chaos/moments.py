"""The moments of a container's life at which something dies, each reached and held by something that is seen, never by time."""

import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from integration.chaos.stage import Hold, LoggerHold, Stage
from integration.harness import process
from integration.harness.ctr import PATIENCE
from integration.harness.waiting import eventually

TYPE: Final = "io.kubernetes.cri.container-type"
SANDBOX: Final = "io.kubernetes.cri.sandbox-id"
#: More than a pipe holds, less than the daemon keeps: a container can end while nobody reads this.
UNREAD: Final = 200 << 10
#: The status with which the container of the delete moment has ended before anything dies.
ENDED_WITH: Final = 3
_COUNT: Final = "i=0; while :; do echo $i; i=$((i+1)); usleep 20000; done"


class Moment(StrEnum):
    """START is containerd's `start` verb and the boot it begins; the others are the RPC that is under way then."""

    START = "start"
    CREATE = "create"
    RUNNING = "running with IO"
    EXEC = "exec"
    DELETE = "delete"


@dataclass(slots=True)
class Play:
    """A container at its moment. ``sandbox_id`` names its pod, ``client`` is the ctr whose call is under way."""

    stage: Stage
    container_id: str
    sandbox_id: str
    client: "subprocess.Popen[bytes]"
    hold: Hold | None = None
    others: tuple[str, ...] = field(default=())

    def let_go(self) -> None:
        if self.hold is not None:
            self.hold.let_go()

    def finish(self, *, within: float = PATIENCE) -> tuple[int, str]:
        """Let go, and wait for the client: its exit code, and what it said on stderr."""
        self.let_go()
        _, said = self.client.communicate(timeout=within)
        return self.client.returncode, said.decode(errors="replace").strip()

    def close(self) -> None:
        process.finish(self.client)
        if self.hold is not None:
            self.hold.close()

    @property
    def ids(self) -> tuple[str, ...]:
        return (self.container_id, *self.others)


def at_start(stage: Stage, name: str) -> Play:
    """`start` waits for the lock of its pod."""
    hold = stage.hold_lock(name)
    words = stage.ctr.run_words(name, "sleep", "86400", options=["--rm", "--null-io"])
    return _held(Play(stage, name, name, stage.ctr.spawn(*words), hold))


def _held(play: Play) -> Play:
    """Wait until the call is held; a client that ends before has failed at something else."""
    hold, client = play.hold, play.client
    assert hold is not None
    eventually(f"{play.container_id} held", lambda: hold.held() or client.poll() is not None, within=PATIENCE)
    assert client.poll() is None, f"ended with {client.returncode} too soon: {client.communicate()[1]!r}"
    return play


def at_create(stage: Stage, name: str) -> Play:
    """Create waits for its logger; the VM has booted."""
    uri, hold = stage.hold_logger(name, "ready")
    words = stage.ctr.run_words(name, "sleep", "86400", options=["--rm", "--log-uri", uri])
    return _held(Play(stage, name, name, stage.ctr.spawn(*words), hold))


def at_running(stage: Stage, name: str) -> Play:
    """The container writes line after line, and ten of them have come out."""
    uri, hold = stage.hold_logger(name, "none")
    words = stage.ctr.run_words(name, "sh", "-c", _COUNT, options=["--rm", "--log-uri", uri])
    play = Play(stage, name, name, stage.ctr.spawn(*words), hold)
    await_lines(hold, 10)
    return play


def await_lines(hold: LoggerHold, count: int) -> None:
    """Wait until so many lines have come out; each is the next number."""
    eventually(f"{count} lines of output", lambda: hold.output.count("\n") >= count, within=PATIENCE)
    lines = hold.output.split("\n")[:-1]
    assert lines == [str(number) for number in range(len(lines))]


def at_exec(stage: Stage, name: str) -> Play:
    """An exec's Start waits for its logger; the container runs."""
    stage.ctr.start(name, "sleep", "86400")
    uri, hold = stage.hold_logger(name, "ready")
    client = stage.ctr.spawn("task", "exec", "--exec-id", "e", "--log-uri", uri, name, "sleep", "86400")
    return _held(Play(stage, name, name, client, hold))


def at_delete(stage: Stage, name: str) -> Play:
    """Delete waits for the reader of the container's output; its pod has another container, which runs."""
    sandbox_id = f"{name}-pod"
    stage.ctr.start(sandbox_id, "sleep", "86400", annotations={TYPE: "sandbox", SANDBOX: sandbox_id})
    uri, hold = stage.hold_logger(name, "read")
    script = f"head -c {UNREAD} /dev/zero; exit {ENDED_WITH}"
    notes = {TYPE: "container", SANDBOX: sandbox_id}
    options = ["--detach", "--log-uri", uri]
    stage.ctr(*stage.ctr.run_words(name, "sh", "-c", script, options=options, annotations=notes)).ok()
    eventually(f"the end of {name}", lambda: stage.ctr.tasks()[name][1] == "STOPPED", within=PATIENCE)
    play = Play(stage, name, sandbox_id, stage.ctr.spawn("task", "delete", name), hold, others=(sandbox_id,))
    stage.await_event(sandbox_id, "rpc-began", rpc="Delete")
    return play


REACH: Final[Mapping[Moment, Callable[[Stage, str], Play]]] = {
    Moment.START: at_start,
    Moment.CREATE: at_create,
    Moment.RUNNING: at_running,
    Moment.EXEC: at_exec,
    Moment.DELETE: at_delete,
}
