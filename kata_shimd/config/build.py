"""From layers of TOML values to the frozen tree, and everything that is wrong on the way.

Owns conversion, the refusal of unsupported settings, derived values and the rules between keys. Pure: no file, no host. Must
never happen: stopping at the first complaint, or a tree made from values that somebody complained about.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from kata_shimd.config.key import ABSENT, Key, Status
from kata_shimd.config.keys import BY_PATH, KEYS, PREFIXES, suggest_key
from kata_shimd.config.keys_hypervisor import SECCOMP_SANDBOX, VIRTIOFSD_PATHS
from kata_shimd.config.keys_shimd import FROM_KATA
from kata_shimd.config.kinds import describe, excerpt
from kata_shimd.config.layers import KeyPath, Layers
from kata_shimd.config.model import (
    AgentConfig,
    Config,
    ExtraMonitor,
    FactoryConfig,
    HypervisorConfig,
    RootfsType,
    RuntimeConfig,
    ShimdConfig,
    Timeouts,
)
from kata_shimd.config.origin import DEFAULT, Layer, Origin, Problem, Severity, Sourced

#: The typed values by dotted key.
Values = dict[str, Any]

DERIVED: Final = Origin(Layer.DEFAULT, "of shimd.guest_dir")


_ROWS: Final = tuple((key, key.dotted, key.path) for key in KEYS)
#: What `_value` says of keys that nobody sets. They never change, and most keys are set by nobody.
_defaults: dict[KeyPath, Any] = {}


def build(layers: Layers) -> tuple[Config | None, dict[str, Origin]]:
    """The tree, or None when ``layers.problems`` has an error; and the origin of every value, by dotted key."""
    complain = layers.problems.append
    for path, sourced in layers.values.items():
        if path not in BY_PATH:
            complain(_unknown(path, sourced))
    values = {dotted: value for key, dotted, path in _ROWS if (value := _value(key, path, layers)) is not ABSENT}
    origin = {dotted: _origin(layers.values.get(path)) for _, dotted, path in _ROWS}
    _derive(values, origin, layers)
    if any(problem.severity is Severity.ERROR and not problem.unknown for problem in layers.problems):
        return None, origin
    config = _tree(values)
    layers.problems.extend(_broken_rules(config, origin))
    return config, origin


def _unknown(path: KeyPath, sourced: Sourced) -> Problem:
    dotted = excerpt(".".join(path), 128)
    if path in PREFIXES:
        return Problem(sourced.origin, dotted, f"must be a table, not {describe(sourced.value)}")
    if len(path) == 2 and path[0] == "hypervisor" and isinstance(sourced.value, dict):
        return Problem(
            sourced.origin, dotted, "this hypervisor is not supported", "use [hypervisor.qemu], and no other"
        )
    return Problem(sourced.origin, dotted, "nobody knows this key", suggest_key(dotted), unknown=True)


def _origin(sourced: Sourced | None) -> Origin:
    return DEFAULT if sourced is None else sourced.origin


def _value(key: Key, path: KeyPath, layers: Layers) -> Any:
    """The typed value of a key; ABSENT when it is to be derived, not stored, or wrong."""
    sourced = layers.values.get(path)
    if sourced is None and path in _defaults:
        return _defaults[path]
    value = _read(key, sourced, layers)
    if sourced is None and value is not ABSENT:
        _defaults[path] = value
    return value


def _read(key: Key, sourced: Sourced | None, layers: Layers) -> Any:
    raw = key.default if sourced is None else sourced.value
    if raw is ABSENT:
        return ABSENT
    try:
        value = key.kind.parse(raw)
        if sourced is not None and key.status is not Status.SUPPORTED:
            _check_accepted(key, value)
    except ValueError as error:
        layers.problems.append(Problem(sourced.origin if sourced else DEFAULT, key.dotted, str(error)))
        return ABSENT
    return value if key.field else ABSENT


def _check_accepted(key: Key, value: object) -> None:
    if value not in [key.kind.parse(accepted) for accepted in key.accepted]:
        usual = excerpt(str(key.accepted[0])) or "empty"
        raise ValueError(f"is not supported here; only its default ({usual}) is accepted")


def _derive(values: Values, origin: dict[str, Origin], layers: Layers) -> None:
    """The values that follow from others."""
    qemu = "hypervisor.qemu."
    _derive_guest(values, origin, layers, qemu)
    values.setdefault(qemu + "virtio_fs_daemon", tuple(map(Path, VIRTIOFSD_PATHS)))
    values.setdefault("agent.kata.launch_process_timeout", None)
    # Kata's file ships the empty string, which there means "no filter"; to lose ours by that would be an accident.
    if values.get(qemu + "seccompsandbox") == "":
        values[qemu + "seccompsandbox"], origin[qemu + "seccompsandbox"] = SECCOMP_SANDBOX, DEFAULT


def _derive_guest(values: Values, origin: dict[str, Origin], layers: Layers, qemu: str) -> None:
    """Kernel, image and initrd: those configured, or those of the guest directory, never a mixture."""
    guest = values.get("shimd.guest_dir", Path("/"))
    given = {name for name in ("kernel", "image") if ("hypervisor", "qemu", name) in layers.values}
    if len(given) == 1:
        (only,) = given
        other = "image" if only == "kernel" else "kernel"
        where = origin[qemu + only]
        layers.problems.append(Problem(where, qemu + only, f"is set without {other}", "set both, or neither"))
    values["initrd"] = None
    if not given:
        values |= {
            qemu + "kernel": guest / "vmlinuz",
            qemu + "image": guest / "rootfs.img",
            "initrd": guest / "initrd.img",
        }
        origin |= {qemu + "kernel": DERIVED, qemu + "image": DERIVED}
    _derive_rootfs_type(values, origin, layers, RootfsType.EXT4 if given else RootfsType.SQUASHFS, bundled=not given)


def _derive_rootfs_type(
    values: Values, origin: dict[str, Origin], layers: Layers, usual: RootfsType, *, bundled: bool
) -> None:
    """The built guest is what it is: Kata's file says ext4 also when it names no image."""
    dotted = "hypervisor.qemu.rootfs_type"
    if values.setdefault(dotted, usual) is not usual and bundled:
        what = f"does not apply to the guest of shimd.guest_dir, which is {usual}"
        layers.problems.append(Problem(origin[dotted], dotted, what, severity=Severity.WARNING))
        values[dotted], origin[dotted] = usual, DEFAULT


def _tree(values: Values) -> Config:
    timeouts = _section("shimd.timeouts", values) | {field: values[dotted] for field, dotted in FROM_KATA.items()}
    return Config(
        hypervisor=HypervisorConfig(**_section("hypervisor.qemu", values), initrd=values["initrd"]),
        agent=AgentConfig(**_section("agent.kata", values)),
        runtime=RuntimeConfig(**_section("runtime", values)),
        factory=FactoryConfig(**_section("factory", values)),
        shimd=ShimdConfig(**_section("shimd", values)),
        timeouts=Timeouts(**timeouts),
    )


def _section(table: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {key.field: values[key.dotted] for key in KEYS if key.table == table and key.field}


@dataclass(frozen=True, slots=True)
class Rule:
    """What must hold between values (`kata.md` §8.6 and ours); broken ones are reported at ``key``."""

    key: str
    holds: Callable[[Config], bool]
    what: str
    severity: Severity = Severity.ERROR


RULES: Final = (
    Rule(
        "hypervisor.qemu.default_maxmemory",
        lambda config: not 0 < config.hypervisor.default_maxmemory_mib < config.hypervisor.default_memory_mib,
        "is less than default_memory",
    ),
    Rule(
        "hypervisor.qemu.default_maxvcpus",
        lambda config: not 0 < config.hypervisor.default_maxvcpus < config.hypervisor.default_vcpus,
        "is less than default_vcpus",
    ),
    Rule(
        "hypervisor.qemu.extra_monitor_socket",
        lambda config: config.hypervisor.extra_monitor_socket is ExtraMonitor.NONE or config.hypervisor.enable_debug,
        "does nothing without enable_debug",
        Severity.WARNING,
    ),
    Rule(
        "shimd.timeouts.stop",
        lambda config: _stop_steps(config.timeouts) <= config.timeouts.stop,
        "is less than stop_agent, stop_quit, stop_term and stop_kill together",
    ),
    Rule(
        "hypervisor.qemu.seccompsandbox",
        lambda config: config.hypervisor.seccompsandbox.split(",")[0] != "off",
        "QEMU runs without its system call filter",
        Severity.WARNING,
    ),
)


def _stop_steps(timeouts: Timeouts) -> float:
    return timeouts.stop_agent + timeouts.stop_quit + timeouts.stop_term + timeouts.stop_kill


def _broken_rules(config: Config, origin: Mapping[str, Origin]) -> list[Problem]:
    return [
        Problem(origin[rule.key], rule.key, rule.what, severity=rule.severity)
        for rule in RULES
        if not rule.holds(config)
    ]


def stored_fields() -> dict[type, set[str]]:
    """The fields of each section of the model, for the test that the tables fill all of them."""
    sections = (HypervisorConfig, AgentConfig, RuntimeConfig, FactoryConfig, ShimdConfig, Timeouts)
    return {section: {field.name for field in fields(section)} for section in sections}
