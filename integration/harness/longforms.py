"""The long forms as a table: what CI runs shortened, in full. Each is a program of its own, which says itself what it found."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from integration.harness.checks import Check
from integration.harness.install import Layout


@dataclass(frozen=True, slots=True)
class Form:
    """``python -m`` with these words; ``about`` is one line, with the time it takes on two emulated cores."""

    words: tuple[str, ...]
    about: str


FORMS: Final[Mapping[str, Form]] = {
    "differential": Form(
        ("integration.differential", "--cases", "--sequences", "1000", "--record"),
        "kept and 1000 random sequences of Task RPCs on runc's shim and on ours; writes docs/differences.md; an hour",
    ),
    "chaos": Form(
        ("integration.chaos", "--all"), "everything dies at every moment; writes docs/failures.md; twenty minutes"
    ),
    "hostile": Form(
        ("integration.hostile.vm",),
        "an agent that turns hostile, in every way that is known; writes docs/hostile.md; twenty minutes",
    ),
    "fuzz": Form(
        ("integration.fuzz", "--keep", "--seconds", "3600"),
        "10⁶ inputs for every target, an hour at most for each; writes docs/fuzzing.md; two hours",
    ),
    "keeper": Form(
        ("integration.keeper", "--keep"),
        "1000 deaths of daemons under all kinds of load; writes docs/keeper.md; an hour",
    ),
    "keeper-asyncio": Form(
        ("integration.keeper", "300", "--loop", "asyncio", "--keep"),
        "300 such deaths on the standard library's event loop; writes docs/keeper.md; twenty minutes",
    ),
    "keeper-systemd": Form(
        ("integration.keeper", "300", "--keeper", "systemd", "--keep"),
        "300 such deaths of daemons that systemd keeps; writes docs/keeper.md; twenty minutes",
    ),
    "upgrade": Form(
        ("integration.keeper.upgrades", "--keep"),
        "pods of earlier commits moved to this one, back, and on, under load; writes docs/upgrade.md; ten minutes",
    ),
    "cri": Form(
        ("pytest", "--long", "integration/cri/test_failed_creates.py", "integration/cri/test_restart.py"),
        "creations that fail at every record, and containerd restarted at every step, on both versions; half an hour",
    ),
    "template": Form(
        ("pytest", "--long", "integration/template", "integration/test_kill_points.py"),
        "clones in numbers, and deaths at every record of a clone; ten minutes",
    ),
    "soak": Form(
        ("integration.soak", "--containers", "200", "--pods", "50", "--keep"),
        "200 containers in one pod, 50 pods in sequence; writes docs/soak.md; ten minutes",
    ),
}


def lane(layout: Layout, names: Sequence[str]) -> list[Check]:
    """The forms with these names, in the order of the table."""
    python = str(layout.dev_python)
    env = {"KATA_SHIMD_PREFIX": str(layout.prefix)}
    return [Check(name, (python, "-m", *form.words), env) for name, form in FORMS.items() if name in names]


def listing() -> str:
    """One line for each."""
    width = max(map(len, FORMS))
    return "\n".join(f"{name:{width}}  {form.about}" for name, form in FORMS.items())
