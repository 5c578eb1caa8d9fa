"""The differences that are meant. `page` writes them to ``docs/differences.md``.

A rule speaks of one RPC in one situation. Everything that is not in its ``when`` may be anything. ``Effect.DIVERGES`` says that
from there on the two containers have different lives, so nothing more of them is compared.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from integration.differential.compare import Difference


class Effect(Enum):
    #: Only this answer differs.
    SAME = "same"
    #: The container is in another state afterwards.
    DIVERGES = "diverges"


#: Stands for any value.
ANY: Final = ("*",)


@dataclass(frozen=True, slots=True)
class Rule:
    """``when``: facts of a `Difference` and the values they may have; ``runc`` and ``ours``: what the two say."""

    name: str
    rpc: str
    when: Mapping[str, tuple[str, ...]]
    aspect: str
    runc: tuple[str, ...]
    ours: tuple[str, ...]
    reason: str
    effect: Effect = Effect.SAME

    def covers(self, difference: Difference) -> bool:
        facts = difference.facts
        return (
            facts.get("rpc") == self.rpc
            and self.aspect == difference.aspect
            and all(values == ANY or facts.get(name, "no") in values for name, values in self.when.items())
            and (self.runc == ANY or difference.runc in self.runc)
            and (self.ours == ANY or difference.ours in self.ours)
        )


def unintended(
    differences: Iterable[Difference], rules: Iterable[Rule] | None = None
) -> tuple[list[Difference], set[str]]:
    """Those that no rule covers, and the rules that covered the others."""
    left: list[Difference] = []
    used: set[str] = set()
    diverged: set[str] = set()
    for difference in differences:
        if difference.container in diverged:
            continue
        rule = next((rule for rule in (RULES if rules is None else rules) if rule.covers(difference)), None)
        if rule is None:
            left.append(difference)
            continue
        used.add(rule.name)
        if rule.effect is Effect.DIVERGES:
            diverged.add(difference.container)
    return left, used


RULES: Final[tuple[Rule, ...]] = ()
