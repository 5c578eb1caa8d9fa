"""What containerd itself has on record of pods and containers: in its store, and in its CRI plugin."""

import re
from dataclasses import dataclass
from typing import Final

from integration.harness.crictl import Crictl
from integration.harness.ctr import Ctr
from integration.harness.scale import SCALE
from integration.harness.waiting import TooLate, eventually

#: Time for what containerd does after its client has the answer.
PATIENCE: Final = 10.0 * SCALE
_STORE: Final = (("containers", "ls", "-q"), ("tasks", "ls", "-q"), ("leases", "ls", "-q"))
_PLUGIN: Final = (("pods", "-q"), ("ps", "-a", "-q"))
#: Snapshots are named by container; those of images by content.
_CONTAINER: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Records:
    """Lists everything, each with where it stands."""

    ctr: Ctr
    crictl: Crictl

    def __call__(self) -> frozenset[str]:
        found = {f"ctr {words[0]}: {line}" for words in _STORE for line in self.ctr(*words).ok().out.split()}
        found |= {f"crictl {words[0]}: {line}" for words in _PLUGIN for line in self.crictl(*words).ok().out.split()}
        keys = [line.split()[0] for line in self.ctr("snapshots", "ls").ok().out.splitlines()[1:]]
        return frozenset(found | {f"ctr snapshots: {key}" for key in keys if _CONTAINER.fullmatch(key)})

    def new_since(self, before: frozenset[str]) -> list[str]:
        """What is still there after a while that was not there before; empty is good."""
        try:
            eventually("containerd's records gone", lambda: not self() - before, within=PATIENCE)
        except TooLate:
            return sorted(self() - before)
        return []
