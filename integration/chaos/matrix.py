"""The table: who dies, at which moment, and what everybody is to see of it. Data only; `play` plays it, `page` shows it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from integration.chaos.moments import ENDED_WITH, Moment
from integration.chaos.victims import Victim


@dataclass(frozen=True, slots=True)
class Expected:
    """``client``: exit codes that the ctr whose call is under way may end with, ``says``: a pattern of its stderr.

    ``why``: the rules by which ``kata-shimd why`` may name the cause. ``survives``: the containers go on, and can be killed.
    ``leaves``: why something stays on the host until the retry; empty when nothing may.
    """

    client: frozenset[int]
    says: str
    why: frozenset[str]
    survives: bool = False
    leaves: str = ""


@dataclass(frozen=True, slots=True)
class Senseless:
    """There is nothing to play."""

    because: str


Cell = Expected | Senseless


def _cell(client: int, says: str, *why: str, survives: bool = False, leaves: str = "") -> Expected:
    return Expected(frozenset({client}), says, frozenset(why), survives, leaves)


#: What containerd's client says when its connection, or containerd's own to the daemon, has ended.
_BROKEN: Final = "ttrpc: closed|connection (refused|reset)|[Uu]navailable|EOF|broken pipe|not found"
#: `ctr task delete` ends with 0 whatever the container's status was, and warns of it; the container had ended before anything died.
_ITS_END: Final = f"exit code {ENDED_WITH}"
#: `start` undoes what it made unless it is killed itself, and containerd calls nothing after a failed one (`containerd.md` §6.2).
_NOBODY_CALLS: Final = (
    "containerd calls nothing after a `start` that failed; the next `start` or `delete` of the id undoes it"
)
_ENDED_IN_START: Final = (
    "containerd kills its `start` when it is stopped, which leaves the pod's empty lock; the next `start` or `delete` of the id "
    "removes it"
)
#: Two failures at once: with the daemon dead, the `delete` that containerd runs for it is killed too.
_TWICE: Final = (
    "both the daemon and the `delete` that was to clean up after it were killed; the next `start` or `delete` undoes it"
)
_NO_START: Final = Senseless("`start` has ended long ago; no launcher runs")

CELLS: Final[Mapping[tuple[Victim, Moment], Cell]] = {
    (Victim.DAEMON, Moment.START): _cell(1, "daemon|shim", "daemon-died", "no-journal", "refused"),
    (Victim.DAEMON, Moment.CREATE): _cell(1, _BROKEN, "daemon-died"),
    (Victim.DAEMON, Moment.RUNNING): _cell(1, _BROKEN, "daemon-died"),
    (Victim.DAEMON, Moment.EXEC): _cell(1, _BROKEN, "daemon-died"),
    (Victim.DAEMON, Moment.DELETE): _cell(1, _BROKEN, "daemon-died"),
    (Victim.QEMU, Moment.START): _cell(1, "QEMU", "qemu-killed", "boot-failed"),
    (Victim.QEMU, Moment.CREATE): _cell(1, "QEMU was killed by SIGKILL", "qemu-killed"),
    (Victim.QEMU, Moment.RUNNING): _cell(255, "", "qemu-killed"),
    (Victim.QEMU, Moment.EXEC): _cell(1, "QEMU was killed by SIGKILL", "qemu-killed"),
    (Victim.QEMU, Moment.DELETE): _cell(0, _ITS_END, "qemu-killed"),
    (Victim.VIRTIOFSD, Moment.START): _cell(1, "virtiofsd ended with status -9", "virtiofsd-died", "boot-failed"),
    (Victim.VIRTIOFSD, Moment.CREATE): _cell(1, "virtiofsd ended with status -9", "virtiofsd-died"),
    (Victim.VIRTIOFSD, Moment.RUNNING): _cell(255, "", "virtiofsd-died"),
    (Victim.VIRTIOFSD, Moment.EXEC): _cell(1, "virtiofsd ended with status -9", "virtiofsd-died"),
    (Victim.VIRTIOFSD, Moment.DELETE): _cell(0, _ITS_END, "virtiofsd-died"),
    (Victim.AGENT, Moment.START): Senseless(
        "nothing is connected yet; an agent that never answers is a test of its own (`test_failures.py`)"
    ),
    (Victim.AGENT, Moment.CREATE): _cell(1, "VM|agent", "agent-lost"),
    (Victim.AGENT, Moment.RUNNING): _cell(255, "", "agent-lost"),
    (Victim.AGENT, Moment.EXEC): _cell(1, "VM|agent", "agent-lost"),
    (Victim.AGENT, Moment.DELETE): _cell(0, _ITS_END, "agent-lost"),
    (Victim.CONTAINERD, Moment.START): _cell(1, _BROKEN, "no-journal", "expired", "abandoned", "refused"),
    (Victim.CONTAINERD, Moment.CREATE): _cell(1, _BROKEN, "abandoned"),
    (Victim.CONTAINERD, Moment.RUNNING): _cell(1, _BROKEN, "running", survives=True),
    (Victim.CONTAINERD, Moment.EXEC): _cell(1, _BROKEN, "running", survives=True),
    (Victim.CONTAINERD, Moment.DELETE): _cell(1, _BROKEN, "running", "container-exited", survives=True),
    (Victim.AWAY, Moment.START): _cell(1, _BROKEN, "no-journal", "refused", leaves=_ENDED_IN_START),
    (Victim.AWAY, Moment.CREATE): _cell(1, _BROKEN, "abandoned"),
    (Victim.AWAY, Moment.RUNNING): _cell(1, _BROKEN, "running", survives=True),
    (Victim.AWAY, Moment.EXEC): _cell(1, _BROKEN, "running", survives=True),
    (Victim.AWAY, Moment.DELETE): _cell(1, _BROKEN, "running", "container-exited", survives=True),
    (Victim.LAUNCHER, Moment.START): _cell(1, "killed", "expired", "no-journal", leaves=_NOBODY_CALLS),
    (Victim.LAUNCHER, Moment.CREATE): _NO_START,
    (Victim.LAUNCHER, Moment.RUNNING): _NO_START,
    (Victim.LAUNCHER, Moment.EXEC): _NO_START,
    (Victim.LAUNCHER, Moment.DELETE): _NO_START,
    (Victim.DELETE, Moment.START): _cell(1, "daemon|shim", "daemon-died", "no-journal", leaves=_TWICE),
    (Victim.DELETE, Moment.CREATE): _cell(1, _BROKEN, "daemon-died", leaves=_TWICE),
    (Victim.DELETE, Moment.RUNNING): _cell(1, _BROKEN, "daemon-died", leaves=_TWICE),
    (Victim.DELETE, Moment.EXEC): _cell(1, _BROKEN, "daemon-died", leaves=_TWICE),
    (Victim.DELETE, Moment.DELETE): _cell(1, "undo ended with -9", "rpc-failed", survives=True),
}
