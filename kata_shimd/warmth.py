"""What a daemon does for the first time, done once in the zygote: lazy imports, and the tables that are made at first use.

Must never happen here: something that does not survive a fork, such as a thread, an event loop or a socket.
"""

import importlib
from contextlib import suppress
from typing import Final

from kata_shimd import wire
from kata_shimd.api import bootstrap, cgroup1, cgroup2, events, forward, runtime_options, ttrpc
from kata_shimd.api.services import agent as agent_rpcs
from kata_shimd.api.services import events as event_rpcs
from kata_shimd.api.services import health as health_rpcs
from kata_shimd.api.services import pod as pod_rpcs
from kata_shimd.api.services import task_v2, task_v3
from kata_shimd.config.load import defaults

#: Imported where they are first used, which in a daemon is always, or soon. What is not installed is not needed.
LATE: Final = (
    "uvloop",
    "qemu.qmp",
    "kata_shimd.templates",
    "tomllib",
    "encodings.idna",
    "encodings.ascii",
    "encodings.latin_1",
)
#: Messages that no service of ours names.
MESSAGES: Final = (
    bootstrap.BootstrapParams,
    runtime_options.Options,
    forward.ForwardRequest,
    cgroup1.Metrics,
    cgroup2.Metrics,
    ttrpc.Request,
    ttrpc.Response,
    *(getattr(events, name) for name in dir(events) if name.startswith("Task")),
)


def use_once() -> None:
    """Import, decode, encode and configure, as a daemon will."""
    for name in LATE:
        with suppress(ImportError):
            importlib.import_module(name)
    for service in (task_v2, task_v3, pod_rpcs, agent_rpcs, event_rpcs, health_rpcs):
        for rpc in service.SERVICE:
            wire.prepare(rpc.request)
            wire.prepare(rpc.response)
    for message in MESSAGES:
        wire.prepare(message)
    defaults()
