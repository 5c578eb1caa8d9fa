"""A start that is nobody's: all that a daemon does before its pod begins, done on a stage, so that it has been done before.

What Python does for the first time it does slowly, and writes to: tables of types, caches in the code itself, pages that forks
share. The stage is a memory file system that only a mount namespace of its own has, so nothing is left of it, whenever the
rehearsal ends. A composition root above `daemon`. Must never happen: a loop, thread or descriptor is left over in the zygote, or a
rehearsal that does not work is more than a slower start.
"""

import asyncio
import ctypes
import faulthandler
import gc
import json
import logging
import os
import signal
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from kata_shimd import assembly, daemon, log
from kata_shimd.config import Loaded
from kata_shimd.config.model import AttachSetting, EventLoop, Keeping
from kata_shimd.errors import HostFailed, ShimError
from kata_shimd.ledger import NAME, Phase
from kata_shimd.newborn import Main

_log = logging.getLogger(__name__)

_CLONE_NEWNS: Final = 0x20000
_MS_REC: Final = 0x4000
_MS_SLAVE: Final = 0x80000
_libc: Final = ctypes.CDLL(None, use_errno=True)

#: The interpreter has made its code its own after eight calls (3.11), and this is shared by all children.
_IN_ZYGOTE: Final = 10
#: What a child writes to at the first time, and finds in its caches, it has by then.
_IN_CHILD: Final = 3

#: What is covered by the stage, in a namespace that nobody else has; every system has it.
_STAGE: Final = Path("/run")
_RUN: Final = _STAGE / "kata-shimd"
_BUNDLE: Final = _STAGE / "bundle"
_POD: Final = _RUN / "pods" / ("0" * 20)
_SPEC: Final = {
    "ociVersion": "1.0.2",
    "annotations": {"io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-id": "rehearsal"},
    "linux": {"namespaces": [{"type": "network"}]},
}


def in_zygote() -> None:
    """What is rehearsed here, every child has behind it. On a loop of the plain kind, which is closed and leaves nothing."""
    loop = asyncio.SelectorEventLoop()
    try:
        rehearse(loop, _IN_ZYGOTE)
    finally:
        loop.close()


def in_child() -> Main:
    """A child's own rehearsal, on the loop that it will have unless it is configured to have another; the daemon's ``main``."""
    loop = daemon.loop_factory(EventLoop.AUTO)()
    rehearse(loop, _IN_CHILD)
    return partial(daemon.main, loop=loop)


def rehearse(loop: asyncio.AbstractEventLoop, times: int) -> None:
    """What does not work is a warning."""
    try:
        for _ in range(times):
            with _stage(), _undisturbed():
                _play(loop)
                gc.collect()  # of what is left, some hold a descriptor
    except (ShimError, OSError) as error:
        _log.warning("no rehearsal: %s", error)


def _play(loop: asyncio.AbstractEventLoop) -> None:
    argv = ["--run-dir", _RUN, "--pod-dir", _POD, "--bundle", _BUNDLE, "--launcher", _STAGE / "launcher"]
    arguments = daemon.parse([*map(str, argv), "--namespace", "n", "--id", "rehearsal", "--address", "a"])
    listener = _furnished()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)}
    log.configure(arguments.bundle / "log", debug=False)
    _log.info("a line of each kind: %s", "said")
    loaded = _harmless(assembly.configure(arguments.bundle, b"", os.environ.get("KATA_CONF_FILE")))
    loop.run_until_complete(daemon.serve(arguments, {"listen": listener}, loaded, asyncio.Event(), None, _live))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.remove_signal_handler(number)
    faulthandler.unregister(signal.SIGUSR1)
    for number, handler in before.items():
        signal.signal(number, handler)


def _furnished() -> int:
    """What a launcher leaves a daemon; the listening socket."""
    for made in (_POD, _RUN / "journal", _BUNDLE):
        made.mkdir(mode=0o700, parents=True)
    (_BUNDLE / "config.json").write_text(json.dumps(_SPEC))
    os.mkfifo(_BUNDLE / "log")
    lines = ({"op": "open", "v": 1}, {"op": "plan", "n": 1, "scope": "pod", "kind": "process", "what": "daemon"})
    (_POD / NAME).write_text("".join(json.dumps(line) + "\n" for line in lines))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(_POD / "shim.sock"))
        listener.listen()
        return listener.detach()


def _harmless(loaded: Loaded) -> Loaded:
    """Nothing that would start a process or a thread."""
    shimd = replace(loaded.config.shimd, keeper=Keeping.OFF, attach=AttachSetting.SIGNAL)
    return replace(loaded, config=replace(loaded.config, shimd=shimd))


async def _live(
    arguments: daemon.Arguments, inherited: Mapping[str, int], parts: assembly.Parts, served: asyncio.Event
) -> None:
    shim = daemon.join(arguments, inherited, parts)
    parts.ledger.phase(Phase.RUNNING)
    await shim.server.close(0)
    parts.ledger.close()
    parts.journal.close()


@contextmanager
def _stage() -> Iterator[None]:
    """An empty memory file system where everybody else sees something else.

    :raises HostFailed: we may not make one
    """
    home, here = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC), os.open(".", os.O_PATH | os.O_CLOEXEC)
    try:
        _call(_libc.unshare(_CLONE_NEWNS))
        try:
            # What is unmounted elsewhere is unmounted here too.
            _call(_libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_SLAVE), None))
            _call(_libc.mount(b"rehearsal", bytes(_STAGE), b"tmpfs", ctypes.c_ulong(0), None))
            yield
        finally:
            _call(_libc.setns(home, _CLONE_NEWNS))
            os.fchdir(here)
    finally:
        os.close(home)
        os.close(here)


def _call(result: int) -> None:
    if result != 0:
        raise HostFailed("rehearse", "mount namespace", os.strerror(ctypes.get_errno()))


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Logging is afterwards as it was."""
    root, shown = logging.getLogger(), logging.raiseExceptions
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        for handler in root.handlers:
            if handler not in handlers:
                handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.raiseExceptions = shown
