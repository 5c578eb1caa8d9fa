"""``kata-shimd template``: makes, lists and removes what pods are cloned from."""

import argparse
import asyncio
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any, Final

from kata_shimd import assembly
from kata_shimd.cli.config import env_path
from kata_shimd.cli.output import FAILED, OK, SCHEMA_VERSION, add_output, add_run_dir, table
from kata_shimd.config.load import Loaded, load
from kata_shimd.config.model import Accelerator, Timeouts
from kata_shimd.errors import FailedPrecondition, HostFailed, ShimError
from kata_shimd.ordering import NICE, Order
from kata_shimd.templates import Site, Templates, unfit
from kata_shimd.vm import accel
from kata_shimd.vm.spec import VmSpec
from kata_shimd.vm.template import key
from kata_shimd.vm.template.store import Listed, Refused, Store
from kata_shimd.vmspec import vm_spec

LAUNCHER: Final = "containerd-shim-kata-v2"
MIB: Final = 1 << 20
#: Why a template is let rest whose maker was killed.
CUT_SHORT: Final = "its maker was ended before it was made"


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "template",
        help="make, list and remove what pods are cloned from",
        description="A template is a guest that was booted once. With factory.enable_template one that a pod misses is made beside "
        "it; `build` makes it ahead, for pods whose annotations do not change their machine.",
    )
    parser.add_argument("action", choices=("build", "ls", "rm"))
    parser.add_argument("key", nargs="*", help="what to remove, all without one")
    parser.add_argument("--config", type=Path, metavar="FILE", help="configuration in place of the one that pods find")
    parser.add_argument("--order", type=Path, metavar="FILE", help=argparse.SUPPRESS)  # as a pod's daemon has it
    add_output(parser)
    add_run_dir(parser)


def run(args: argparse.Namespace) -> int:
    if args.order is not None:
        return _made_to_order(Order.parse(args.order.read_bytes()), args.run_dir.absolute())
    loaded = load(args.config.absolute() if args.config else None, b"", env_path(), {})
    store = Store(loaded.config.factory.template_path)
    match args.action:
        case "build":
            return _build(loaded, store, args.run_dir.absolute())
        case "rm":
            return _remove(store, args.key)
        case _:
            return _list(store, args.output)


def _build(loaded: Loaded, store: Store, run_dir: Path) -> int:
    spec, timeouts = _machine(loaded)
    if why := unfit(spec):
        raise FailedPrecondition("make template", str(spec.image), why)
    store.begin()
    name, begun = key.name(key.inputs(spec)), time.monotonic()
    with store.making(name) as ours:
        if not ours:
            raise FailedPrecondition("make template", name, "somebody else is making it")
        used = asyncio.run(_make(spec, assembly.template_site(store.path, run_dir, _launcher(), timeouts)))
    store.forgive(name)
    print(f"{name}  {used >> 20} MiB for each clone to copy, made in {time.monotonic() - begun:.1f} s")
    return OK


def _made_to_order(order: Order, run_dir: Path) -> int:
    """For a pod's daemon, unless it has been made meanwhile. What comes to nothing is not tried again for a while; nor is what we
    are killed over, so that is written down first.
    """
    os.nice(NICE)
    loaded = order.told.load()
    spec, timeouts = _machine(loaded)
    store = Store(loaded.config.factory.template_path)
    with store.making(order.key) as ours:
        if not ours or _is_there(store, order.key):
            return OK
        store.failed(order.key, CUT_SHORT)
        try:
            if key.name(key.inputs(spec)) != order.key:
                raise FailedPrecondition("make template", order.key, "by now such a pod would have another")
            asyncio.run(_make(spec, assembly.template_site(store.path, run_dir, _launcher(), timeouts), unasked=True))
            store.forgive(order.key)
        except Exception as error:
            store.failed(order.key, str(error))
            raise
    return OK


def _is_there(store: Store, name: str) -> bool:
    """Whole, that is; what is not is replaced."""
    try:
        found = store.find(name)
    except Refused:
        return False
    if found is not None:
        os.close(found.memory)
    return found is not None


def _machine(loaded: Loaded) -> tuple[VmSpec, Timeouts]:
    choice = accel.choose(accel.Setting(loaded.config.shimd.accelerator.value))
    timeouts = loaded.config.deadlines(Accelerator(choice.accelerator.value))
    return vm_spec("template", loaded.config, choice), timeouts


async def _make(spec: VmSpec, site: Site, *, unasked: bool = False) -> int:
    failure: ShimError | None = None
    async with asyncio.TaskGroup() as group:
        try:
            return await Templates(site, group, lambda *_, **__: None).make(spec, unasked=unasked)
        except ShimError as error:  # raised again outside: the group would wrap it
            failure = error
    raise failure


def _launcher() -> Path:
    """The one of this installation, or the one that containerd would find."""
    beside = Path(sys.executable).parent / LAUNCHER
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which(LAUNCHER)
    if found is None:
        raise HostFailed("find launcher", LAUNCHER, "it is neither beside this interpreter nor on the PATH")
    return Path(found)


def _remove(store: Store, keys: list[str]) -> int:
    missing = [name for name in keys or [each.key for each in store.list()] if not store.remove(name)]
    for name in keys:
        store.forgive(name)
    store.sweep()
    for name in missing:
        print(f"kata-shimd: {name}: no such template", file=sys.stderr)
    return FAILED if missing else OK


def _list(store: Store, output: str) -> int:
    found = store.list()
    if output == "json":
        rows = [{"key": each.key, "problem": each.problem, "used": each.used, "made": each.made} for each in found]
        text = json.dumps({"schema_version": SCHEMA_VERSION, "templates": rows}, indent=2) + "\n"
    else:
        text = table(("KEY", "MEMORY MIB", "COPIED MIB", "MADE", "PROBLEM"), [_row(each) for each in found])
    sys.stdout.write(text)
    return FAILED if any(each.problem for each in found) else OK


def _row(each: Listed) -> tuple[str, ...]:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each.made)) if each.made else ""
    return each.key, str(each.size // MIB), str(each.used // MIB), when, each.problem
