"""A bug for each target, planted in what it feeds: each is one that somebody could make, and is found within few inputs.

What is planted is a patch of one attribute, so the code that the target runs is otherwise the real one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

#: The original attribute and a directory for programs in; the attribute with the bug.
Patch = Callable[[Any, Path], Any]


@dataclass(frozen=True, slots=True)
class Bug:
    """``where`` is the attribute's dotted name; ``words`` stand in what the engine raises."""

    where: str
    patch: Patch
    words: str


def _loses_the_last_event(receive: Any, _tmp: Path) -> Any:
    """A frame whose end comes with the beginning of another."""
    return lambda self, data: receive(self, data)[: 3 if len(data) % 2 else None]


def _forgets_a_byte(encode: Any, _tmp: Path) -> Any:
    return lambda message: encode(message)[: -1 if type(message).__name__ == "Mount" else None]


def _believes_the_guest(_wait: Any, _tmp: Path) -> Any:
    """No bounds on what the guest says is the status."""
    from kata_shimd.agent.client import pb, rpcs

    async def wait_process(self: Any, container_id: str, exec_id: str) -> int:
        request = pb.WaitProcessRequest(container_id=container_id, exec_id=exec_id or container_id)
        return int((await self._call(rpcs.WAIT_PROCESS, request, None, container_id)).status)

    return wait_process


def _reads_on(consume: Any, _tmp: Path) -> Any:
    """One byte too many, where there is one."""

    def greedy(connected: Any, count: int) -> None:
        consume(connected, count)
        try:
            connected.recv(1)
        except BlockingIOError:
            pass

    return greedy


def _lets_escape_through(harmless: Any, _tmp: Path) -> Any:
    return lambda char: char if char == "\x1b" else harmless(char)


def _leaks_the_librarys_error(connect: Any, _tmp: Path) -> Any:
    from kata_shimd.errors import VmFailed

    async def connects(*arguments: Any, **named: Any) -> Any:
        try:
            return await connect(*arguments, **named)
        except VmFailed as error:
            raise (error.__cause__ or error) from None

    return staticmethod(connects)


def _leaks_it_from_an_answer(run: Any, tmp: Path) -> Any:
    """The same, once the session stands."""
    return _leaks_the_librarys_error(run, tmp).__func__


def _takes_anybodys_answer(on_message: Any, _tmp: Path) -> Any:
    async def takes(self: Any, message: Any) -> None:
        if "return" in message and self._pending:
            message["id"] = next(iter(self._pending))
        await on_message(self, message)

    return takes


def _takes_process_for_granted(for_guest: Any, _tmp: Path) -> Any:
    def rewrite(spec: Mapping[str, Any], *arguments: Any, **named: Any) -> Any:
        spec["linux"]["namespaces"]
        return for_guest(spec, *arguments, **named)

    return rewrite


def _takes_any_path(_path: Any, _tmp: Path) -> Any:
    return lambda _name, path: Path(path) if path else None


def _takes_the_file_for_whole(_below: Any, _tmp: Path) -> Any:
    return lambda values, key: values[key.path].value


def _program(script: str) -> Patch:
    def patch(_launcher: Any, tmp: Path) -> Any:
        path = tmp / "launcher"
        path.write_text(f"#!/bin/sh\n{script}")
        path.chmod(0o755)
        return path

    return patch


def _counts_only_the_living(read: Any, _tmp: Path) -> Any:
    def reads(pod_dir: Path) -> Any:
        state = read(pod_dir)
        state.last = len(state.live)
        return state

    return reads


def _shows_what_it_reads(_one_line: Any, _tmp: Path) -> Any:
    return str


BUGS: Final[Mapping[str, Bug]] = {
    "ttrpc_frames": Bug(
        "kata_shimd.ttrpc.protocol.Connection.receive", _loses_the_last_event, "how the bytes were split"
    ),
    "messages": Bug("kata_shimd.wire.encode", _forgets_a_byte, "what was decoded"),
    "agent_replies": Bug("kata_shimd.agent.client.AgentClient.wait_process", _believes_the_guest, "is not in 0-255"),
    "handshake": Bug("kata_shimd.vm.dial._consume", _reads_on, "it read too much"),
    "console_bytes": Bug("kata_shimd.vm.console._harmless", _lets_escape_through, "drives a terminal"),
    "qmp_lines": Bug("kata_shimd.vm.monitor.Monitor.over", _leaks_the_librarys_error, ""),
    "oci_specs": Bug("kata_shimd.pod.spec.for_guest", _takes_process_for_granted, ""),
    "bootstrap": Bug("kata_shimd.config.options._path", _takes_any_path, "a path that no system call takes"),
    "config_toml": Bug("kata_shimd.config.annotations._below", _takes_the_file_for_whole, "hypervisor"),
    "launcher_stdin": Bug(
        "integration.fuzz.launcher_stdin.LAUNCHER",
        _program('case "$(tr -d "\\0")" in *toml*) exit 101 ;; esac\necho no >&2\nexit 1\n'),
        "101",
    ),
    "ledger_lines": Bug("kata_shimd.ledger.read", _counts_only_the_living, "a number would be given twice"),
    "journal_lines": Bug("kata_shimd.debug.timeline.one_line", _shows_what_it_reads, ""),
    "undo_ledgers": Bug(
        "integration.fuzz.undo_ledgers.LAUNCHER",
        _program('rm -f "$2/out/canary"\nexit 0\n'),
        "outside the pod directory",
    ),
}
#: For targets whose inputs go several ways, on one of which the first bug lies.
MORE: Final = (
    ("qmp_lines", Bug("kata_shimd.vm.monitor.Monitor._run", _leaks_it_from_an_answer, "")),
    ("qmp_lines", Bug("qemu.qmp.QMPClient._on_message", _takes_anybodys_answer, "an answer to somebody else")),
)
