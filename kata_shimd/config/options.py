"""What containerd's runtime options say about configuration (`containerd.md` §2.3).

Owns which option types there are. Decoding is handed in, so that nothing here depends on generated messages. Must never
happen: failing a pod for options that were meant for another runtime.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kata_shimd.config.kinds import excerpt
from kata_shimd.errors import InvalidArgument

#: Messages with the fields type_url, config_path, config_body. The second name is containerd's up to 1.4.
RUNTIME_OPTIONS: Final = frozenset({"runtimeoptions.v1.Options", "cri.runtimeoptions.v1.Options"})
#: runc's. CRI sends these by default, and containerd 2.0 to 2.2 whenever a handler has a sandboxer.
IGNORED: Final = frozenset(
    {
        "containerd.runc.v1.Options",
        "runc.v1.Options",
        "containerd.linux.runc.RuncOptions",
        "containerd.linux.runc.CreateOptions",
    }
)

#: Bytes of a ``runtimeoptions.v1.Options`` to (config_path, config_body). Raises ``ValueError`` or ``InvalidArgument``.
Decode = Callable[[bytes], tuple[str, bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigSource:
    """What to hand to ``load``, and what to warn of."""

    config_path: Path | None = None
    config_body: bytes = b""
    warnings: tuple[str, ...] = ()


def pick(type_url: str, value: bytes, decode: Decode) -> ConfigSource:
    """The source of configuration in an Any of options; no options are an empty ``type_url``.

    Raises ``InvalidArgument`` for bytes that are not what the type says.
    """
    name = type_url.rpartition("/")[2]
    if not name or name in IGNORED:
        return ConfigSource()
    if name not in RUNTIME_OPTIONS:
        return ConfigSource(warnings=(f"runtime options: {excerpt(name)}: unknown type, ignored",))
    try:
        path, body = decode(value)
    except (ValueError, InvalidArgument) as error:
        raise InvalidArgument("runtime options", name, str(error)) from error
    return ConfigSource(config_path=_path(name, path), config_body=body)


def _path(name: str, path: str) -> Path | None:
    if "\0" in path:
        raise InvalidArgument("runtime options", name, "config_path contains a NUL")
    return Path(path) if path else None
