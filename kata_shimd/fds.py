"""The fds a daemon is born with: by systemd's protocol, so that a launcher, systemd or a keeper can be the parent.

``LISTEN_FDS`` fds from 3 on, named by ``LISTEN_FDNAMES`` (colon-separated), for the process ``LISTEN_PID``. This is the only
place that adopts an fd from the environment.
"""

import os
import socket
from collections.abc import Mapping, MutableMapping
from typing import Final, NamedTuple

from kata_shimd.errors import InvalidArgument

FIRST: Final = 3


def adopt(environ: MutableMapping[str, str]) -> Mapping[str, int]:
    """Name to fd; each is made close-on-exec, and the variables are removed so that no child believes them.

    :raises InvalidArgument: the variables are not for us, or disagree with each other
    """
    pid, count, names = (environ.pop(key, "") for key in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if not pid.isdigit() or int(pid) != os.getpid():
        raise InvalidArgument("adopt fds", "LISTEN_PID", f"{pid!r} is not us", hint="start it through the launcher")
    if not count.isdigit() or len(listed := names.split(":")) != int(count):
        raise InvalidArgument("adopt fds", "LISTEN_FDS", f"{count!r} fds, but their names are {names!r}")
    adopted = {name: FIRST + index for index, name in enumerate(listed)}
    for name, fd in adopted.items():
        try:
            os.set_inheritable(fd, False)
        except OSError as error:
            raise InvalidArgument("adopt fds", name, f"fd {fd} is not open") from error
    return adopted


class Words(NamedTuple):
    """One datagram of a keeper's: fds by name, and whether a new daemon has all there is by now."""

    fds: Mapping[str, int]
    start: bool


#: Longest datagram, and most fds in one.
_SIZE: Final = 16 << 10
_BATCH: Final = 64


def take(control: socket.socket) -> Words | None:
    """The keeper's next datagram; None when it has gone.

    :raises InvalidArgument: names and fds do not agree
    """
    text, fds, _, _ = socket.recv_fds(control, _SIZE, _BATCH, socket.MSG_CMSG_CLOEXEC)
    if not text:
        return None
    lines = dict(line.partition("=")[::2] for line in text.decode(errors="replace").splitlines())
    names = [name for name in lines.get("LISTEN_FDNAMES", "").split(":") if name]
    if len(names) != len(fds):
        for fd in fds:
            os.close(fd)
        raise InvalidArgument("adopt fds", "LISTEN_FDNAMES", f"{len(names)} names for {len(fds)} fds")
    return Words(dict(zip(names, fds, strict=True)), lines.get("START") == "1")


def take_all(control: int) -> Mapping[str, int] | None:
    """Wait until the keeper wants us to be the daemon: all that it holds; None when it has gone without."""
    sock = socket.socket(fileno=control)
    try:
        held: dict[str, int] = {}
        while (words := take(sock)) is not None:
            held |= words.fds
            if words.start:
                return held
        return None
    except ConnectionResetError:
        return None
    finally:
        sock.detach()
