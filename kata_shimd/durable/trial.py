"""Another version's daemon in the place of a unit's, as the ledger has it: the unit's first process and the judge of its deaths
read the same words (`launcher/src/ledger/trial.rs`).
"""

import os
import signal
from typing import Any, Final

from kata_shimd.host.process import start_time
from kata_shimd.ledger import Ledger

KEY: Final = "trial"


class Trial:
    """``is_on``: this daemon is the one that is tried, and has not settled. It dies of its alarm unless it does."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.is_on = self._said().get("is") == "begun"

    def comes_next(self, patience: int) -> None:
        """Whoever begins after this daemon is tried for so many seconds."""
        self._ledger.set(KEY, {"is": "next", "patience": patience})

    def has_time(self) -> None:
        """This daemon has come so far that nothing ends it but what is wrong from now on."""
        signal.setitimer(signal.ITIMER_REAL, 0)

    def is_past(self) -> None:
        """This daemon stays. Deaths are counted from its own on."""
        self.is_on = False
        self._ledger.set(KEY, {"is": "past", "since": (start_time(os.getpid()) or 1) - 1})

    def _said(self) -> dict[str, Any]:
        value = self._ledger.state.values.get(KEY)
        return value if isinstance(value, dict) else {}
