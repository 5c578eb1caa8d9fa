"""Processes of the pod on the host: recorded before they run, watched by pidfd.

A process is spawned through the launcher's gate: it exists, with its final pid, before it does anything, so its record in the
ledger is complete (pid and start time) before it is let go; a daemon that dies in between leaves nothing (`docs/contracts.md`).
Nothing here depends on being the parent: a later daemon watches the same process by its record.
"""

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kata_shimd.errors import HostFailed
from kata_shimd.ledger import POD, Kind, Ledger

#: Returned by `Process.wait` where the exit status went to another parent (an adopted process).
UNKNOWN_STATUS: Final = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """How the gate prepares a process before it lets it go; see `containerd-shim-kata-v2 gate`."""

    launcher: Path
    netns: Path | None = None
    cgroups: tuple[Path, ...] = ()
    oom_score_adj: int | None = None
    uid: int | None = None
    gid: int | None = None
    groups: tuple[int, ...] = ()
    no_new_privs: bool = False
    drop_caps: bool = False
    nofile: int | None = None
    chdir: Path | None = None
    #: The process ends when we do, whatever ends us. Not where a later daemon is to take it over.
    die_with_us: bool = False
    #: (to, from): numbers at which the program finds its descriptors.
    fds: tuple[tuple[int, int], ...] = ()

    def argv(self, fd: int, argv: Sequence[str | Path]) -> list[str]:
        """The command that waits on ``fd`` and then becomes ``argv``."""
        options = [*_option("--netns", self.netns), *_option("--oom-score-adj", self.oom_score_adj)]
        for cgroup in self.cgroups:
            options += _option("--cgroup", cgroup)
        options += [*_option("--uid", self.uid), *_option("--gid", self.gid)]
        options += _option("--groups", ",".join(map(str, self.groups)) if self.uid is not None else None)
        options += [*_option("--nofile", self.nofile), *_option("--chdir", self.chdir)]
        for to, source in self.fds:
            options += _option("--fd", f"{to}={source}")
        options += _option("--die-with", os.getpid() if self.die_with_us else None)
        options += ["--no-new-privs"] * self.no_new_privs + ["--drop-caps"] * self.drop_caps
        return [str(self.launcher), "gate", str(fd), *options, "--", *map(str, argv)]


def _option(name: str, value: object) -> list[str]:
    return [] if value is None else [name, str(value)]


class Process:
    """A process of ours, by pidfd. `wait` may be called by any number of tasks."""

    def __init__(self, pid: int, start: int, what: str, pidfd: int, stderr: Path, *, child: bool, record: int) -> None:
        self.pid, self.start, self.what, self.record = pid, start, what, record
        self.returncode: int | None = None
        self._pidfd = pidfd
        self._stderr = stderr
        self._child = child
        loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = loop.create_future()
        loop.add_reader(pidfd, self._on_end)

    @classmethod
    def adopt(cls, record: int, pid: int, start: int, what: str, stderr: Path) -> "Process | None":
        """Watch a process another daemon has spawned, or None if that very process is gone."""
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return None
        if start_time(pid) != start:
            os.close(pidfd)
            return None
        return cls(pid, start, what, pidfd, stderr, child=False, record=record)

    async def wait(self) -> int:
        """Wait for the end: the exit status, or minus the signal's number (`UNKNOWN_STATUS` when it is not ours to know)."""
        return await asyncio.shield(self._ended)

    @property
    def exiting(self) -> bool:
        """Whether it is on its way out: its descriptors are closed before its end can be seen by anyone."""
        return self.returncode is not None or _is_exiting(self.pid)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to this very process; one that has ended is left in peace."""
        if self.returncode is None:
            try:
                signal.pidfd_send_signal(self._pidfd, number)
            except ProcessLookupError:
                pass

    def stderr_tail(self, limit: int = 4096) -> str:
        """The last ``limit`` bytes the process wrote to stderr, as text."""
        return tail(self._stderr, limit)

    def forget(self) -> None:
        """Stop watching (the process lives on)."""
        if self.returncode is None:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._ended.cancel()

    def _on_end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        self.returncode = self._reap() if self._child else UNKNOWN_STATUS
        os.close(self._pidfd)
        self._ended.set_result(self.returncode)

    def _reap(self) -> int:
        try:
            info = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
        except ChildProcessError:
            return UNKNOWN_STATUS
        if info is None:
            return UNKNOWN_STATUS
        return info.si_status if info.si_code == os.CLD_EXITED else -info.si_status


def spawn(
    ledger: Ledger,
    gate: Gate,
    argv: Sequence[str | Path],
    *,
    what: str,
    stderr: Path,
    pass_fds: Sequence[int] = (),
    scope: str = POD,
    needs: Iterable[int] = (),
    polite: bool = False,
    grace_ms: int = 0,
    env: Mapping[str, str] | None = None,
) -> Process:
    """Record and run ``argv``; fds in ``pass_fds`` keep their numbers. stdin and stdout are /dev/null.

    ``env`` is the whole environment, ours when None.

    It does not wait: an ``argv`` that cannot be executed is seen as an early end with status 127 and a line on stderr.

    :raises HostFailed: the ledger, the stderr file or the launcher failed
    """
    record = ledger.plan(Kind.PROCESS, scope=scope, needs=needs, what=what, polite=polite, grace_ms=grace_ms)
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    try:
        pid = _fork(gate.argv(read_end, argv), (read_end, *pass_fds), stderr, what, env)
        pidfd = os.pidfd_open(pid)
        start = start_time(pid)
        ledger.made(record, pid=pid, start=start)
        os.write(write_end, b"\x01")
    finally:
        os.close(read_end)
        os.close(write_end)
    return Process(pid, start or 0, what, pidfd, stderr, child=True, record=record)


def release(gate: Gate, argv: Sequence[str | Path], *, what: str, pass_fds: Sequence[int] = ()) -> Process:
    """Run ``argv`` on nobody's record: it is not the pod's, and may outlive it. The gate places it first, so that nothing of it is
    ever where the pod is.

    :raises HostFailed: the launcher cannot be started
    """
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    try:
        pid = _popen(gate.argv(read_end, argv), (read_end, *pass_fds), null, what)
        os.write(write_end, b"\x01")
        return Process(pid, 0, what, os.pidfd_open(pid), Path(os.devnull), child=True, record=0)
    finally:
        for fd in (read_end, write_end, null):
            os.close(fd)


async def run(
    argv: Sequence[str | Path], *, what: str, limit: int = 8192, pass_fds: Sequence[int] = ()
) -> tuple[int, str]:
    """Run a short command of ours to its end; its status and the first ``limit`` bytes of its stderr.

    If the caller is cancelled the command is killed. :raises HostFailed: it cannot be started
    """
    fd = os.memfd_create(what, os.MFD_CLOEXEC)
    try:
        pid = _popen([str(part) for part in argv], pass_fds, fd, what)
        process = Process(pid, 0, what, os.pidfd_open(pid), Path(os.devnull), child=True, record=0)
        try:
            status = await process.wait()
        finally:
            process.kill()
        return status, os.pread(fd, limit, 0).decode(errors="replace").strip()
    finally:
        os.close(fd)


def _fork(argv: Sequence[str], fds: Sequence[int], stderr: Path, what: str, env: Mapping[str, str] | None) -> int:
    try:
        err = os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HostFailed(f"start {what}", str(stderr), error.strerror or "") from error
    try:
        return _popen(argv, fds, err, what, env)
    finally:
        os.close(err)


def _popen(
    argv: Sequence[str], fds: Sequence[int], stderr: int, what: str, env: Mapping[str, str] | None = None
) -> int:
    try:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            pass_fds=fds,
            start_new_session=True,
            cwd="/",
            env=env,
        )
    except OSError as error:
        raise HostFailed(f"start {what}", str(error.filename or argv[0]), error.strerror or "") from error
    # The status is collected through the pidfd; Popen's own bookkeeping must not wait for it.
    child.returncode = 0
    return child.pid


#: The kernel's flag of a task that has begun to exit.
_PF_EXITING: Final = 0x4


def _is_exiting(pid: int) -> bool:
    """Field 9 of /proc/PID/stat; True when there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return bool(int(stat[stat.rindex(b")") + 2 :].split()[6]) & _PF_EXITING)


def kill(pid: int, start: int | None) -> None:
    """SIGKILL to that very process, if there is one."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return
    try:
        if start_time(pid) == start:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        pass
    finally:
        os.close(pidfd)


def start_time(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat in clock ticks since boot, or None when there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command name, field 2, may hold spaces and brackets: count from behind its last bracket.
    return int(stat[stat.rindex(b")") + 2 :].split()[19])


def tail(path: Path, limit: int) -> str:
    """The last ``limit`` bytes of a file as text; empty when there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - limit))
            return file.read(limit).decode(errors="replace").strip()
    except OSError:
        return ""
