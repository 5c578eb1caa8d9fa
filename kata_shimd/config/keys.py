"""The table of all keys, all annotations, and the ways to look one up.

Owns the indexes over the rows of ``keys_hypervisor``, ``keys_runtime`` and ``keys_shimd``. To make a key act: give it a field
in ``model.py`` and turn its ``held`` into ``acts``. Must never happen: a key that is known here and means nothing anywhere.
"""

from collections.abc import Iterable
from typing import Final

from kata_shimd.config import keys_hypervisor, keys_runtime, keys_shimd
from kata_shimd.config.key import AGENT, HYPERVISOR, Annotation, Key, LoneAnnotation, Status, refused

KEYS: Final[tuple[Key, ...]] = (*keys_hypervisor.KEYS, *keys_runtime.KEYS, *keys_shimd.KEYS)
BY_PATH: Final = {key.path: key for key in KEYS}
BY_DOTTED: Final = {key.dotted: key for key in KEYS}
TABLES: Final = tuple(dict.fromkeys(key.table for key in KEYS))

#: Paths that are tables on the way to a key: ("hypervisor",), ("hypervisor", "qemu"), …
PREFIXES: Final = frozenset(key.path[:length] for key in KEYS for length in range(1, len(key.path)))

#: Everything below this is configuration of the sandbox; what is there and not known is worth a warning.
CONFIG_PREFIX: Final = "io.katacontainers.config."

BY_ANNOTATION: Final[dict[str, tuple[Key, Annotation]]] = {
    note.name: (key, note) for key in KEYS for note in key.annotations
}

_HASHED: Final = ("kernel", "image", "initrd", "hypervisor", "jailer", "firmware", "firmware_volume")
LONE: Final[tuple[LoneAnnotation, ...]] = (
    *(refused(f"{HYPERVISOR}{asset}_hash", "digest that a file of the guest must have") for asset in _HASHED),
    refused("io.katacontainers.asset_hash_type", "algorithm of those digests", "sha512"),
    refused(f"{HYPERVISOR}default_gpus", "GPUs of a remote hypervisor", "0"),
    refused(f"{HYPERVISOR}default_gpu_model", "their model"),
    refused(f"{HYPERVISOR}cc_init_data", "init data of a confidential guest"),
    refused(f"{AGENT}container_pipe_size", "size of the pipes of a container's output", "0"),
    refused(f"{AGENT}policy", "policy for the agent"),
)
BY_LONE: Final = {lone.name: lone for lone in LONE}

#: runtime-rs's spelling of keys that have another one here (`kata.md` §8.7).
RUNTIME_RS: Final = {
    "hypervisor.qemu.seccomp_sandbox": "hypervisor.qemu.seccompsandbox",
    "hypervisor.qemu.factory": "factory",
    "agent.kata.dial_timeout_ms": "agent.kata.dial_timeout",
    "agent.kata.create_container_timeout": "runtime.create_container_timeout",
    "runtime.selinux_label": "runtime.guest_selinux_label",
}


def supported() -> Iterable[Key]:
    """The keys that act."""
    return (key for key in KEYS if key.status is Status.SUPPORTED)


def suggest_key(dotted: str) -> str:
    """A hint for a key nobody knows: where it went, or the nearest name."""
    if dotted in RUNTIME_RS:
        return f"this is runtime-rs's name; here it is {RUNTIME_RS[dotted]}"
    table, _, name = dotted.rpartition(".")
    elsewhere = [key.dotted for key in KEYS if key.name == name]
    if elsewhere:
        return f"did you mean {elsewhere[0]}?"
    siblings = [key.name for key in KEYS if key.table == table] or [key.dotted for key in KEYS] + list(TABLES)
    return nearest(name if table in TABLES else dotted, siblings)


def suggest_annotation(name: str) -> str:
    """A hint for an annotation nobody knows."""
    return nearest(name, [*BY_ANNOTATION, *BY_LONE])


def nearest(name: str, names: Iterable[str]) -> str:
    import difflib  # only mistakes pay for it

    found = difflib.get_close_matches(name[:200], names, n=1, cutoff=0.7)
    return f"did you mean {found[0]}?" if found else ""
