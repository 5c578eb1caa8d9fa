"""A story as lines for people: when, what, and what the event says, with long texts as blocks below.

The words of each event are one row of a table. An event without a row, or fields that a row does not use, are shown as they
are: nothing that was recorded is left out.
"""

import string
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from kata_shimd.debug.escape import block, one_line
from kata_shimd.debug.story import Entry, Story

#: Lines of a long text that are shown; all of them are in the JSON form.
BLOCK_LINES: Final = 20
_INDENT: Final = " " * 12 + "| "
#: Texts that are always blocks, because they are outputs of programs or of the guest.
_OUTPUTS: Final = frozenset({"stderr", "console", "traceback"})

_WORDS: Final[Mapping[str, str]] = {
    "daemon": "serves {namespace}/{id}, pid {pid}",
    "accelerator": "{choice}: {why}",
    "warning": "{text}",
    "rpc-began": "{rpc} ({call})",
    "boot-phase": "{phase} took {ms} ms",
    "nic": "interface {link}",
    "nic-lost": "interface {link} was taken away",
    "nic-refused": "{error}",
    "network-failed": "a change of the pod's network did not reach the guest: {error}",
    "boot-failed": "{error}",
    "agent-ready": "the agent answers",
    "agent-lost": "{error}",
    "channel-lost": "{error}",
    "qmp-event": "{name} {data}",
    "qemu-ended": "{cause}",
    "vm-ended": "{cause}",
    "vm-stop-escalates": "{after} was not enough after {seconds} s",
    "template-making": "template {key}",
    "template-made": "template {key} in {ms} ms, {mib} MiB for each clone to copy",
    "template-failed": "no template: {error}",
    "template-refused": "template {key} is not believed: {error}",
    "template-passed-over": "{why}",
    "template-ordered": "template {key} is being made by process {pid}",
    "cloned": "from template {key}",
    "clone-failed": "the pod is booted instead: {error}",
    "clone-ended": "{cause}",
    "virtiofsd-ended": "status {status}",
    "created": "container {container}",
    "started": "container {container}",
    "paused": "container {container}",
    "resumed": "container {container}",
    "deleted": "container {container}",
    "oom": "the guest's kernel killed for memory in container {container}",
    "kill-failed": "the VM could not be ended for container {container}: {error}",
    "kill-escalated": "SIGKILL for container {container} was not carried out: {error}",
    "abandoned": "containerd gave up container {container}",
    "abandon-failed": "container {container}: {error}",
    "undo-failed": "container {container}: {error}",
    "destroy-sandbox-failed": "{error}",
    "stop-not-recorded": "the pod ends, though the ledger does not say so: {error}",
    "fault-injected": "a test's fault comes with the ledger's line: {step}",
    "forward-failed": "no port-forward: {error}",
    "refused": "container {container}: {error}",
    "unheard": "the launcher that waited for the daemon is gone",
    "expired": "no Create within {seconds} s",
    "events-dropped": "containerd did not take the last events",
    "accept-failed": "nobody can connect: {error}",
    "accepts-again": "connections are let in again",
    "journal-short": "{lost} events before could not be written",
    "attached": "process {pid} of uid {uid} has the daemon's interpreter",
    "detached": "process {pid} has left it",
    "daemon-failed": "unforeseen",
    "upgrade": "hands the pod on to version {version}, {python}",
    "daemon-ended": "",
}
_WIDTH: Final = max(map(len, _WORDS))


def lines(story: Story) -> Iterator[str]:
    """Every entry in order, escaped."""
    told: set[str] = set()
    for entry in story.entries:
        said, rest = _SPECIAL.get(entry.event, _by_table)(entry)
        outputs = {key: value for key, value in rest.items() if _is_output(key, value)}
        others = (f"{one_line(key)}={one_line(value)}" for key, value in rest.items() if key not in outputs)
        words = " ".join(filter(None, (said, *others)))
        yield f"{_when(entry.after):>10}  {one_line(entry.event):<{_WIDTH}}  {words}".rstrip()
        for key, value in outputs.items():
            yield from _block(key, value, told)


def _by_table(entry: Entry) -> tuple[str, Mapping[str, Any]]:
    """The event's words, and the fields that are not in them."""
    template = _WORDS.get(entry.event, "")
    used = {name for _, name, _, _ in string.Formatter().parse(template) if name}
    values = {name: one_line(entry.fields.get(name, "?")) for name in used}
    rest = {key: value for key, value in entry.fields.items() if key not in used and value != ""}
    return template.format_map(values), rest


def _rpc(entry: Entry) -> tuple[str, Mapping[str, Any]]:
    known = ("rpc", "call", "ms", "code", "error", "cancelled")
    rest = {key: value for key, value in entry.fields.items() if key not in known}
    name, ms = one_line(entry.fields.get("rpc", "?")), one_line(entry.fields.get("ms", "?"))
    if entry.fields.get("cancelled"):
        return f"{name} was cancelled after {ms} ms", rest
    if entry.text("code"):
        return f"{name} failed after {ms} ms: {one_line(entry.text('code'))}: {one_line(entry.text('error'))}", rest
    return f"{name} took {ms} ms", rest


def _exited(entry: Entry) -> tuple[str, Mapping[str, Any]]:
    process = "/".join(filter(None, (entry.text("container"), entry.text("exec"))))
    unknown = f", for the guest did not tell: {one_line(entry.text('unknown'))}" if entry.text("unknown") else ""
    return f"container {one_line(process)}: status {one_line(entry.fields.get('status', '?'))}{unknown}", {}


_SPECIAL: Final[Mapping[str, Callable[[Entry], tuple[str, Mapping[str, Any]]]]] = {"rpc": _rpc, "exited": _exited}
#: Every event that has words.
EVENTS: Final = frozenset({*_WORDS, *_SPECIAL})


def _is_output(key: str, value: object) -> bool:
    return isinstance(value, str) and (key in _OUTPUTS or "\n" in value)


def _block(key: str, text: str, told: set[str]) -> Iterator[str]:
    """A long text once: the end of QEMU and the end of the VM carry the same."""
    if not text.strip() or text in told:
        return
    told.add(text)
    yield f"{'':12}{one_line(key)}:"
    yield from block(text, lines=BLOCK_LINES, indent=_INDENT)


def _when(after: float) -> str:
    """Milliseconds matter during a boot; after hours they do not."""
    if after < 600:
        return f"+{after:.3f}s"
    minutes, seconds = divmod(int(after), 60)
    hours, minutes = divmod(minutes, 60)
    return f"+{hours}h{minutes:02}m{seconds:02}s"
