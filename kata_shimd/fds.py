"""The fds a daemon is born with: by systemd's protocol, so that a launcher, systemd or a keeper can be the parent.

``LISTEN_FDS`` fds from 3 on, named by ``LISTEN_FDNAMES`` (colon-separated), for the process ``LISTEN_PID``. This is the only
place that adopts an fd from the environment.
"""

import os
from collections.abc import Mapping, MutableMapping
from typing import Final

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
