"""virtiofsd, the daemon that serves the shared directory to the guest.

There are two: the C one that came with QEMU up to 7.2, and the Rust one since. Their options differ; which it is is asked of
the program itself. It runs as root, since it acts for every user of the guest, but in namespaces of its own around the shared
directory, with its own seccomp filter, and without a way to gain privileges.
"""

import asyncio
import os
import socket
import subprocess
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Final

from kata_shimd.errors import HostFailed, InvalidArgument
from kata_shimd.host.process import Gate, Process, spawn
from kata_shimd.ledger import BOOT, Ledger
from kata_shimd.vm import sockets
from kata_shimd.vm.share import SharedDirectory
from kata_shimd.vm.spec import CacheMode, ShareSpec

WHAT: Final = "virtiofsd"
STDERR: Final = "virtiofsd.stderr"
_HINT: Final = "install virtiofsd, or set virtio_fs_daemon"
_MAX_VERSION: Final = 4096


class Dialect(Enum):
    C = "c"
    RUST = "rust"


#: The C daemon calls `never` "none" and does not know `metadata`.
_C_CACHE: Final = {CacheMode.NEVER: "none", CacheMode.AUTO: "auto", CacheMode.ALWAYS: "always"}


@dataclass(frozen=True, slots=True)
class Serving:
    """A running virtiofsd, and the connection to it that QEMU is to have."""

    process: Process
    socket: socket.socket


@dataclass(frozen=True, slots=True)
class Server:
    """A virtiofsd program whose options are known."""

    program: Path
    dialect: Dialect
    share: ShareSpec

    @classmethod
    async def probe(cls, share: ShareSpec, *, timeout: float) -> "Server":
        """:raises HostFailed: no candidate exists, or it does not answer"""
        program = find(share.programs)
        return cls(program, dialect(await asyncio.to_thread(_version, program, timeout)), share)

    def start(self, ours: ExitStack, directory: SharedDirectory, ledger: Ledger, gate: Gate, *, debug: bool) -> Serving:
        """Spawn it on a socket bound here. ``ours`` closes our copies of the descriptors.

        It stays in the host's network namespace and makes an empty one of its own.

        :raises HostFailed, InvalidArgument: it cannot be started so
        """
        pod_dir = ledger.pod_dir
        listening = ours.enter_context(sockets.listen(pod_dir / sockets.VIRTIOFS))
        connected = ours.enter_context(sockets.connect(pod_dir / sockets.VIRTIOFS))
        # QEMU's chardev wants to find it as any other descriptor it opened.
        connected.setblocking(True)
        fd = listening.fileno()
        process = spawn(
            ledger,
            replace(gate, netns=None, no_new_privs=True),
            argv(self.program, self.dialect, self.share, directory.export, fd, debug=debug),
            what=WHAT,
            stderr=pod_dir / STDERR,
            pass_fds=(fd,),
            scope=BOOT,
            needs=(directory.record,),
        )
        return Serving(process, connected)


def find(programs: Iterable[Path]) -> Path:
    """The first of ``programs`` that can be executed.

    :raises HostFailed: there is none
    """
    looked = tuple(programs)
    for program in looked:
        if program.is_file() and os.access(program, os.X_OK):
            return program
    raise HostFailed("start virtiofsd", ", ".join(map(str, looked)), "not found or not executable", hint=_HINT)


def _version(program: Path, timeout: float) -> str:
    step = "ask virtiofsd for its version"
    try:
        done = subprocess.run(
            [program, "--version"], capture_output=True, stdin=subprocess.DEVNULL, timeout=timeout, check=False
        )
    except OSError as error:
        raise HostFailed(step, str(program), error.strerror or "", hint=_HINT) from error
    except subprocess.TimeoutExpired as error:
        raise HostFailed(step, str(program), f"no answer in {timeout:g} s", hint=_HINT) from error
    said = (done.stdout + done.stderr)[:_MAX_VERSION].decode(errors="replace").strip()
    if done.returncode != 0:
        raise HostFailed(step, str(program), said or f"status {done.returncode}", hint=_HINT)
    return said


def dialect(version: str) -> Dialect:
    """``virtiofsd 1.10.0`` is the Rust one's answer, the C one's first word is followed by ``version``."""
    words = version.split()
    numbered = len(words) > 1 and words[0] == "virtiofsd" and words[1][:1].isdigit()
    return Dialect.RUST if numbered else Dialect.C


def argv(program: Path, kind: Dialect, share: ShareSpec, directory: Path, fd: int, *, debug: bool) -> list[str]:
    """The command line; ``fd`` is a listening socket.

    :raises InvalidArgument: the daemon cannot do what is asked of it
    """
    build = _rust_options if kind is Dialect.RUST else _c_options
    return [str(program), f"--fd={fd}", *build(share, directory, debug=debug), *share.extra_args]


def _rust_options(share: ShareSpec, directory: Path, *, debug: bool) -> list[str]:
    return [
        f"--shared-dir={directory}",
        f"--cache={share.cache.value}",
        "--sandbox=namespace",
        "--seccomp=kill",
        f"--thread-pool-size={share.threads}",
        "--announce-submounts",
        *(["--xattr"] if share.xattr else []),
        f"--log-level={'debug' if debug else 'warn'}",
    ]


def _c_options(share: ShareSpec, directory: Path, *, debug: bool) -> list[str]:
    if share.cache not in _C_CACHE:
        raise InvalidArgument("start virtiofsd", f"cache={share.cache.value}", "the C virtiofsd has no such mode")
    options = (
        f"source={directory}",
        f"cache={_C_CACHE[share.cache]}",
        "sandbox=namespace",
        "announce_submounts",
        "xattr" if share.xattr else "no_xattr",
        f"log_level={'debug' if debug else 'warn'}",
    )
    return ["-f", *(word for option in options for word in ("-o", option)), f"--thread-pool-size={share.threads}"]
