"""Processes of a test: who descends from us, and ending exactly those.

The test process is a child subreaper, so a daemon that cuts itself loose becomes our child instead of init's, and "everything
that descends from us" is exact: no search by name, no process of anybody else.
"""

import ctypes
import os
import select
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

PR_SET_CHILD_SUBREAPER: Final = 36

#: Our own Popen objects reap their processes themselves; orphans are reaped by `reap_orphans`.
_spawned: dict[int, "subprocess.Popen[bytes]"] = {}


@dataclass(frozen=True, slots=True, order=True)
class Process:
    """One process, told from a later one of the same number by its start time (field 22 of /proc/PID/stat)."""

    pid: int
    start: int

    @property
    def proc(self) -> Path:
        return Path("/proc", str(self.pid))

    def stat(self) -> tuple[str, int] | None:
        """State letter and parent's pid; None when this very process is gone."""
        state, parent, start = _stat(self.pid) or ("", 0, -1)
        return (state, parent) if start == self.start else None

    def alive(self) -> bool:
        """Exists and is no zombie."""
        now = self.stat()
        return now is not None and now[0] not in "ZX"

    def command(self) -> str:
        with suppress(OSError):
            raw = (self.proc / "cmdline").read_bytes()
            return (
                raw.rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")
                or (self.proc / "comm").read_text().strip()
            )
        return "(gone)"

    def namespace(self, kind: str) -> str:
        """``mnt:[4026531841]`` and the like; empty when the process is gone."""
        with suppress(OSError):
            return (self.proc / "ns" / kind).readlink().name
        return ""

    def signal(self, number: signal.Signals) -> bool:
        """Signal this very process, through a pidfd; False when it is gone."""
        try:
            fd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return False
        try:
            if self.stat() is None:
                return False
            signal.pidfd_send_signal(fd, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(fd)
        return True

    def kill(self, *, within: float = 10.0) -> None:
        """SIGKILL and wait until it is no longer running."""
        try:
            fd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            if self.stat() is None:
                return
            signal.pidfd_send_signal(fd, signal.SIGKILL)
            if not select.select([fd], [], [], within)[0]:
                raise TimeoutError(f"process {self.pid} ({self.command()}) outlives SIGKILL by {within} s")
        except ProcessLookupError:
            return
        finally:
            os.close(fd)


def find(pid: int) -> Process | None:
    """The process that has this number now."""
    now = _stat(pid)
    return Process(pid, now[2]) if now else None


def become_subreaper() -> None:
    """From now on orphans among our descendants become our children."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def descendants(ancestor: int | None = None) -> list[Process]:
    """Every process below ``ancestor`` (default: us), zombies too."""
    below: dict[int, list[Process]] = {}
    for process, parent in _all():
        below.setdefault(parent, []).append(process)
    found: list[Process] = []
    waiting = [ancestor or os.getpid()]
    while waiting:
        children = below.get(waiting.pop(), [])
        found += children
        waiting += [child.pid for child in children]
    return found


def end_descendants() -> list[str]:
    """End by SIGKILL what a failed test has left running below us; the command lines. Looks until nothing is begun meanwhile."""
    ended: list[str] = []
    while living := [one for one in descendants() if one.alive()]:
        for one in living:
            ended.append(one.command())
            one.kill()
    return ended


def reap_orphans() -> None:
    """Collect ended processes that were not started by `spawn`. Only while no other thread runs a program."""
    us = os.getpid()
    for process in descendants():
        if process.pid not in _spawned and process.stat() == ("Z", us):
            with suppress(ChildProcessError):
                os.waitpid(process.pid, os.WNOHANG)


def spawn(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    stdin: int | IO[Any] = subprocess.DEVNULL,
    stdout: int | IO[Any] = subprocess.DEVNULL,
    stderr: int | IO[Any] = subprocess.DEVNULL,
) -> "subprocess.Popen[bytes]":
    """Start a program that the caller will end with `finish` (or wait for)."""
    child = subprocess.Popen([str(word) for word in argv], env=env, stdin=stdin, stdout=stdout, stderr=stderr)
    _spawned[child.pid] = child
    return child


def finish(child: "subprocess.Popen[bytes]", *, within: float = 10.0) -> int:
    """SIGTERM, then SIGKILL; the exit status as Popen has it."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(within)
        except subprocess.TimeoutExpired:
            child.kill()
    for pipe in (child.stdin, child.stdout, child.stderr):
        if pipe is not None:
            with suppress(OSError):  # a pipe whose reader has ended cannot be flushed
                pipe.close()
    status = child.wait(within)
    _spawned.pop(child.pid, None)
    return status


def _all() -> Iterator[tuple[Process, int]]:
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and (now := _stat(int(entry.name))):
            yield Process(int(entry.name), now[2]), now[1]


def _stat(pid: int) -> tuple[str, int, int] | None:
    """State, parent, start time."""
    try:
        # The name stands in parentheses and may itself hold spaces and parentheses.
        fields = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return fields[0], int(fields[1]), int(fields[19])
