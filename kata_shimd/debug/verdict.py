"""What most likely went wrong, in one sentence: a table of rules over a pod's story; the first that fits speaks.

The order is the knowledge: a cause stands before what it brings about (a killed QEMU before the agent that went with it). A rule
looks at events and their fields. Only one reads prose, the guest's console, because a kernel has no other way to say it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from kata_shimd.debug.story import Entry, Story

#: Exit status of a process killed by SIGKILL, and of one whose VM is lost.
KILLED: Final = 137
LOST: Final = 255
_PANIC: Final = "Kernel panic"
#: Codes with which a verb is refused in ordinary use: by clients that ask whether something still is there.
_USUAL: Final = frozenset({"NOT_FOUND", "ALREADY_EXISTS", "FAILED_PRECONDITION", "UNIMPLEMENTED"})
_MAX: Final = 400


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which rule spoke, what it said and whether that is a failure."""

    rule: str
    sentence: str
    failed: bool = True


@dataclass(frozen=True, slots=True)
class Rule:
    """``test`` gives the sentence when the rule fits, else nothing."""

    name: str
    test: Callable[[Story], str]
    failed: bool = True


def judge(story: Story) -> Verdict:
    """The verdict of the first rule that fits."""
    for rule in RULES:
        if sentence := rule.test(story):
            return Verdict(rule.name, sentence, rule.failed)
    raise AssertionError("the last rule fits always")


def judge_container(story: Story, container: str) -> Verdict:
    """The verdict on one container of the pod: what befell the others, or came after its own end, is not blamed."""
    named = [entry for entry in story.entries if entry.text("container") == container]
    if named and named[-1].event == "refused":
        return Verdict("refused", f"Its start was refused: {_cut(named[-1].text('error'))}.")
    told = judge(story.of(container))
    if told.rule not in ("booting", "running") or (end := story.own_end(container)) is None:
        return told
    status = _status(end.fields.get("status", "?"))
    return Verdict("ended-well", f"Nothing went wrong: container {container} exited with {status}.", failed=False)


# --- rules -----------------------------------------------------------------------------------------------------------


def _unheard(story: Story) -> str:
    if story.entries:
        return ""
    return "The journal is empty: the daemon ended before it served, and why is in containerd's log."


def _refused(story: Story) -> str:
    """Of a pod that lived it is told to those alone who ask for the container: it was not the pod that failed."""
    entry = story.last("refused")
    if entry is None or story.last("daemon"):
        return ""
    return f"It was refused before there was a pod: {_cut(entry.text('error'))}."


def _bug(story: Story) -> str:
    if (entry := story.of_last_daemon().last("daemon-failed")) is None:
        return ""
    return f"The daemon failed, which is a bug of ours: {_cut(_last_line(entry.text('traceback')))}."


def _panic(story: Story) -> str:
    end = story.last("vm-ended", "qemu-ended", "boot-failed")
    event = next((entry for entry in story.all("qmp-event") if entry.text("name") == "GUEST_PANICKED"), None)
    line = _panic_line(end) if end else ""
    if not (event or line):
        return ""
    return f"The guest's kernel panicked: {line or 'see the console'}."


def _panic_line(end: Entry) -> str:
    lines = (end.text("console") or end.text("error")).splitlines()
    return next((_cut(line[line.index(_PANIC) :]) for line in lines if _PANIC in line), "")


def _virtiofsd(story: Story) -> str:
    if (entry := story.last("virtiofsd-ended")) is None:
        return ""
    said = _last_line(entry.text("stderr"))
    return (
        f"virtiofsd died ({_how(entry.text('status'))}), and the VM was ended, as its files were gone{_quoted(said)}."
    )


def _ended_by_us(story: Story, end: Entry) -> bool:
    ours = ("agent-lost", "kill-escalated", "vm-stop-escalates", "boot-failed", "virtiofsd-ended")
    return end.fields.get("expected") is True or story.before(end, *ours) is not None


def _qemu_killed(story: Story) -> str:
    end = story.last("vm-ended", "qemu-ended")
    if end is None or end.text("status") != "-9" or _ended_by_us(story, end):
        return ""
    return (
        "QEMU was killed with SIGKILL from outside, most likely by the host's OOM killer: "
        "see the kernel's log (dmesg), and the limit of the pod's cgroup."
    )


def _boot(story: Story) -> str:
    if (entry := story.last("boot-failed")) is None:
        return ""
    qemu = story.before(entry, "qemu-ended")
    phase = story.before(entry, "boot-phase")
    where = f" (in phase {phase.text('phase')}, {entry.after:.1f} s after the start)" if phase else ""
    cause = qemu.text("cause") if qemu else entry.text("error")
    return f"The VM did not boot{where}: {_cut(cause)}."


def _kill_escalated(story: Story) -> str:
    if (entry := story.last("kill-escalated")) is None:
        return ""
    container = entry.text("container")
    return f"The guest did not carry out SIGKILL for {container}, so the VM was ended: {_cut(entry.text('error'))}."


def _agent(story: Story) -> str:
    entry = story.last("agent-lost") or _channel_lost(story)
    if entry is None:
        return ""
    return f"The agent in the guest was lost, so the VM was ended: {_cut(entry.text('error'))}."


def _channel_lost(story: Story) -> Entry | None:
    """The channel ended, and then we ended the VM; one that ends by itself takes its channel along."""
    end = story.last("vm-ended")
    if end is None or end.fields.get("expected") is not True:
        return None
    return story.before(end, "channel-lost")


def _vm(story: Story) -> str:
    end = story.last("vm-ended")
    if end is None or end.fields.get("expected") is True:
        return ""
    said = _last_line(end.text("stderr"))
    return f"The VM ended unexpectedly: {_cut(end.text('cause'))}{_quoted(said)}."


def _exit_unknown(story: Story) -> str:
    ends = [entry for entry in story.all("exited") if entry.text("unknown") and not entry.text("exec")]
    if not ends:
        return ""
    entry = ends[-1]
    return (
        f"The guest did not tell how container {entry.text('container')} ended, which counts as status "
        f"{entry.text('status')}: {_cut(entry.text('unknown'))}."
    )


def _out_of_memory(story: Story) -> str:
    killed = {entry.text("container") for entry in story.all("oom")}
    for entry in reversed(tuple(story.all("exited"))):
        if entry.fields.get("status") == KILLED and entry.text("container") in killed:
            return (
                f"Container {_process(entry)} was killed by the guest's kernel for memory (exit status {KILLED}): "
                "its memory limit, or the VM's memory, is too small."
            )
    return ""


def _died(story: Story) -> str:
    story = story.of_last_daemon()
    if story.live or story.last("daemon-ended"):
        return ""
    answered = {entry.text("call") for entry in story.all("rpc")}
    serving = [entry.text("rpc") for entry in story.all("rpc-began") if entry.text("call") not in answered]
    doing = f"while it served {', '.join(serving)}" if serving else f"after its last event, {story.entries[-1].event}"
    return f"The daemon died without a word {doing}; see containerd's log and the kernel's (dmesg)."


def _expired(story: Story) -> str:
    if (entry := story.last("expired")) is None:
        return ""
    seconds = entry.text("seconds")
    return f"containerd never created a container in the pod, so it removed itself after {seconds} s."


def _abandoned(story: Story) -> str:
    if (entry := story.last("abandoned", "abandon-failed")) is None:
        return ""
    return (
        f"containerd gave container {entry.text('container')} up, most likely since an earlier call took longer than it "
        f"waits{_slowest(story)}."
    )


def _left(story: Story) -> str:
    if (entry := story.last("undo-failed")) is None:
        return ""
    return f"Something of container {entry.text('container')} would not go from the host: {_cut(entry.text('error'))}."


def _rpc(story: Story) -> str:
    failed = [entry for entry in story.all("rpc") if entry.text("code") not in ("", *_USUAL)]
    if not failed:
        return ""
    entry = failed[-1]
    return f"{entry.text('rpc')} failed with {entry.text('code')}: {_cut(entry.text('error'))}."


def _closed(story: Story) -> str:
    entry = story.last("accept-failed", "accepts-again")
    if entry is None or entry.event == "accepts-again":
        return ""
    return (
        f"The daemon can let nobody in who is not connected already ({_cut(entry.text('error'))}): raise its limit of open "
        "files, which it has from containerd (LimitNOFILE), or end what holds connections to it."
    )


def _containerd(story: Story) -> str:
    if story.last("events-dropped") is None:
        return ""
    return "containerd was gone or did not listen when the pod ended: its last events could not be delivered."


def _exit(story: Story) -> str:
    for entry in reversed(tuple(story.all("exited"))):
        status = entry.fields.get("status")
        if status not in (0, None) and not entry.text("exec"):
            return f"Nothing went wrong with the pod; container {_process(entry)} exited with {_status(status)}."
    return ""


def _starting(story: Story) -> str:
    if not story.live or story.last("agent-ready"):
        return ""
    phase = story.last("boot-phase")
    done = f"its phase {phase.text('phase')} is done" if phase else "no phase of it is done"
    return f"The VM is booting: {done}."


def _running(story: Story) -> str:
    if not story.live:
        return ""
    daemons = sum(1 for _ in story.all("daemon"))
    return f"Nothing went wrong so far: the pod runs{f', with its daemon number {daemons}' if daemons > 1 else ''}."


def _well(story: Story) -> str:
    return "Nothing went wrong: the pod ended as it was asked to."


RULES: Final = (
    Rule("no-journal", _unheard),
    Rule("refused", _refused),
    Rule("daemon-failed", _bug),
    Rule("guest-panic", _panic),
    Rule("virtiofsd-died", _virtiofsd),
    Rule("qemu-killed", _qemu_killed),
    Rule("boot-failed", _boot),
    Rule("kill-escalated", _kill_escalated),
    Rule("agent-lost", _agent),
    Rule("vm-ended", _vm),
    Rule("exit-unknown", _exit_unknown),
    Rule("out-of-memory", _out_of_memory),
    Rule("daemon-died", _died),
    Rule("abandoned", _abandoned),
    Rule("expired", _expired),
    Rule("undo-failed", _left),
    Rule("rpc-failed", _rpc),
    Rule("no-descriptors", _closed),
    Rule("containerd-gone", _containerd),
    Rule("container-exited", _exit, failed=False),
    Rule("booting", _starting, failed=False),
    Rule("running", _running, failed=False),
    Rule("ended-well", _well, failed=False),
)


# --- words -----------------------------------------------------------------------------------------------------------


def _process(entry: Entry) -> str:
    return "/".join(filter(None, (entry.text("container"), entry.text("exec"))))


def _status(status: object) -> str:
    if isinstance(status, int) and 128 < status < LOST:
        return f"status {status}, which is signal {status - 128}"
    return f"status {status}"


def _how(status: str) -> str:
    return f"killed by signal {status[1:]}" if status.startswith("-") else f"status {status}"


def _slowest(story: Story) -> str:
    """The slowest call; what was cancelled or took long is why containerd gave up."""
    calls = [(ms, entry) for entry in story.all("rpc") if isinstance(ms := entry.fields.get("ms"), int | float)]
    if not calls:
        return ""
    ms, entry = max(calls, key=lambda call: call[0])
    return f" (the slowest was {entry.text('rpc')}, {ms / 1000:.1f} s)"


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def _quoted(said: str) -> str:
    return f"; its last line was: {_cut(said)}" if said else ""


def _cut(text: str) -> str:
    """The beginning of what may be long and of several lines, without the dot at its end."""
    line = " / ".join(_lines(text)).rstrip(". ")
    return line if len(line) <= _MAX else line[:_MAX] + "…"


def _lines(text: str) -> Iterator[str]:
    return (line.strip() for line in text.splitlines() if line.strip())
