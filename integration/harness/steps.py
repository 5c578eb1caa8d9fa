"""Long work in named steps, for a person or a log: what is done now, how long it took, and why it failed.

On a terminal the newest line of a running program is shown in place; in a log a line says every 20 s that it still runs.
"""

import os
import selectors
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TextIO

HEARTBEAT: Final = 20.0
TAIL_LINES: Final = 25


class StepFailed(Exception):
    """What failed, why, and what to do about it."""

    def __init__(self, what: str, why: str, hint: str = "") -> None:
        super().__init__(what, why, hint)
        self.what, self.why, self.hint = what, why, hint

    def __str__(self) -> str:
        return f"{self.what}: {self.why}" + (f"\n  what to do: {self.hint}" if self.hint else "")


@dataclass(slots=True)
class Steps:
    """Prints the steps of one command, and keeps their times in `seconds`."""

    title: str
    out: TextIO = field(default_factory=lambda: sys.stderr)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator["Step"]:
        """One step; its line is printed when it ends, with its time and what `Step.note` said."""
        step = Step(name, self.out)
        begin = time.monotonic()
        try:
            yield step
        except BaseException:
            self._line(f"{name}: FAILED after {time.monotonic() - begin:.1f} s")
            raise
        self.seconds[name] = time.monotonic() - begin
        note = f" ({step.noted})" if step.noted else ""
        self._line(f"{name}: {self.seconds[name]:.1f} s{note}")

    def _line(self, text: str) -> None:
        clear = "\r\x1b[K" if self.out.isatty() else ""
        print(f"{clear}[{self.title}] {text}", file=self.out, flush=True)


@dataclass(slots=True)
class Step:
    """The step in progress."""

    name: str
    out: TextIO
    noted: str = ""

    def note(self, text: str) -> None:
        """A remark for the step's line: what was found, or why nothing had to be done."""
        self.noted = text

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        hint: str = "",
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        """Run a program whose output matters only as progress, or when it fails.

        :raises StepFailed: it cannot be started or fails; with the end of its output and ``hint``
        """
        words = [str(word) for word in argv]
        try:
            child = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env, cwd=cwd
            )
        except OSError as error:
            raise StepFailed(self.name, f"{words[0]}: {error.strerror}", hint) from error
        with child:
            tail = self._follow(child)
        if child.returncode != 0:
            said = "\n".join(f"    {line}" for line in tail)
            raise StepFailed(self.name, f"{' '.join(words[:4])} … failed with {child.returncode}:\n{said}", hint)

    def _follow(self, child: "subprocess.Popen[bytes]") -> Sequence[str]:
        """Read to the end, showing progress; the last lines."""
        assert child.stdout is not None
        tail: deque[str] = deque(maxlen=TAIL_LINES)
        rest, begin = b"", time.monotonic()
        next_beat = begin + HEARTBEAT
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ)
            while True:
                if selector.select(max(next_beat - time.monotonic(), 0.0)):
                    data = os.read(child.stdout.fileno(), 65536)
                    if not data:
                        return tail
                    *lines, rest = (rest + data).replace(b"\r", b"\n").split(b"\n")
                    tail.extend(text for line in lines if (text := line.decode(errors="replace").strip()))
                    self._show(tail, begin)
                if time.monotonic() >= next_beat:
                    next_beat += HEARTBEAT
                    self._beat(tail, begin)

    def _show(self, tail: Sequence[str], begin: float) -> None:
        if self.out.isatty() and tail:
            text = f"  {self.name}, {time.monotonic() - begin:.0f} s: {tail[-1]}"
            print(f"\r\x1b[K{text[:100]}", end="", file=self.out, flush=True)

    def _beat(self, tail: Sequence[str], begin: float) -> None:
        if not self.out.isatty():
            newest = tail[-1] if tail else "nothing said yet"
            print(f"  {self.name}, {time.monotonic() - begin:.0f} s: {newest[:100]}", file=self.out, flush=True)
