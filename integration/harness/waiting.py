"""Waiting for something that another process does and that has no descriptor to wait on."""

import time
from collections.abc import Callable
from typing import Final, TypeVar

T = TypeVar("T")

FIRST_LOOK: Final = 0.005
LONGEST_PAUSE: Final = 0.2


class TooLate(AssertionError):
    """The condition did not become true in time."""


def eventually(what: str, look: Callable[[], T], *, within: float) -> T:
    """Look until the answer is true, and give it back.

    This is the harness's one way to wait for other people's state (a socket file, a mount table, a line in a log). Pauses grow
    from 5 ms to 200 ms: a quick answer costs nothing, a slow one no processor.

    :param within: seconds; the condition is looked at once more when they have passed
    :raises TooLate: naming ``what`` was waited for
    """
    deadline = time.monotonic() + within
    pause = FIRST_LOOK
    while not (answer := look()):
        left = deadline - time.monotonic()
        if left <= 0:
            raise TooLate(f"{what}: not within {within:.1f} s")
        time.sleep(min(pause, left))
        pause = min(pause * 2, LONGEST_PAUSE)
    return answer
