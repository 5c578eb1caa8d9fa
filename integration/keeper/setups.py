"""What a run of random deaths is made under: who keeps the pods' descriptors, and on which event loop their daemons run."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from integration.harness.pods import Pod

#: Deaths are what is wanted here, so no number of them gives a pod up.
_CONFIG: Final = """\
[shimd]
keeper = "{keeper}"
event_loop = "{loop}"
keeper_spare = {spare}
keeper_deaths = 100000
"""


class Keeper(StrEnum):
    LAUNCHER = "launcher"
    SYSTEMD = "systemd"


class Loop(StrEnum):
    UVLOOP = "uvloop"
    ASYNCIO = "asyncio"


@dataclass(frozen=True, slots=True, order=True)
class Setup:
    """One of each. The launcher's keeper has a spare; systemd knows none."""

    keeper: Keeper
    loop: Loop

    @property
    def test(self) -> str:
        """Where pytest finds the deaths under it."""
        place = "keeper" if self.keeper is Keeper.LAUNCHER else "systemd"
        return f"integration/{place}/test_random.py::test_nobody_notices[{self.loop}]"

    @property
    def spare(self) -> bool:
        return self.keeper is Keeper.LAUNCHER

    def configuration(self) -> str:
        return _CONFIG.format(keeper=self.keeper, loop=self.loop, spare=str(self.spare).lower())

    @classmethod
    def found(cls, pod: Pod) -> "Setup":
        """What this pod is really under: by the ledger, and by the loop that its daemon has mapped."""
        mapped = (pod.process("daemon").proc / "maps").read_text()
        kept = any(record.fields.get("what") == "keeper" for record in pod.ledger().live.values())
        return cls(Keeper.LAUNCHER if kept else Keeper.SYSTEMD, Loop.UVLOOP if "/uvloop/" in mapped else Loop.ASYNCIO)

    def __str__(self) -> str:
        if self.keeper is Keeper.SYSTEMD:
            return f"systemd is the keeper, {self.loop}"
        return f"the launcher is the keeper, with `keeper_spare`, {self.loop}"
