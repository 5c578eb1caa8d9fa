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
from kata_shimd.config.model import Accelerator
from kata_shimd.errors import FailedPrecondition, HostFailed, ShimError
from kata_shimd.templates import Templates, unfit
from kata_shimd.vm import accel
from kata_shimd.vm.template import key
from kata_shimd.vm.template.store import Listed, Store
from kata_shimd.vmspec import vm_spec

LAUNCHER: Final = "containerd-shim-kata-v2"
MIB: Final = 1 << 20


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "template",
        help="make, list and remove what pods are cloned from",
        description="A template is a guest that was booted once. With factory.enable_template a pod makes the one it needs when "
        "that is missing; `build` makes it ahead, for pods whose annotations do not change their machine.",
    )
    parser.add_argument("action", choices=("build", "ls", "rm"))
    parser.add_argument("key", nargs="*", help="what to remove, all without one")
    parser.add_argument("--config", type=Path, metavar="FILE", help="configuration in place of the one that pods find")
    add_output(parser)
    add_run_dir(parser)


def run(args: argparse.Namespace) -> int:
    loaded = load(args.config.absolute() if args.config else None, b"", env_path(), {})
    store = Store(loaded.config.factory.template_path)
    match args.action:
        case "build":
            return asyncio.run(_build(loaded, store, args.run_dir.absolute()))
        case "rm":
            return _remove(store, args.key)
        case _:
            return _list(store, args.output)


async def _build(loaded: Loaded, store: Store, run_dir: Path) -> int:
    config = loaded.config
    choice = accel.choose(accel.Setting(config.shimd.accelerator.value))
    timeouts = config.deadlines(Accelerator(choice.accelerator.value))
    spec = vm_spec("template", config, choice)
    if why := unfit(spec):
        raise FailedPrecondition("make template", str(spec.image), why)
    store.begin()
    name, begun = key.name(key.inputs(spec)), time.monotonic()
    failure: ShimError | None = None
    async with asyncio.TaskGroup() as group:
        templates = Templates(
            assembly.template_site(store.path, run_dir, _launcher(), timeouts), group, lambda *_, **__: None
        )
        try:
            with store.making(name) as ours:
                if not ours:
                    raise FailedPrecondition("make template", name, "somebody else is making it")
                used = await templates.make(spec)
        except ShimError as error:  # raised again outside: the group would wrap it
            failure = error
    if failure is not None:
        raise failure
    store.forgive(name)
    print(f"{name}  {used >> 20} MiB for each clone to copy, made in {time.monotonic() - begun:.1f} s")
    return OK


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
