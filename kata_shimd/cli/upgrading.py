"""One pod's move, as its daemon is asked for it and then watched: by `kata_shimd.v1.Pod` on the pod's own socket.

The connection outlives the daemon like each of containerd's, so whoever serves at the end answers on it.
"""

import asyncio
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

from betterproto2 import Message

from kata_shimd import journal, wire
from kata_shimd.api import pod as pb
from kata_shimd.api.descriptors import MethodDescriptor
from kata_shimd.api.services import pod as rpcs
from kata_shimd.cli.upgrade import Outcome, Result
from kata_shimd.debug import pods
from kata_shimd.errors import Code, DeadlineExceeded, FailedPrecondition, ShimError, Unavailable, Unimplemented
from kata_shimd.ttrpc import Client, RpcError

Req = TypeVar("Req", bound=Message)
Resp = TypeVar("Resp", bound=Message)

SOCKET: Final = "shim.sock"
#: An answer from memory.
_ASK_SECONDS: Final = 10.0
#: The daemon's check of the other installation, which it bounds itself.
_CHECK_SECONDS: Final = 90.0
#: For a daemon of the version before to take over again, after one that failed.
_BACK_SECONDS: Final = 60.0
#: For a pod that stops to have ended: its machine and its events have their own budgets.
_END_SECONDS: Final = 30.0
_POLL_SECONDS: Final = 0.1
#: A daemon's last event.
ENDED: Final = "daemon-ended"


async def move(pod: pods.Pod, python: str, launcher: str, patience: int) -> Outcome:
    """Ask for it, and wait until a daemon has the pod again, whichever. A pod that ends meanwhile, as pods do, is no failure.

    :raises ShimError: it was refused, and nothing has happened
    """
    ended = Outcome(pod.name, pod.sandbox_id, "", "", Result.ENDED)
    try:
        outcome = await _moved(pod, python, launcher, patience)
    except ShimError:
        if await _has_ended(pod):
            return ended
        raise
    return ended if outcome.result is Result.UNKNOWN and await _has_ended(pod) else outcome


async def _has_ended(pod: pods.Pod) -> bool:
    """Whether it did as a pod that was told to: its daemon says so at the very end, or was told to and nothing of it is left.
    Of one that was given up neither is true."""
    until = time.monotonic() + _END_SECONDS
    while time.monotonic() < until:
        events = journal.read(pod.journal)
        last = next((event["event"] for event in reversed(events) if event["event"] in ("daemon", ENDED)), "")
        phase = pods.load(pod.run_dir, pod.name).phase
        if last == ENDED or phase is not pods.Phase.STOPPING:
            return bool(last == ENDED) or (phase is pods.Phase.ENDED and _was_told(events))
        await asyncio.sleep(_POLL_SECONDS)
    return False


def _was_told(events: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the last of the lives in a journal was told to end; a later daemon goes on with the life that the first began."""
    begun = [number for number, event in enumerate(events) if event["event"] == "daemon" and not event.get("later")]
    return any(event.get("rpc") == "Shutdown" for event in events[begun[-1] if begun else 0 :])


async def _moved(pod: pods.Pod, python: str, launcher: str, patience: int) -> Outcome:
    """:raises ShimError: it was refused, and nothing has happened"""
    async with Client(_connected(pod)) as client:
        before = await _describe(client, pod)
        asked = pb.UpgradeRequest(python=python, launcher=launcher, patience=patience)
        if _is_it(before, python, launcher):
            return Outcome(pod.name, pod.sandbox_id, before.version, before.version, Result.CURRENT)
        _check(before, pod)
        try:
            promised = (await _call(client, rpcs.UPGRADE, asked, _CHECK_SECONDS)).version
        except (DeadlineExceeded, Unavailable) as error:
            return Outcome(pod.name, pod.sandbox_id, before.version, "", Result.UNKNOWN, str(error))
        after = await _settled(client, before.pid, patience + _BACK_SECONDS)
    if after is None:
        why = f"no daemon has settled; version {promised} was to come; kata-shimd why {pod.name}"
        return Outcome(pod.name, pod.sandbox_id, before.version, "", Result.UNKNOWN, why)
    is_new = (after.python, after.version) == (python, promised)
    result = Result.UPGRADED if is_new else Result.BACK
    why = "" if result is Result.UPGRADED else _last_words(pod)
    return Outcome(pod.name, pod.sandbox_id, before.version, after.version, result, why)


def _connected(pod: pods.Pod) -> socket.socket:
    path = pod.directory / SOCKET
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.settimeout(_ASK_SECONDS)
        sock.connect(str(path))
    except OSError as error:
        sock.close()
        hint = "run as root; kata-shimd ps says whether it runs"
        raise Unavailable("reach daemon", str(path), error.strerror or str(error), hint=hint) from error
    return sock


def _is_it(found: pb.DescribeResponse, python: str, launcher: str) -> bool:
    from kata_shimd import __version__

    return (found.python, found.launcher, found.version) == (python, launcher, __version__)


def _check(found: pb.DescribeResponse, pod: pods.Pod) -> None:
    """:raises FailedPrecondition: the pod has no keeper"""
    if not found.kept:
        hint = 'it keeps its version until it ends; set shimd.keeper = "launcher" for the pods to come'
        raise FailedPrecondition("upgrade", pod.name, "the pod has no keeper", hint=hint)


async def _describe(client: Client, pod: pods.Pod) -> pb.DescribeResponse:
    """:raises Unimplemented: the daemon is of a version that knows nothing of upgrades"""
    try:
        return await _call(client, rpcs.DESCRIBE, pb.DescribeRequest(), _ASK_SECONDS)
    except RpcError as error:
        if error.code is not Code.UNIMPLEMENTED:
            raise
        cause = "its daemon is of a version that cannot hand its pod on"
        raise Unimplemented("upgrade", pod.name, cause, hint="it keeps its version until it ends") from error


async def _settled(client: Client, before: int, seconds: float) -> pb.DescribeResponse | None:
    """The daemon after ``before``, by pid, that has the pod; None when there is none in time, or the pod has ended."""
    until = time.monotonic() + seconds
    with suppress(Unavailable):
        while time.monotonic() < until:
            with suppress(DeadlineExceeded):
                found = await _call(client, rpcs.DESCRIBE, pb.DescribeRequest(), _ASK_SECONDS)
                if found.pid != before and found.settled:
                    return found
            await asyncio.sleep(_POLL_SECONDS)
    return None


async def _call(client: Client, rpc: MethodDescriptor[Req, Resp], request: Req, seconds: float) -> Resp:
    reply = await client.call(rpc.service, rpc.name, wire.encode(request), timeout=seconds)
    return wire.decode(rpc.response, reply)


def _last_words(pod: pods.Pod) -> str:
    """What the daemon that failed said last, and its keeper of it."""
    said = [words for name in ("daemon.stderr", "keeper.stderr") if (words := _last_line(pod.directory / name))]
    return "; ".join([*said, f"see kata-shimd why {pod.name}"])


def _last_line(path: Path) -> str:
    with suppress(OSError):
        lines = path.read_bytes().splitlines()
        return lines[-1].decode(errors="replace")[:400] if lines else ""
    return ""
