"""The differences that are meant. `page` writes them to ``docs/differences.md``.

An `Answer` speaks of what one RPC answers in one situation, a `Life` of what becomes of the container from there on, so that
nothing more of it can be compared. Everything that is not in ``when`` may be anything; a fact that is not there reads ``no``.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from integration.differential.compare import Difference, Facts, compare, situations
from integration.differential.record import Record
from integration.differential.steps import Rpc, Sequence

When = Mapping[str, tuple[str, ...]]


def _holds(when: When, facts: Facts) -> bool:
    return all(facts.get(name, "no") in values for name, values in when.items())


@dataclass(frozen=True, slots=True)
class Answer:
    """``aspect``: as in `Difference`. ``runc`` and ``ours``: the values that may stand there; empty for any."""

    name: str
    rpcs: tuple[str, ...]
    when: When
    runc: tuple[str, ...]
    ours: tuple[str, ...]
    reason: str
    situation: str
    aspect: str = "code"
    #: What the two say, for the page, where it is no code.
    words: tuple[str, str] = ("any code", "any code")

    def covers(self, difference: Difference) -> bool:
        return (
            difference.facts["rpc"] in self.rpcs
            and difference.aspect == self.aspect
            and (not self.runc or difference.runc in self.runc)
            and (not self.ours or difference.ours in self.ours)
            and _holds(self.when, difference.facts)
        )


@dataclass(frozen=True, slots=True)
class Life:
    """From this call on the container lives differently. ``runc`` and ``ours`` are sentences for the page."""

    name: str
    rpcs: tuple[str, ...]
    when: When
    runc: str
    ours: str
    reason: str
    situation: str

    def begins(self, facts: Facts) -> bool:
        return facts["rpc"] in self.rpcs and _holds(self.when, facts)


UNKNOWN: Final = ("UNKNOWN",)
WRONG_STATE: Final = ("FAILED_PRECONDITION",)
INVALID: Final = ("INVALID_ARGUMENT",)
EVERY: Final = tuple(str(rpc) for rpc in Rpc)

ANSWERS: Final[tuple[Answer, ...]] = (
    Answer(
        name="wrong-state",
        rpcs=("Start", "Pause", "Resume", "Delete", "Update"),
        when={"state": ("created", "running", "paused", "stopped")},
        runc=UNKNOWN,
        ours=WRONG_STATE,
        situation="in a state that has no such step",
        reason="A code that says what is wrong; clients that look at it at all take it for what it is.",
    ),
    Answer(
        name="exec-in-vain",
        rpcs=("Exec",),
        when={"container": ("paused", "stopped"), "id": ("no", "reserved")},
        runc=UNKNOWN,
        ours=WRONG_STATE,
        situation="a container that is paused or has stopped",
        reason="As above.",
    ),
    Answer(
        name="create-again",
        rpcs=("Create",),
        when={"state": ("created", "running", "paused", "stopped")},
        runc=UNKNOWN,
        ours=("ALREADY_EXISTS",),
        situation="an id that is used",
        reason="The code that containerd itself answers for it.",
    ),
    Answer(
        name="bad-bundle",
        rpcs=("Create",),
        when={"flaw": ("no-config", "bad-json", "bad-stdio", "no-bundle")},
        runc=("UNKNOWN", "NOT_FOUND"),
        ours=INVALID,
        situation="bundle or request is wrong",
        reason="The caller's mistake, found before anything is made.",
    ),
    Answer(
        name="no-rootfs",
        rpcs=("Create",),
        when={"flaw": ("no-rootfs",)},
        runc=UNKNOWN,
        ours=("INTERNAL",),
        situation="a rootfs mount fails",
        reason="A step on the host failed; the error names mount and cause.",
    ),
    Answer(
        name="missing-program",
        rpcs=("Create",),
        when={"program": ("missing",), "state": ("absent",)},
        runc=UNKNOWN,
        ours=INVALID,
        situation="a program that is not there",
        reason="The guest agent's own code is handed on.",
    ),
    Answer(
        name="exec-of-missing-program",
        rpcs=("Start",),
        when={"runs": ("missing",), "process": ("exec",), "state": ("created",)},
        runc=UNKNOWN,
        ours=INVALID,
        situation="an exec of a program that is not there",
        reason="The guest agent's own code is handed on.",
    ),
    Answer(
        name="malformed-id",
        rpcs=("Create",),
        when={"id": ("malformed",)},
        runc=UNKNOWN,
        ours=INVALID,
        situation="an id that is no identifier",
        reason="Ids become file names on the host and in the guest; runc's shim relies on containerd having checked them.",
    ),
    Answer(
        name="malformed-exec-id-in-vain",
        rpcs=("Exec",),
        when={"id": ("malformed",), "container": ("paused", "stopped")},
        runc=UNKNOWN,
        ours=INVALID,
        situation="an id that is no identifier, in a container that takes no exec",
        reason="The id is looked at first.",
    ),
    Answer(
        name="no-such-signal",
        rpcs=("Kill",),
        when={"signal": ("65", "4294967295")},
        runc=("UNKNOWN", "OK"),
        ours=INVALID,
        situation="a signal that does not exist",
        reason="The guest agent's own code is handed on.",
    ),
    Answer(
        name="bad-resources",
        rpcs=("Update",),
        when={"flaw": ("bad-json", "not-an-object")},
        runc=UNKNOWN,
        ours=INVALID,
        situation="resources that are no OCI resources",
        reason="The caller's mistake.",
    ),
    Answer(
        name="close-io-of-unknown-exec",
        rpcs=("CloseIO",),
        when={"process": ("exec",), "state": ("absent",)},
        runc=UNKNOWN,
        ours=("NOT_FOUND",),
        situation="an exec that is not there",
        reason="The code that every other RPC answers for it.",
    ),
    Answer(
        name="checkpoint",
        rpcs=("Checkpoint",),
        when={"state": ("created", "running", "paused", "stopped")},
        runc=UNKNOWN,
        ours=("UNIMPLEMENTED",),
        situation="always, for a container that is there",
        reason="A container in a VM cannot be checkpointed, and containerd's documentation demands this code.",
    ),
    Answer(
        name="pids-of-stopped",
        rpcs=("Pids",),
        when={"state": ("stopped",)},
        aspect="reply.processes",
        words=("an empty list", "one entry a process, as while it ran"),
        runc=(),
        ours=(),
        situation="a container that has stopped",
        reason="containerd 1.7 and later take an empty list for a leaked shim and remove it; we answer with the VM's pid.",
    ),
    Answer(
        name="stopped-exec-in-paused",
        rpcs=EVERY,
        when={"seen": ("itself", "its exec")},
        aspect="state.status",
        runc=("PAUSED",),
        ours=("STOPPED",),
        situation="State of an exec that has ended, in a paused container",
        reason="It can be deleted, which clients do not try with a paused one.",
    ),
    Answer(
        name="state-of-stopped-exec-in-paused",
        rpcs=("State",),
        when={"process": ("exec",), "container": ("paused",)},
        aspect="reply.status",
        runc=("PAUSED",),
        ours=("STOPPED",),
        situation="an exec that has ended, in a paused container",
        reason="It can be deleted, which clients do not try with a paused one.",
    ),
    Answer(
        name="state-names-exec",
        rpcs=EVERY,
        when={"seen": ("itself", "its exec")},
        aspect="state.exec_id",
        words=("`exec_id` empty", "`exec_id` set"),
        runc=('""',),
        ours=(),
        situation="State of an exec",
        reason="The reply has a field for the exec's id; runc's shim leaves it empty.",
    ),
    Answer(
        name="shim-survives",
        rpcs=("(end)",),
        when={},
        aspect="shim",
        words=("the shim dies, and its containers with it", "the shim stays"),
        runc=("gone",),
        ours=("there",),
        situation="a sequence is over in which a request lacked its payload",
        reason="runc's shim follows a pointer that is nil.",
    ),
    Answer(
        name="state-of-an-exec",
        rpcs=("State",),
        when={"process": ("exec",)},
        aspect="reply.exec_id",
        words=("`exec_id` empty", "`exec_id` set"),
        runc=('""',),
        ours=(),
        situation="an exec",
        reason="The reply has a field for the exec's id; runc's shim leaves it empty.",
    ),
)

LIVES: Final[tuple[Life, ...]] = (
    Life(
        name="term-kills-init",
        rpcs=("Kill",),
        when={"process": ("init",), "state": ("running", "paused"), "signal": ("15",), "runs": ("sleep", "cat")},
        runc="nothing happens: the kernel ignores it for the init of a pid namespace",
        ours="it is killed, exit status 137",
        situation="SIGTERM to an init without a handler for it",
        reason="Kata's agent does so, that a pod's stop need not wait for its grace period.",
    ),
    Life(
        name="signal-before-start",
        rpcs=("Kill",),
        when={"process": ("init",), "state": ("created",), "signal": ("1", "10", "15", "28")},
        runc="its own init, which waits in the container's stead, takes it: SIGTERM and SIGHUP end it with exit status 2",
        ours="the guest's runtime decides: SIGTERM ends it with 137, others wait for the program",
        situation="a signal other than SIGKILL to a container that has not been started",
        reason="What runs before Start belongs to the runtime; runc's exit status is an accident of the language it is written in.",
    ),
    Life(
        name="kill-in-pause",
        rpcs=("Kill",),
        when={
            "process": ("exec",),
            "state": ("paused",),
            "container": ("paused",),
            "signal": ("1", "9", "10", "15"),
        },
        runc="on a host with cgroups v1 it ends once the container is resumed",
        ours="it may end at once",
        situation="a fatal signal to an exec in a paused container",
        reason="The guest has cgroups v2, whose freezer lets fatal signals through; so it is with runc on a host that has them.",
    ),
    Life(
        name="exec-before-start",
        rpcs=("Exec",),
        when={"container": ("created",)},
        runc="it is added and can be started",
        ours="FAILED_PRECONDITION",
        situation="a container that has not been started",
        reason="The guest agent runs execs in running containers only.",
    ),
    Life(
        name="no-payload",
        rpcs=("Exec", "Update"),
        when={"flaw": ("no-spec", "no-resources"), "container": ("created", "running")},
        runc="the shim dies",
        ours="INVALID_ARGUMENT",
        situation="an exec without a process, an update without resources",
        reason="A request that lacks what it is about harms nobody else.",
    ),
    Life(
        name="create-from-checkpoint",
        rpcs=("Create",),
        when={"flaw": ("checkpoint",), "state": ("absent",)},
        runc="the restore is begun, and fails at Start",
        ours="FAILED_PRECONDITION",
        situation="with a checkpoint to restore",
        reason="A container in a VM cannot be restored; `UNIMPLEMENTED` would make containerd 2.x ask again as v2.",
    ),
    Life(
        name="malformed-exec-id",
        rpcs=("Exec",),
        when={"id": ("malformed",), "container": ("created", "running")},
        runc="it is added, and used as a file name",
        ours="INVALID_ARGUMENT",
        situation="an id that is no identifier, or empty",
        reason="runc's shim relies on containerd having checked it; an empty one would stand for the container's init.",
    ),
    Life(
        name="bad-exec",
        rpcs=("Exec",),
        when={"flaw": ("no-args", "relative-cwd", "bad-stdio", "bad-json", "not-an-object"), "state": ("absent",)},
        runc="it is added; its Start fails",
        ours="INVALID_ARGUMENT",
        situation="a process that cannot be run as described",
        reason="Said where the mistake is made.",
    ),
)


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the OCI spec that does not reach the guest as it stands."""

    part: str
    fate: str
    reason: str


SPEC: Final[tuple[Part, ...]] = (
    Part(
        "`linux.uidMappings`, `linux.gidMappings`",
        "refused: `FAILED_PRECONDITION`",
        "The guest maps no ids, so files would get other owners.",
    ),
    Part(
        "`mounts`: `uidMappings`, `gidMappings`",
        "refused: `FAILED_PRECONDITION`",
        "The same, for one mount.",
    ),
    Part(
        "`hooks`",
        "refused: `FAILED_PRECONDITION`",
        "They are programs of the host that expect the container's processes and namespaces there.",
    ),
    Part(
        "`process.scheduler`, `process.ioPriority`, `process.execCPUAffinity`, `linux.personality`, `linux.netDevices`",
        "refused: `FAILED_PRECONDITION`",
        "The protocol of the guest's agent has no field for them.",
    ),
    Part(
        "`linux.resources.cpu`: burst, idle",
        "refused: `FAILED_PRECONDITION`",
        "The protocol of the guest's agent has no field for them.",
    ),
    Part(
        "`linux.resources.memory`: kernel, kernelTCP, swappiness, disableOOMKiller; `linux.resources.cpu`: realtimeRuntime, "
        "realtimePeriod",
        "refused by the default guest",
        "Its control groups are of version 2, which has no such limits.",
    ),
    Part(
        "`linux.resources.unified`, `linux.seccomp.defaultErrnoRet`, `process.user.umask` of a container",
        "honoured by the default guest, unknown to Kata's agent",
        "Kata's protocol has no field for them; they go in an annotation.",
    ),
    Part(
        "`process.user.umask` of an exec other than 022; `linux.resources.unified` in an Update that changes it",
        "refused: `UNIMPLEMENTED`",
        "Neither request has annotations.",
    ),
    Part(
        "`linux.resources.devices` in an Update",
        "left as they were at Create",
        "runc does the same; clients repeat the whole of a container's resources.",
    ),
    Part(
        "`linux.resources.memory`: useHierarchy, checkBeforeUpdate",
        "left out",
        "Version 2 of the control groups is always hierarchical, and makes a group reclaim what is over a new limit.",
    ),
    Part(
        "`linux.seccomp`",
        "left out while `disable_guest_seccomp` is true, Kata's default",
        "The VM is the boundary.",
    ),
    Part(
        "`linux.seccomp`: listenerPath, listenerMetadata",
        "left out",
        "A file descriptor cannot be handed to a process of the host.",
    ),
    Part(
        "`linux.devices`",
        "made with the number that is asked for",
        "What is behind it is the guest's device of that number; for those of `/dev/null` and its like it is the same.",
    ),
    Part(
        "the process and mounts of a pod's `/pause`", "left out", "It is a child of the agent, with no program to run."
    ),
    Part("`process.commandLine`, `windows`, `solaris`, `vm`, `zos`", "left out", "They are for other systems."),
    Part(
        "`process.apparmorProfile`, `process.selinuxLabel`, `linux.mountLabel`",
        "left out",
        "They name policies of the host's kernel.",
    ),
    Part(
        "`linux.namespaces`: network, cgroup, time",
        "the guest's",
        "A pod has one network and one cgroup root; clocks are the VM's.",
    ),
    Part("`linux.namespaces`: pid with a path", "the pod's shared one", "The path names a namespace of the host."),
    Part(
        "`linux.namespaces`: ipc, uts",
        "the pod's, with or without a path",
        "Containers of a pod share them; the path names a namespace of the host.",
    ),
    Part(
        "`linux.namespaces`: mount, pid, cgroup",
        "the container's own even where none is listed",
        "Without one it would be the agent's.",
    ),
    Part(
        "`linux.resources.cpu`: cpus, mems", "left out", "They are numbers of the host's processors and memory nodes."
    ),
    Part("`linux.resources`: network, rdma", "left out", "They are priorities of the host's interfaces and devices."),
    Part(
        "`linux.intelRdt`, `linux.timeOffsets`",
        "left out",
        "They are registers of the host's processor and clocks of the host.",
    ),
    Part(
        "`linux.cgroupsPath`",
        "the guest's own",
        "A path of the host may climb, and nothing in the guest depends on it.",
    ),
    Part(
        "`mounts`: binds of devices and sockets below `/dev`",
        "the guest's own",
        "A device number means nothing in another kernel.",
    ),
    Part(
        "`mounts`: `rshared`",
        "shared inside the guest, where `linux.rootfsPropagation` is `rshared` too, as CRI sets it",
        "What the container mounts is mounted in another kernel and does not reach the host.",
    ),
    Part("`mounts`: a bind at `/dev/shm`", "the pod's, in the guest", "Memory cannot be shared across kernels."),
)


RULES: Final[tuple[Answer | Life, ...]] = (*ANSWERS, *LIVES)


def _situation(facts: Facts) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())


@dataclass(slots=True)
class Judgement:
    """What no rule covers, and the rules that covered the rest, each with the situation in which it held."""

    left: list[Difference]
    used: set[tuple[str, str]]


def judge(sequence: Sequence, runc: Record, ours: Record) -> Judgement:
    """Compare two records."""
    used: set[tuple[str, str]] = set()
    parted = dict(_partings(sequence, runc, used))
    left = []
    for difference in compare(sequence, runc, ours):
        if difference.step >= parted.get(difference.container, difference.step + 1):
            continue
        rule = next((rule for rule in ANSWERS if rule.covers(difference)), None)
        if rule is None:
            left.append(difference)
        else:
            used.add((rule.name, f"{_situation(difference.facts)}: {difference.runc} → {difference.ours}"))
    return Judgement(left, used)


def _partings(sequence: Sequence, runc: Record, used: set[tuple[str, str]]) -> Iterator[tuple[str, int]]:
    """The step from which a container is not compared any more."""
    seen: set[str] = set()
    for number, container, facts in situations(sequence, runc):
        rule = next((rule for rule in LIVES if rule.begins(facts)), None)
        if rule is not None and container not in seen:
            seen.add(container)
            used.add((rule.name, _situation(facts)))
            yield container, number
