"""The watchdog: systemd hears of the daemon only as long as its loop turns and its machine answers.

systemd ends a daemon from which it hears nothing, and starts another, or gives the pod up (`launcher/src/unit/end.rs`).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from kata_shimd.errors import ShimError
from kata_shimd.notify import Notifier

_log = logging.getLogger(__name__)

#: Words that may be missed before systemd acts.
_OFTEN: Final = 4


async def watch(notifier: Notifier, answers: Callable[[], Awaitable[None]]) -> None:
    """Say that we live, whenever ``answers`` comes back in time. Never returns, unless systemd does not ask.

    :param answers: comes back when what the daemon serves is well; raises ShimError when it is not
    """
    if notifier.watchdog is None:
        return
    pause = notifier.watchdog / _OFTEN
    while True:
        try:
            async with asyncio.timeout(pause):
                await answers()
            notifier.say("WATCHDOG=1")
        except (ShimError, TimeoutError) as error:
            _log.warning("the watchdog is not told that all is well: %s", error or "no answer in time")
        except OSError as error:
            _log.warning("systemd does not listen: %s", error)
        await asyncio.sleep(pause)
