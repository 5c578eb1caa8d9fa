"""Plays one row: a container that runs, an agent that turns hostile, every verb meanwhile, and a judgement of what is seen."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from integration.chaos.moments import Play
from integration.chaos.play import again, dead, left
from integration.chaos.probe import overdue
from integration.chaos.stage import TIMEOUTS, Stage, configuration
from integration.harness import leaks
from integration.harness.ctr import PATIENCE
from integration.harness.scale import SCALE
from integration.harness.shim import PROCESS, RESOURCES, ShimSocket, json_any, process
from integration.harness.waiting import TooLate, eventually
from integration.hostile.vm.attacks import Row
from integration.hostile.vm.channel import Channel
from kata_shimd.errors import DeadlineExceeded, ShimError

#: Seconds from Kill to the container's end: the guest's time to carry it out, then QEMU's to end.
KILL_ENDS: Final = 2 * TIMEOUTS["kill"] * SCALE + 5.0
#: MiB that a daemon may grow by at its peak: the largest message, as frame, envelope and text, for each of a dozen calls at once.
MOST_MIB: Final = 12 * 3 * 4.0
#: Seconds between two questions for State.
_OFTEN: Final = 0.1
_TICKS: Final = "while :; do echo tick; sleep 1; done"

#: Every RPC that asks the guest something about a container that runs, all of them at once while the attack is on.
VERBS: Final[dict[str, dict[str, Any]]] = {
    "Exec": {"exec_id": "e", "terminal": True, "spec": json_any(PROCESS, process("true"))},
    "Stats": {},
    "Update": {"resources": json_any(RESOURCES, {"cpu": {"shares": 512}})},
    "Pause": {},
    "Resume": {},
    "CloseIO": {"stdin": True},
}
#: What needs the exec.
THEN: Final[dict[str, dict[str, Any]]] = {
    "ResizePty": {"exec_id": "e", "width": 80, "height": 24},
    "Start": {"exec_id": "e"},
}


@dataclass(frozen=True, slots=True)
class Result:
    """What was seen. ``code``: the client's exit; ``rule``, ``sentence``: of ``why``; ``state_ms``: the slowest answer of State,
    ``asked`` how often; ``mib``: by how much the daemon grew; ``complaints``: empty is good."""

    name: str
    extent: str
    code: int
    rule: str
    sentence: str
    asked: int
    state_ms: int
    mib: float
    seconds: float
    complaints: tuple[str, ...]


def play(stage: Stage, scene: leaks.Scene, row: Row, name: str) -> Result:
    """One row from beginning to end."""
    before, begin = leaks.snapshot(scene), time.monotonic()
    with Channel() as channel, _running(stage, channel, row, name) as at, Asker(stage, name, row) as asker:
        channel.attack(row.plan)
        complaints = [*_attacked(at, row)]
        code, _ = at.finish(within=PATIENCE)
        verdict = dead(at)
        hit = sum(channel.attacked.values())
    if not hit:
        complaints.append("no call was attacked")
    if code not in row.exit:
        complaints.append(f"the client ended with {code}, not {sorted(row.exit)}")
    if verdict.rule not in row.why:
        complaints.append(f"why says {verdict.rule}, not {'/'.join(sorted(row.why))}: {verdict.sentence}")
    complaints += [*asker.complaints(), *overdue(stage.pod(name).journal())]
    stage.remove(name)
    complaints += [*left(scene, before, "it"), *again(stage, name), *left(scene, before, "the retry")]
    took = round(time.monotonic() - begin, 1)
    seen = (asker.asked, round(asker.slowest * 1000), round(asker.mib, 1), took, tuple(complaints))
    return Result(row.name, row.extent, code, verdict.rule, verdict.sentence, *seen)


@contextmanager
def _running(stage: Stage, channel: Channel, row: Row, name: str) -> Iterator[Play]:
    """The container runs, and its output is read in the guest."""
    config = stage.directory / f"{name}.toml"
    program = str(channel.program)
    config.write_text(configuration(hypervisor={"path": program, "valid_hypervisor_paths": [program]}))
    options = ["--rm", *(["--null-io"] if row.silent else [])]
    ctr = replace(stage.ctr, config=config)
    at = Play(stage, name, name, ctr.spawn(*ctr.run_words(name, "sh", "-c", _TICKS, options=options)))
    try:
        stage.await_event(name, "rpc", rpc="Start")
        yield at
    finally:
        at.close()


def _attacked(at: Play, row: Row) -> Iterator[str]:
    """All verbs at once, and Kill beside them when nothing else would end it; then the end."""
    with ThreadPoolExecutor(len(VERBS) + len(THEN)) as pool:
        asked = {rpc: pool.submit(_ask, at, rpc) for rpc in VERBS}
        asked |= {rpc: pool.submit(_ask, at, rpc, after=asked["Exec"]) for rpc in THEN}
        if row.kill:
            at.stage.ctr.kill(at.container_id)
        within = KILL_ENDS if row.kill else PATIENCE
        try:
            eventually(f"the end of {at.container_id}", lambda: _stopped(at), within=within)
        except TooLate as error:
            yield str(error)
        for rpc, answer in asked.items():
            if not answer.result():
                yield f"{rpc} was not answered"


def _ask(at: Play, rpc: str, *, after: "Future[bool] | None" = None) -> bool:
    """Whether it was answered, well or not, or ended with its daemon."""
    if after is not None:
        after.result()
    fields = VERBS.get(rpc) or THEN.get(rpc, {})
    try:
        ShimSocket(at.stage.pod(at.container_id).directory / "shim.sock").code(rpc, id=at.container_id, **fields)
    except DeadlineExceeded:
        return False
    except (OSError, ShimError):
        return True
    return True


def _stopped(at: Play) -> bool:
    return at.stage.ctr.tasks().get(at.container_id, (0, "STOPPED"))[1] == "STOPPED"


class Asker:
    """Asks for State again and again as long as there is a daemon, and looks at how large that has become."""

    def __init__(self, stage: Stage, name: str, row: Row) -> None:
        self._stage, self._name, self._row = stage, name, row
        daemon = stage.pod(name).process("daemon")
        self._proc = daemon.proc
        (self._proc / "clear_refs").write_text("5")  # its peak counts from now on
        self._first = self._most = _peak_kib(self._proc)
        self._found: set[str] = set()
        self.asked, self.slowest = 0, 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ask State")

    @property
    def mib(self) -> float:
        return (self._most - self._first) / 1024

    def complaints(self) -> Iterator[str]:
        yield from sorted(self._found)
        if not self.asked:
            yield "State was never answered"
        if self.mib > MOST_MIB:
            yield f"the daemon grew by {self.mib:.0f} MiB"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set() and self._stage.daemon_lives(self._name):
            try:
                self._most = max(self._most, _peak_kib(self._proc))
                self._ask()
            except (AssertionError, TimeoutError, DeadlineExceeded) as error:
                self._found.add(f"State: {error or 'no answer'}")
            except (OSError, ShimError):
                pass  # deleted, or the daemon is ending
            self._stop.wait(_OFTEN)

    def _ask(self) -> None:
        begin = time.monotonic()
        state = self._stage.shim(self._name).state(self._name)
        self.asked, self.slowest = self.asked + 1, max(self.slowest, time.monotonic() - begin)
        if state.exited_at is not None and state.exit_status not in self._row.exit:
            self._found.add(f"State tells exit status {state.exit_status}")


def _peak_kib(proc: Path) -> int:
    """:raises OSError: it has ended"""
    fields = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
    return int(fields.get("VmHWM", "0").split()[0])
