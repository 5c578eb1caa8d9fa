"""The keys of [shimd] and [shimd.timeouts], which are ours: Kata skips tables it does not know. Data only."""

from typing import Final

from kata_shimd.config.key import ABSENT, Key, Table
from kata_shimd.config.kinds import BOOL, MAX_SECONDS, PATH, Kind, between, choice, number
from kata_shimd.config.kinds import no_text as _no_text
from kata_shimd.config.model import AcceleratorSetting, AgentTransport, AttachSetting, EventLoop, Keeping

GUEST_DIR: Final = "/var/lib/kata-shimd/guest/current"
FACTOR: Final = Kind("number", number(0, 1000), _no_text)
SHORT: Final = Kind("seconds", number(0.01, MAX_SECONDS), _no_text)

S: Final = Table("shimd")
T: Final = Table("shimd.timeouts")


def _kib(name: str, default: int, meaning: str) -> Key:
    return S.acts(name, between(16, 1024 * 1024, unit="KiB"), default, meaning, kata=ABSENT)


def _deadline(name: str, seconds: float, meaning: str, *, inside: bool = False) -> Key:
    return T.acts(name, SHORT, seconds, meaning, kata=ABSENT, inside=inside)


SHIMD_KEYS: Final[tuple[Key, ...]] = (
    S.acts(
        "strict",
        BOOL,
        False,
        "unknown keys and annotations are errors when a pod starts, not warnings",
        kata=ABSENT,
        inside=True,
    ),
    S.acts(
        "accelerator",
        choice(AcceleratorSetting),
        "auto",
        "auto: KVM when `/dev/kvm` works and the CPU has vmx or svm, else TCG",
        kata=ABSENT,
    ),
    S.acts("event_loop", choice(EventLoop), "auto", "auto: uvloop when it can be imported", kata=ABSENT),
    S.acts(
        "agent_transport",
        choice(AgentTransport),
        "auto",
        "auto: virtio-serial for the guest of `guest_dir`, vsock for Kata's",
        kata=ABSENT,
    ),
    S.acts(
        "keeper",
        choice(Keeping),
        "off",
        "what holds a pod's connections and starts its daemon again when it dies: `systemd`, for pods that are its units; "
        "`launcher`, for others; `auto`, whichever it is; or nothing",
        kata=ABSENT,
    ),
    S.acts("keeper_spare", BOOL, False, "the next daemon is started ahead: quicker, for its memory", kata=ABSENT),
    S.acts("keeper_deaths", between(0, 1_000_000), 10, "more deaths of daemons than this end the pod ...", kata=ABSENT),
    S.acts("keeper_seconds", between(1, 86_400, unit="seconds"), 120, "... within this time", kata=ABSENT),
    S.acts(
        "attach",
        choice(AttachSetting),
        "signal",
        "root may attach to the daemon's interpreter: `signal`, once `kata-shimd attach` has asked by signal; `always`, also when "
        "the daemon takes no more signals; `never`",
        kata=ABSENT,
    ),
    S.acts(
        "guest_dir", PATH, GUEST_DIR, "the built guest: `vmlinuz`, `initrd.img`, `rootfs.img`", kata=ABSENT, inside=True
    ),
    S.acts(
        "time_scale",
        FACTOR,
        0,
        "factor on all deadlines; 0: by accelerator (1 for KVM, 4 for TCG)",
        kata=ABSENT,
        inside=True,
    ),
    _kib("console_log_size_kib", 1024, "how much of the guest's console is kept"),
    _kib("journal_size_kib", 1024, "how much of a pod's journal is kept"),
    S.acts("journal_keep", between(0, 100_000), 64, "how many journals of dead pods are kept", kata=ABSENT),
)

TIMEOUT_KEYS: Final[tuple[Key, ...]] = (
    _deadline("hello_interval", 0.25, "between two attempts to greet the agent over virtio-serial"),
    _deadline("health", 30, "one health check of the agent"),
    _deadline("health_interval", 5, "between two health checks"),
    _deadline("create_sandbox", 60, "setting up the sandbox in the guest"),
    _deadline("agent_rpc", 60, "any other RPC to the agent that has no deadline of its own"),
    _deadline("kill", 5, "SIGKILL in the guest, before the VM is killed instead"),
    _deadline("qmp", 10, "QEMU's start up to its monitor, and one QMP command"),
    _deadline("clone", 3, "the guest of a clone answering, before the pod is booted instead"),
    _deadline("virtiofsd", 10, "virtiofsd saying which one it is, before it is started"),
    _deadline("hotplug", 30, "a hot-plugged device becoming usable in the guest"),
    _deadline("stop", 20, "stopping a VM, all in all: the steps below may not add up to more", inside=True),
    _deadline("stop_agent", 3, "of which: for the agent"),
    _deadline("stop_quit", 2, "of which: for QEMU to quit when asked through QMP"),
    _deadline("stop_term", 2, "of which: for QEMU to end after SIGTERM"),
    _deadline("stop_kill", 10, "of which: for QEMU to die of SIGKILL, when the kernel holds it"),
    _deadline(
        "last_words",
        1,
        "what comes just after an end: QEMU's own after its agent's or virtiofsd's, its last events and state",
    ),
    _deadline(
        "teardown_step", 2, "one step of taking down a pod: the last events, the last replies, the end of a logger"
    ),
    _deadline("drain", 10, "the guest handing over the rest of an ended process's output"),
    _deadline("reader_stall", 1, "a reader of output that takes nothing, before its process may end without it"),
    _deadline("output_stall", 10, "a reader of output that takes nothing, after its container was deleted"),
    _deadline("execs_end", 5, "execs that outlive their container's init"),
    _deadline("publish_event", 5, "one attempt to hand an event to containerd"),
    _deadline("create_wait", 60, "a booted pod waiting for its first Create before it removes itself"),
    _deadline("abandoned_wait", 5, "the same, once containerd has had the pod deleted"),
)

KEYS: Final[tuple[Key, ...]] = (*SHIMD_KEYS, *TIMEOUT_KEYS)

#: Deadlines that Kata has keys for: the field of ``Timeouts`` and the key it is taken from.
FROM_KATA: Final = {"dial_agent": "agent.kata.dial_timeout", "create_container": "runtime.create_container_timeout"}
