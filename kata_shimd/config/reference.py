"""Writes docs/configuration.md from the tables: ``python -m kata_shimd.config.reference > docs/configuration.md``.

Owns the page's words and form. Must never happen: a fact on the page that is not in the tables, or in the code it names.
"""

import sys
from collections.abc import Iterator
from typing import Final

from kata_shimd.config.build import RULES
from kata_shimd.config.key import ABSENT, Annotation, Key, Status, replaces
from kata_shimd.config.keys import KEYS, LONE, TABLES
from kata_shimd.config.layers import SEARCH
from kata_shimd.config.model import TIME_SCALE
from kata_shimd.config.show import toml

INTRODUCTION: Final = """\
<!-- made by `python -m kata_shimd.config.reference`; edit kata_shimd/config/keys*.py instead -->

# Configuration

The file is Kata's `configuration.toml` with a table of ours, `[shimd]`. `kata-shimd config show --origin` prints what is in
force and where each value came from; `kata-shimd config check FILE` reports everything that is wrong with a file.

## Where it comes from

Later layers win, key by key: tables merge, arrays replace.

1. Built-in defaults. They are meant to run on a fresh machine, so no file is needed.
2. One file: `ConfigPath` of containerd's runtime options; else `KATA_CONF_FILE` in containerd's environment; else the first
   that exists of
{search}

   Links are followed. Unlike Kata we take any path from `KATA_CONF_FILE`: whoever sets containerd's environment is root already.
3. Every file of `config.d/` beside that file (beside the target, when it is a link), in the order of their names.
4. `ConfigBody` of the runtime options.
5. The annotations of the sandbox, as far as `enable_annotations` allows.

A name nobody knows is a warning when a pod starts, an error with `shimd.strict = true` and in `config check`. A wrong value is
always an error, and all errors are reported at once.

## Keys

A key is **supported**, or **held**: known, but not supported here, so that it is accepted at its default and refused
otherwise. What would be ignored is refused: a setting that does nothing is worse than an error. *Ours* is the value when nothing
is set, *Kata* what Kata's file ships (and what Kata uses without it, where that differs)."""

TIME: Final = """\
## Deadlines

Deadlines are for KVM; each is multiplied by one factor: {factors}, or `shimd.time_scale` when it is not 0. The deadlines for
reaching the agent and for creating a container are Kata's `dial_timeout` and `create_container_timeout`.

State, Connect, Pids, CloseIO, Checkpoint and Shutdown have no deadline, for they wait for nothing; Wait has none, for it waits for
an end. The launcher's own waits are fixed: it runs before anyone has chosen an accelerator, and waits for the host alone."""

ANNOTATIONS: Final = """\
## Annotations

Only the sandbox's annotations are read. Those of the hypervisor act when a regular expression in `enable_annotations` matches
the **whole** name after `io.katacontainers.config.hypervisor.` (see
[decision 0004](decisions/0004-anchored-annotations.md)); the others always act. An annotation for a held key is refused unless
it says what is the default anyway. Booleans are Go's: `1 t T TRUE true True 0 f F FALSE false False`; integers are decimal
digits. An empty text leaves a text as it is."""


def page() -> str:
    """The whole page."""
    search = "\n".join(f"   - `{path}`" for path in SEARCH)
    factors = ", ".join(f"{factor:g} under {accelerator.name}" for accelerator, factor in TIME_SCALE.items())
    parts = [INTRODUCTION.format(search=search), *map(_table, TABLES), _rules()]
    parts += [TIME.format(factors=factors), ANNOTATIONS, _annotations(), _lone()]
    return "\n\n".join(parts) + "\n"


def _table(table: str) -> str:
    rows = [_row(key) for key in KEYS if key.table == table]
    head = ["| Key | Type | Ours | Kata | Status | Meaning |", "|---|---|---|---|---|---|"]
    return "\n".join([f"### [{table}]", "", *head, *rows])


def _row(key: Key) -> str:
    kata = _value(key.kata) + ("" if key.code is ABSENT else f" ({_value(key.code)})")
    status = "supported" if key.status is Status.SUPPORTED else "held"
    return "| " + " | ".join([f"`{key.name}`", key.kind.name, _value(key.default), kata, status, key.meaning]) + " |"


def _value(value: object) -> str:
    return "–" if value is ABSENT else f"`{toml(value)}`"


def _rules() -> str:
    rows = [f"| `{rule.key}` | {rule.what} | {rule.severity} |" for rule in RULES]
    return "\n".join(["### Rules between keys", "", "| Key | Complaint | |", "|---|---|---|", *rows])


def _annotations() -> str:
    head = ["| Annotation | Key | Status | |", "|---|---|---|---|"]
    rows = [_annotation(key, note) for key in KEYS for note in key.annotations]
    return "\n".join([*head, *rows])


def _annotation(key: Key, note: Annotation) -> str:
    status = "supported" if key.status is Status.SUPPORTED else "held"
    return f"| `{note.name}` | `{key.dotted}` | {status} | {', '.join(_notes(note))} |"


def _notes(note: Annotation) -> Iterator[str]:
    if note.globs:
        yield f"must match `{note.globs}`"
    if note.positive:
        yield "greater than 0"
    if note.combine is not replaces and note.combine.__doc__:
        yield note.combine.__doc__.rstrip(".").split("\n")[0]


def _lone() -> str:
    head = ["Known, without a key, and refused unless empty:", "", "| Annotation | Meaning |", "|---|---|"]
    return "\n".join([*head, *(f"| `{lone.name}` | {lone.meaning} |" for lone in LONE)])


if __name__ == "__main__":
    sys.stdout.write(page())
