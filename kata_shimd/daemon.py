"""The daemon of one pod: started by the launcher, it joins the edges, serves containerd, and ends with the pod.

A composition root: here, and in `assembly`, both edges meet; environment and arguments are read here and nowhere below. Its
last act is to become the launcher's ``undo``, so that there is one teardown, run by the process that `delete` waits for.
"""

import asyncio
import faulthandler
import logging
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn

from kata_shimd import __version__, assembly, fds, log
from kata_shimd.config import Loaded, record
from kata_shimd.config.model import AttachSetting, EventLoop, Keeping
from kata_shimd.debug import attach
from kata_shimd.durable import formats, points
from kata_shimd.errors import InvalidArgument, NotFound, ShimError
from kata_shimd.journal import MAX_VALUE, Journal, prune
from kata_shimd.ledger import Kind, Ledger, Phase
from kata_shimd.ledger import read as read_ledger
from kata_shimd.notify import Notifier, journal_socket
from kata_shimd.survive import KEEPER, KEEPING, Survival, keeping
from kata_shimd.watchdog import watch

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Arguments:
    """What the launcher says (`docs/contracts.md`)."""

    run_dir: Path
    pod_dir: Path
    namespace: str
    sandbox_id: str
    address: str
    bundle: Path
    launcher: Path
    debug: bool
    #: The fd of what containerd gave, when all that is asked is whether we could go on with this pod.
    check: int | None = None

    def argv(self, python: str, launcher: str) -> list[str]:
        """The command line of another installation's daemon for this pod."""
        paths = {"run-dir": self.run_dir, "pod-dir": self.pod_dir, "bundle": self.bundle, "launcher": launcher}
        said = {**paths, "namespace": self.namespace, "id": self.sandbox_id, "address": self.address}
        words = [word for name, value in said.items() for word in (f"--{name}", str(value))]
        return [python, "-I", "-m", "kata_shimd.daemon", *words, *(["--debug"] if self.debug else [])]


#: How nice a later daemon is once it serves; its launcher lets it go first until then (`launcher/src/hurry.rs`).
NICE: Final = "KATA_SHIMD_NICE"


class _Ended(Exception):
    """Leaves the daemon's TaskGroup, and with it every task."""


_PATHS: Final = ("--run-dir", "--pod-dir", "--bundle", "--launcher")
_NEEDED: Final = (*_PATHS, "--namespace", "--id", "--address")


def parse(argv: Sequence[str]) -> Arguments:
    """Read the command line; the launcher is the only one who writes it, so it is read as it is written: a whole parser costs a
    daemon more than all that it has to read.

    :raises InvalidArgument: a word is missing or too many
    """
    values: dict[str, str] = {}
    words = iter(argv)
    for name in words:
        if name not in (*_NEEDED, "--debug", "--check"):
            raise InvalidArgument("read command line", name, "unknown")
        value = "" if name == "--debug" else next(words, None)
        if value is None:
            raise InvalidArgument("read command line", name, "no value")
        values[name] = value
    if missing := [name for name in _NEEDED if name not in values]:
        raise InvalidArgument("read command line", " ".join(missing), "missing")
    check = values.get("--check")
    if check is not None and not check.isdigit():
        raise InvalidArgument("read command line", "--check", f"{check!r} is no descriptor")
    paths = {name.removeprefix("--").replace("-", "_"): Path(values[name]) for name in _PATHS}
    return Arguments(
        **paths,
        namespace=values["--namespace"],
        sandbox_id=values["--id"],
        address=values["--address"],
        debug="--debug" in values,
        check=None if check is None else int(check),
    )


def _open() -> None:
    """The gate of a daemon that was let go before it was one."""


def main(
    argv: Sequence[str] | None = None,
    gate: Callable[[], None] = _open,
    loop: asyncio.AbstractEventLoop | None = None,
) -> NoReturn:
    """Serve the pod until it ends. A foreseeable failure is one line on stderr, which the launcher passes on.

    :param gate: comes back once the launcher has us on record: before, nothing is done that lasts, nor do we end, for it waits
        for our words only then
    :param loop: one that was made ahead, used if it is of the configured kind
    """
    try:
        arguments = parse(sys.argv[1:] if argv is None else argv)
    except InvalidArgument as error:
        print(error, file=sys.stderr)
        gate()
        sys.exit(2)
    faulthandler.enable()
    if arguments.check is not None:
        _check(arguments, arguments.check)
    inherited = _inherit()
    served = asyncio.Event()
    try:
        notifier = Notifier.adopt(os.environ)
        loaded = _configured(arguments, inherited["bootstrap"], in_unit=notifier is not None)
        gate()
        with _runner(loaded, loop) as runner:
            runner.run(serve(arguments, inherited, loaded, served, notifier))
    except ShimError as error:
        print(error, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    gate()
    if (not served.is_set() and _is_awaited(inherited)) or _is_kept(arguments):
        sys.exit(1)  # the launcher still waits for us, tells why, and undoes; or a keeper starts another daemon
    os.execv(arguments.launcher, [str(arguments.launcher), "undo", str(arguments.pod_dir)])


def _check(arguments: Arguments, bootstrap: int) -> NoReturn:
    """The last line on stderr says what this code can go on with, or why it cannot (`docs/upgrade.md`)."""
    try:
        loop_factory(_configure(arguments, bootstrap).config.shimd.event_loop)
        read_ledger(arguments.pod_dir)
    except ShimError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    print(formats.said(), file=sys.stderr)
    sys.exit(0)


def _inherit() -> Mapping[str, int]:
    """The fds we are born with. One that a keeper began gets them when it is to be the daemon, which may be much later."""
    try:
        inherited = fds.adopt(os.environ)
        if KEEPER not in inherited:
            return inherited
        with suppress(ImportError):
            import uvloop  # noqa: F401 - a daemon begun ahead has all it needs when its time comes
        held = fds.take_all(inherited[KEEPER])
    except ShimError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    if held is None:
        sys.exit(0)
    return {**held, **inherited}


def _is_awaited(inherited: Mapping[str, int]) -> bool:
    """Whether somebody still waits for our word. A later daemon has nobody who does but its keeper."""
    if "ready" not in inherited:
        return True
    poll = select.poll()
    poll.register(inherited["ready"], 0)
    return not any(event & select.POLLERR for _, event in poll.poll(0))


def _is_kept(arguments: Arguments) -> bool:
    """Whether a keeper starts another daemon when this one has failed, though its pod is not to end."""
    try:
        ledger = read_ledger(arguments.pod_dir)
    except ShimError:
        return False
    kept = KEEPING in ledger.values or any(r.fields.get("what") == KEEPER for r in ledger.live.values())
    return kept and ledger.phase is not Phase.STOPPING


def _configured(arguments: Arguments, bootstrap: int, *, in_unit: bool) -> Loaded:
    """The configuration; from now on there is a log."""
    log.configure(arguments.bundle / "log", debug=arguments.debug, journal=journal_socket() if in_unit else None)
    log.pod.set(arguments.sandbox_id)
    loaded = _configure(arguments, bootstrap)
    if loaded.config.runtime.enable_debug:
        logging.getLogger().setLevel(logging.DEBUG)
    return loaded


def _runner(loaded: Loaded, made: asyncio.AbstractEventLoop | None) -> asyncio.Runner:
    factory = loop_factory(loaded.config.shimd.event_loop)
    if made is not None and type(made) is factory:
        return asyncio.Runner(loop_factory=lambda: made)
    if made is not None:
        made.close()
    return asyncio.Runner(loop_factory=factory)


def _configure(arguments: Arguments, bootstrap: int) -> Loaded:
    """A later daemon goes by what its pod was born with, whatever the node's files have become."""
    recorded = record.read(arguments.pod_dir)
    return assembly.configure(arguments.bundle, _read_all(bootstrap), os.environ.get("KATA_CONF_FILE"), recorded)


def _keeping(arguments: Arguments, inherited: Mapping[str, int], setting: Keeping, *, in_unit: bool) -> Keeping:
    """Who keeps this pod. One that was kept without a record of its configuration stays kept."""
    if setting is Keeping.OFF and "ready" not in inherited and _is_kept(arguments):
        setting = Keeping.AUTO
    return keeping(setting, in_unit=in_unit)


def _read_all(fd: int) -> bytes:
    with open(fd, "rb", closefd=False) as file:
        file.seek(0)
        return file.read()


def loop_factory(setting: EventLoop) -> type[asyncio.AbstractEventLoop]:
    if setting is EventLoop.ASYNCIO:
        return asyncio.SelectorEventLoop
    try:
        import uvloop
    except ImportError as error:
        if setting is EventLoop.UVLOOP:
            hint = 'install uvloop beside the daemon, or set event_loop = "auto"'
            raise NotFound("choose event loop", "uvloop", "it cannot be imported", hint=hint) from error
        return asyncio.SelectorEventLoop
    return uvloop.Loop


async def serve(
    arguments: Arguments,
    inherited: Mapping[str, int],
    loaded: Loaded,
    served: asyncio.Event,
    notifier: Notifier | None,
    live: "Live | None" = None,
) -> None:
    """One pod's life. ``live`` is another than a pod's where none is to be begun (`rehearsal`)."""
    kept = _keeping(arguments, inherited, loaded.config.shimd.keeper, in_unit=notifier is not None)
    if kept is not Keeping.OFF:
        record.write(arguments.pod_dir, loaded.contents)
    die_at, fail_at = (_point(os.environ, name) for name in ("KATA_SHIMD_DIE_AT", "KATA_SHIMD_FAIL_AT"))
    point = points.passed if kept is not Keeping.OFF else _nothing
    journal = Journal(
        arguments.run_dir / "journal" / f"{arguments.pod_dir.name}.jsonl",
        max_bytes=loaded.config.shimd.journal_size_kib << 10,
    )
    fault = partial(_injected, journal)
    ledger = Ledger(arguments.pod_dir, die_at=die_at, fail_at=fail_at, fault=fault, point=point)
    begin = journal.begin if "ready" in inherited else journal.go_on
    begin(
        "daemon",
        pid=os.getpid(),
        namespace=arguments.namespace,
        id=arguments.sandbox_id,
        address=arguments.address,
        version=__version__,
    )
    for warning in loaded.warnings:
        journal.write("warning", text=warning)
        _log.warning("%s", warning)
    try:
        async with asyncio.TaskGroup() as group:
            survival = None
            if kept is not Keeping.OFF:
                systemd = notifier if kept is Keeping.SYSTEMD else None
                survival = Survival(arguments, loaded.config, ledger, inherited, systemd)
            parts = assembly.Parts(loaded, ledger, journal, group, os.environ.copy(), survival, notifier)
            await (live or _live)(arguments, inherited, parts, served)
            raise _Ended
    except* _Ended:
        pass
    except* Exception as failures:
        said = "".join(traceback.format_exception(failures))
        journal.write("daemon-failed", traceback=said[-MAX_VALUE:])
        raise
    journal.write("daemon-ended")


def _injected(journal: Journal, step: str) -> None:
    journal.write("fault-injected", step=step)


def _nothing() -> None:
    """No later daemon could see a step."""


def _prune(run_dir: Path, *, keep: int) -> None:
    """Journals of dead pods are kept for `why`, but not for ever."""
    live = {path.name for path in (run_dir / "pods").iterdir()}
    prune(run_dir / "journal", live, keep=keep)


Live = Callable[[Arguments, Mapping[str, int], assembly.Parts, asyncio.Event], Awaitable[None]]


def join(arguments: Arguments, inherited: Mapping[str, int], parts: assembly.Parts) -> assembly.Shim:
    """The whole shim, which serves from now on; its pod has not begun."""
    # A pod's keeper accepts, and has the descriptor from us for as long as the pod lives.
    listener = None if parts.survival else socket.socket(fileno=inherited["listen"])
    shim = assembly.assemble(arguments, listener, parts)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, shim.pod.stop)
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    _allow_attach(arguments, parts, shim)
    shim.server.start(parts.group)
    return shim


async def _live(
    arguments: Arguments, inherited: Mapping[str, int], parts: assembly.Parts, served: asyncio.Event
) -> None:
    shim = join(arguments, inherited, parts)
    _take_turns(parts.environ)  # before anything is started that would go first for ever
    if parts.survival is not None:
        parts.survival.start(shim.server)
    shim.pod.begin()
    if not _say_ready(inherited, parts, shim):
        parts.group.create_task(shim.pod.abandon(arguments.sandbox_id), name="abandon")
    served.set()
    with suppress(OSError):  # journals too many are nothing to end a pod for
        _prune(arguments.run_dir, keep=parts.loaded.config.shimd.journal_keep)
    await shim.pod.stopping.wait()
    if parts.notifier is not None:
        with suppress(OSError):  # then the watchdog may still count, which is longer than the rest takes
            parts.notifier.say("STOPPING=1")
    await _stop(shim, parts)


def _take_turns(environ: Mapping[str, str]) -> None:
    """Be as nice as the keeper, or the unit, from now on."""
    with suppress(KeyError, ValueError, OSError):  # then we go on as we are, which harms nobody
        os.setpriority(os.PRIO_PROCESS, 0, int(environ[NICE]))


def _allow_attach(arguments: Arguments, parts: assembly.Parts, shim: assembly.Shim) -> None:
    """Let root attach as far as the configuration does; where it never does, the signal that asks for it is harmless."""
    setting = parts.loaded.config.shimd.attach
    if setting is AttachSetting.NEVER:
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        return
    path = str(arguments.pod_dir / attach.SOCKET)
    if not any(record.fields.get("path") == path for record in parts.ledger.state.live.values()):
        parts.ledger.plan(Kind.FILE, path=path)

    def names() -> Mapping[str, Any]:
        from kata_shimd.debug import people

        calls = lambda: [call.report() for call in tuple(shim.calls)]  # noqa: E731
        return people.names(shim.pod, shim, calls, arguments.pod_dir, parts.journal.path)

    daemon = attach.Daemon(asyncio.get_running_loop(), parts.group, names, parts.journal.write)
    offered = attach.Attach(arguments.pod_dir, daemon)
    if setting is AttachSetting.ALWAYS:
        offered.turn_on()


def _say_ready(inherited: Mapping[str, int], parts: assembly.Parts, shim: assembly.Shim) -> bool:
    """To the launcher, which waits for a pod's first daemon; to the keeper and to systemd in any case. False when the launcher has
    been killed meanwhile: then hardly anybody will ever ask for this pod.
    """
    heard = True
    if "ready" in inherited:
        parts.ledger.phase(Phase.RUNNING)
        try:
            os.write(inherited["ready"], b"\x01")
        except BrokenPipeError:
            parts.journal.write("unheard")
            heard = False
        os.close(inherited["ready"])
    if parts.survival is not None:
        parts.survival.keeper.ready()
    if parts.notifier is not None:
        parts.notifier.say("READY=1")
        parts.group.create_task(watch(parts.notifier, shim.answers), name="watchdog")
    return heard


async def _stop(shim: assembly.Shim, parts: assembly.Parts) -> None:
    """The polite half of the end, each step within its budget; `undo` is the other half."""
    await shim.pod.stop_vm()
    try:
        async with asyncio.timeout(shim.teardown_step):
            await shim.publisher.drained.wait()
    except TimeoutError:
        parts.journal.write("events-dropped")
    await shim.server.close(shim.teardown_step)


def _point(environ: Mapping[str, str], name: str) -> int | None:
    """A point of the tests, ``daemon:<n>`` (`docs/contracts.md`)."""
    who, _, number = environ.get(name, "").partition(":")
    return int(number) if who == "daemon" and number.isdigit() else None


if __name__ == "__main__":
    main()
