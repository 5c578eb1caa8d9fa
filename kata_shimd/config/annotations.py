"""Sandbox annotations as the last layer of configuration (`kata.md` §9).

Owns which annotation may set what. Pods choose their annotations, so this is a border: a hypervisor annotation acts only when
``enable_annotations`` lets it, and a path only when an allow list has it. The regular expressions must match the whole name
(decision 0004). Names that nobody knows never reach a regular expression. Must never happen: an annotation that reads or
changes anything before it has passed.
"""

import re
from collections.abc import Iterable, Mapping

from kata_shimd.config.key import HYPERVISOR, Annotation, Key, LoneAnnotation, replaces
from kata_shimd.config.keys import BY_ANNOTATION, BY_DOTTED, BY_LONE, CONFIG_PREFIX, suggest_annotation
from kata_shimd.config.kinds import compile_pattern, excerpt, path_in_globs, shorten
from kata_shimd.config.layers import KeyPath, Layers
from kata_shimd.config.origin import DEFAULT, Layer, Origin, Problem, Sourced


def add_annotations(layers: Layers, annotations: Mapping[str, str]) -> None:
    """Lay the annotations over what is there, in the order of their names. Those that are not ours are passed over."""
    enabled = tuple(_patterns(layers.values))
    for name in sorted(annotations):
        origin = Origin(Layer.ANNOTATION, excerpt(name, 128))
        if name in BY_LONE or name in BY_ANNOTATION:
            if not _is_enabled(name, enabled):
                layers.problems.append(_not_enabled(origin, name))
            else:
                _add(layers, origin, name, annotations[name])
        elif name.startswith(CONFIG_PREFIX):
            hint = suggest_annotation(name)
            layers.problems.append(Problem(origin, origin.where, "nobody knows this annotation", hint, unknown=True))


def _patterns(values: Mapping[KeyPath, Sourced]) -> Iterable[re.Pattern[str]]:
    """The allow list in force; patterns that are wrong are complained about where the key itself is read."""
    key = BY_DOTTED["hypervisor.qemu.enable_annotations"]
    try:
        return [compile_pattern(pattern) for pattern in key.kind.parse(_below(values, key))]
    except ValueError:
        return []


def _is_enabled(name: str, patterns: Iterable[re.Pattern[str]]) -> bool:
    suffix = name.removeprefix(HYPERVISOR)
    return suffix == name or any(pattern.fullmatch(suffix) for pattern in patterns)


def _not_enabled(origin: Origin, name: str) -> Problem:
    suffix = name.removeprefix(HYPERVISOR)
    return Problem(origin, name, "is not enabled", f'add "{suffix}" to enable_annotations in [hypervisor.qemu]')


def _add(layers: Layers, origin: Origin, name: str, text: str) -> None:
    try:
        if name in BY_LONE:
            _check_lone(BY_LONE[name], text)
        else:
            _set(layers, origin, *BY_ANNOTATION[name], text)
    except ValueError as error:
        layers.problems.append(Problem(origin, name, str(error)))


def _check_lone(lone: LoneAnnotation, text: str) -> None:
    if text not in lone.accepted:
        raise ValueError("is not supported here")


def _set(layers: Layers, origin: Origin, key: Key, note: Annotation, text: str) -> None:
    if not text and note.text is str:
        return  # as Kata does: an empty text leaves what is there
    value = note.text(text)
    if note.positive and value == 0:
        raise ValueError("must be greater than 0")
    if note.globs:
        _check_globs(layers.values, key, note, str(value))
    below = _below(layers.values, key)
    if note.combine is not replaces and not _is_valid(key, below):
        return  # the file's value is the one to complain of
    layers.values[key.path] = Sourced(note.combine(below, value), origin)


def _is_valid(key: Key, value: object) -> bool:
    try:
        key.kind.parse(value)
    except ValueError:
        return False
    return True


def _check_globs(values: Mapping[KeyPath, Sourced], key: Key, note: Annotation, path: str) -> None:
    allowed = BY_DOTTED[f"{key.table}.{note.globs}"]
    globs = allowed.kind.parse(_below(values, allowed))
    if path != _below(values, key) and not path_in_globs(path, globs):
        raise ValueError(f"{shorten(path)} is not allowed by {note.globs}")


def _below(values: Mapping[KeyPath, Sourced], key: Key) -> object:
    """The TOML value the key has without the annotation."""
    return values.get(key.path, Sourced(key.default, DEFAULT)).value
