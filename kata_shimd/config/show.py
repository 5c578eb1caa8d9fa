"""A configuration as text: TOML that can be loaded again, or JSON.

Owns both forms. Only keys that act are shown; values that were worked out from others are comments in TOML, since writing
them down would change what they follow. Must never happen: output whose order depends on anything but the tables.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from kata_shimd.config.build import DERIVED
from kata_shimd.config.key import ABSENT, Key
from kata_shimd.config.keys import BY_DOTTED, TABLES, supported
from kata_shimd.config.load import Loaded
from kata_shimd.config.model import Config
from kata_shimd.config.origin import DEFAULT, Layer

SCHEMA_VERSION: Final = 1


def value_of(config: Config, key: Key) -> Any:
    """The typed value of a key in the tree."""
    section = {
        "hypervisor.qemu": config.hypervisor,
        "agent.kata": config.agent,
        "runtime": config.runtime,
        "factory": config.factory,
        "shimd": config.shimd,
        "shimd.timeouts": config.timeouts,
    }[key.table]
    return getattr(section, key.field)


def as_toml(loaded: Loaded, *, origin: bool = False) -> str:
    """The effective configuration; with ``origin`` every line says where its value came from."""
    lines = [_heading(loaded)]
    for table in TABLES:
        keys = [key for key in supported() if key.table == table]
        if keys:
            lines += ["", f"[{table}]", *(_line(loaded, key, origin=origin) for key in keys)]
    return "\n".join(lines) + "\n"


def _heading(loaded: Loaded) -> str:
    if not loaded.files:
        return "# no configuration file: built-in defaults"
    return "\n".join(f"# {path}" for path in loaded.files)


def _line(loaded: Loaded, key: Key, *, origin: bool) -> str:
    value = value_of(loaded.config, key)
    derived = _is_derived(loaded, key)
    text = "" if value is None else toml(key.kind.dump(value))
    line = f"{'# ' if derived else ''}{key.name} = {text}".rstrip()
    return f"{line}  # {loaded.origin[key.dotted]}" if origin else line


def _is_derived(loaded: Loaded, key: Key) -> bool:
    where = loaded.origin[key.dotted]
    return where == DERIVED or (where == DEFAULT and key.default is ABSENT)


def toml(value: object) -> str:
    """One value in TOML. Its strings are JSON's, which TOML takes too (there are no control characters or surrogates)."""
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return json.dumps(value, ensure_ascii=False)
        case float():
            return f"{value:g}" if value.is_integer() and abs(value) < 1e6 else repr(value)
        case list() | tuple():
            return "[" + ", ".join(map(toml, value)) + "]"
    return str(value)


def as_json(loaded: Loaded, *, origin: bool = False) -> str:
    """The effective configuration for programs: ``config`` by table and key, and on demand ``origin`` in the same shape."""
    answer: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "files": [str(path) for path in loaded.files],
        "config": _by_table({key.dotted: _plain(loaded, key) for key in supported()}),
        "initrd": str(loaded.config.hypervisor.initrd) if loaded.config.hypervisor.initrd else None,
        "warnings": list(loaded.warnings),
    }
    if origin:
        answer["origin"] = _by_table({key.dotted: _origin(loaded, key) for key in supported()})
    return json.dumps(answer, indent=2, ensure_ascii=False) + "\n"


def _plain(loaded: Loaded, key: Key) -> object:
    value = value_of(loaded.config, key)
    return None if value is None else key.kind.dump(value)


def _origin(loaded: Loaded, key: Key) -> dict[str, object]:
    where = loaded.origin[key.dotted]
    if where.layer is Layer.DEFAULT:
        return {"layer": "default"}
    return {"layer": str(where.layer), "where": where.where, "line": where.line}


def _by_table(values: Mapping[str, object]) -> dict[str, dict[str, object]]:
    tables: dict[str, dict[str, object]] = {}
    for dotted, value in values.items():
        tables.setdefault(BY_DOTTED[dotted].table, {})[BY_DOTTED[dotted].name] = value
    return tables
