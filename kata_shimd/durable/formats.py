"""What of a pod outlives its daemon in which format, and what a daemon of this code can go on with.

Asked of another installation before it is given a pod: ``python -m kata_shimd.daemon … --check FD`` says it (`docs/upgrade.md`).
"""

import json
from dataclasses import asdict, dataclass
from typing import Final

from kata_shimd import __version__
from kata_shimd.durable import pipes, store, tape
from kata_shimd.errors import FailedPrecondition

STEP: Final = "upgrade"


@dataclass(frozen=True, slots=True)
class Formats:
    """``state``: the formats of `POD/state` that can be read; ``connection`` and ``stream``: those of their memory files;
    ``in_unit``: knows what a trial is in a pod that is a unit of systemd's."""

    version: str
    state: tuple[int, ...]
    connection: int
    stream: int
    in_unit: bool = False


OURS: Final = Formats(__version__, store.READS, tape.FORMAT, pipes.FORMAT, in_unit=True)


def said(formats: Formats = OURS) -> str:
    """One line."""
    return json.dumps(asdict(formats))


def heard(line: str, who: str) -> Formats:
    """What `said` said, by another version's daemon at ``who``.

    :raises FailedPrecondition: it said something else
    """
    try:
        found = json.loads(line)
        state = tuple(int(one) for one in found["state"])
        numbers = int(found["connection"]), int(found["stream"])
        return Formats(str(found["version"]), state, *numbers, in_unit=found.get("in_unit") is True)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        cause = f"it answers {line[:200]!r} when it is asked what it can read"
        raise FailedPrecondition(STEP, who, cause, hint="is it a kata-shimd that can take pods over?") from error


def common(theirs: Formats, state: int) -> int:
    """The format in which ``theirs`` can go on with a record that is in the format ``state`` now.

    :raises FailedPrecondition: there is none
    """
    for what, ours, other in (
        ("connections", OURS.connection, theirs.connection),
        ("streams", OURS.stream, theirs.stream),
    ):
        if ours != other:
            raise FailedPrecondition(
                STEP, theirs.version, f"it keeps {what} in format {other}, this pod's are in {ours}"
            )
    if state in theirs.state:
        return state
    writable = [one for one in theirs.state if one in store.WRITES]
    if not writable:
        known = ", ".join(map(str, theirs.state))
        cause = f"it reads states of format {known}, this pod's is {state}"
        raise FailedPrecondition(STEP, theirs.version, cause, hint="move by one version at a time")
    return max(writable)
