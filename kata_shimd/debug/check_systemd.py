"""Whether pods are units of systemd's here, and whether those units are as this version wants them."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from kata_shimd.config.model import Keeping
from kata_shimd.debug.check import Row, Scene, Verdict
from kata_shimd.debug.check_host import containerd_pid
from kata_shimd.debug.check_programs import dotted, search_path, version_in

#: Where there is such a file, pods are units (`launcher/src/unit/mod.rs`).
TEMPLATE: Final = "kata-pod@.service"
#: The oldest that knows FDPOLL=0, without which it gives up descriptors that a later daemon is to get.
MIN_SYSTEMD: Final = (246, 0)
#: What a launcher has to have in common with systemd to make a unit (`launcher/src/zygote.rs`).
NAMESPACES: Final = ("mnt", "net", "pid", "user", "ipc", "uts", "cgroup")
_INSTALL: Final = "kata-shimd systemd install"
_START: Final = "ExecStart="


def systemd(scene: Scene) -> Iterator[Row]:
    if scene.config.config is None:
        yield Row("systemd", Verdict.SKIP, "unknown without a configuration")
        return
    keeper, template = scene.config.config.shimd.keeper, _template(scene)
    if obstacle := _obstacle(scene, template):
        yield _without_units(keeper, *obstacle)
    elif keeper is Keeping.LAUNCHER:
        why = f'{template}: pods are units, and keeper = "launcher" is refused in those'
        yield Row("systemd", Verdict.FAIL, why, 'keeper = "auto", or `kata-shimd systemd remove`')
    else:
        assert template is not None
        yield _units(scene, template)


def _obstacle(scene: Scene, template: Path | None) -> tuple[str, str] | None:
    """Why pods are no units, and what would make them so."""
    if not scene.booted.is_dir():
        return "systemd is not this host's first process", ""
    if template is None:
        return f"there is no {TEMPLATE}", _INSTALL
    pid = containerd_pid(scene)
    apart = [name for name in NAMESPACES if _namespace(scene, str(pid or "self"), name) != _namespace(scene, "1", name)]
    if apart:
        whose = f"containerd, pid {pid}," if pid else "this process"
        return f"{whose} is not in systemd's namespaces: {', '.join(apart)}", "run containerd where systemd runs"
    return None


def _without_units(keeper: Keeping, why: str, fix: str) -> Row:
    if keeper is not Keeping.SYSTEMD:
        return Row("systemd", Verdict.SKIP, f"pods are no units: {why}")
    other = 'keeper = "auto" or "launcher"'
    return Row("systemd", Verdict.FAIL, f'keeper = "systemd", and {why}', f"{fix}; or {other}" if fix else other)


def _units(scene: Scene, template: Path) -> Row:
    program = shutil.which("systemctl", path=search_path(scene))
    if program is None:
        return Row("systemd", Verdict.FAIL, "no systemctl in containerd's PATH", "add its directory to that PATH")
    answer = scene.ask([program, "--version"])
    version = version_in(answer.said)
    if answer.status != 0 or version < MIN_SYSTEMD:
        why = f"systemd {version[0]}" if answer.status == 0 else f"{program}: {answer.said.strip()}"
        return Row("systemd", Verdict.FAIL, why, f"systemd {MIN_SYSTEMD[0]} or newer, or `kata-shimd systemd remove`")
    text = template.read_text()
    launcher = _launcher(text)
    if launcher is None or not os.access(launcher, os.X_OK):
        return Row("systemd", Verdict.FAIL, f"{template}: its launcher {launcher} cannot be executed", _INSTALL)
    advice = "" if text == scene.unit else f"not as this installation would write it, for {launcher}: `{_INSTALL}`"
    return Row("systemd", Verdict.PASS, f"pods are units of systemd {dotted(version)}, by {template}", advice)


def _template(scene: Scene) -> Path | None:
    """The first, as systemd looks."""
    return next((place / TEMPLATE for place in scene.unit_places if (place / TEMPLATE).exists()), None)


def _launcher(text: str) -> Path | None:
    words = next((line.removeprefix(_START).split() for line in text.splitlines() if line.startswith(_START)), [])
    return Path(words[0]) if words else None


def _namespace(scene: Scene, who: str, name: str) -> str:
    try:
        return str((scene.proc / who / "ns" / name).readlink())
    except OSError:
        return f"unknown, {who}'s"
