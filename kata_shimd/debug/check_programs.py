"""The programs and files a pod is made of: QEMU, virtiofsd, the guest, containerd, and our own launcher and Python."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from kata_shimd.config.host import find_virtiofsd
from kata_shimd.config.model import HypervisorConfig
from kata_shimd.debug.check import Row, Scene, Verdict
from kata_shimd.debug.check_host import containerd_pid
from kata_shimd.errors import NotFound

#: The oldest versions that are tested.
MIN_QEMU: Final = (7, 2)
MIN_CONTAINERD: Final = (1, 6)
LAUNCHER: Final = "containerd-shim-kata-v2"
#: Our launcher's first words; Kata's own shim has the same file name.
_OURS: Final = f"{LAUNCHER} (kata-shimd) "
_MANIFEST: Final = "manifest.json"
_NUMBERS: Final = re.compile(r"(\d+)\.(\d+)")
#: The second line of a script whose interpreter's path is too long for the first.
_EXEC: Final = re.compile(r"""'''exec' (?:"([^"]+)"|(\S+)) """)
_CONFIGURED: Final = "unknown without a configuration"


def qemu(scene: Scene) -> Iterator[Row]:
    """There, new enough, and built with every device of our command line."""
    if scene.config.config is None:
        yield Row("qemu", Verdict.SKIP, _CONFIGURED)
        return
    program = scene.config.config.hypervisor.path
    answer = scene.ask([program, "--version"])
    if answer.status != 0:
        yield Row("qemu", Verdict.FAIL, f"{program}: {answer.said}", "install QEMU (qemu-system-x86), or set path")
        return
    version = version_in(answer.said)
    if version < MIN_QEMU:
        yield Row("qemu", Verdict.FAIL, f"{program}: version {dotted(version)}", f"QEMU {dotted(MIN_QEMU)} or newer")
        return
    missing = _missing_devices(scene, program)
    if missing:
        fix = "install a QEMU that has them; some distributions have them in packages of their own"
        yield Row("qemu", Verdict.FAIL, f"{program} lacks the devices {', '.join(missing)}", fix)
    else:
        yield Row("qemu", Verdict.PASS, f"{program}, version {dotted(version)}, with all devices")


def _missing_devices(scene: Scene, program: Path) -> list[str]:
    listed = set(re.findall(r'name "([^"]+)"', scene.ask([program, "-machine", "none", "-device", "help"]).said))
    return [device for device in scene.devices if device not in listed]


def virtiofsd(scene: Scene) -> Iterator[Row]:
    if scene.config.config is None:
        yield Row("virtiofsd", Verdict.SKIP, _CONFIGURED)
        return
    try:
        program = find_virtiofsd(scene.config.config)
    except NotFound as error:
        yield Row("virtiofsd", Verdict.FAIL, f"{error.obj}: {error.cause}", error.hint)
        return
    answer = scene.ask([program, "--version"])
    if answer.status != 0:
        yield Row("virtiofsd", Verdict.FAIL, f"{program}: {answer.said}", "install virtiofsd, or set virtio_fs_daemon")
    else:
        yield Row("virtiofsd", Verdict.PASS, f"{program}, the {scene.virtiofsd(answer.said)} one")


def guest(scene: Scene) -> Iterator[Row]:
    """Every file of the guest: there, and for one that we built, as it was built."""
    if scene.config.config is None:
        yield Row("guest", Verdict.SKIP, _CONFIGURED)
        return
    for name, path in _guest_files(scene.config.config.hypervisor):
        yield _guest_row(name, path)


def _guest_files(hypervisor: HypervisorConfig) -> Iterator[tuple[str, Path]]:
    for name, path in (("kernel", hypervisor.kernel), ("initrd", hypervisor.initrd), ("image", hypervisor.image)):
        if path is not None:
            yield f"guest-{name}", path


def _guest_row(name: str, path: Path) -> Row:
    """``current`` is followed once: a build may make another guest the current one at any time."""
    build = "kata-shimd guest build, or set kernel and image"
    real = path.resolve()
    try:
        with real.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return Row(name, Verdict.FAIL, f"{path}: {error.strerror}", build)
    known = _record(real.parent).get(real.name)
    if known is None:
        return Row(name, Verdict.PASS, f"{path}, readable; nothing says what it should be")
    if known != digest:
        return Row(name, Verdict.FAIL, f"{path}: not what {_MANIFEST} says", "kata-shimd guest build --force")
    return Row(name, Verdict.PASS, f"{path}, as {_MANIFEST} says")


def _record(directory: Path) -> dict[str, Any]:
    """SHA-256 by file name, of a guest that we built."""
    try:
        outputs = json.loads((directory / _MANIFEST).read_text())["outputs"]
        return {name: output["sha256"] for name, output in outputs.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def containerd(scene: Scene) -> Iterator[Row]:
    program = shutil.which("containerd", path=search_path(scene))
    if program is None:
        fix = "install containerd; k3s and RKE2 bring their own, which this check does not know"
        yield Row("containerd", Verdict.FAIL, "not in PATH", fix)
        return
    answer = scene.ask([program, "--version"])
    version = version_in(answer.said)
    if answer.status != 0 or version < MIN_CONTAINERD:
        fix = f"containerd {dotted(MIN_CONTAINERD)} or newer"
        yield Row("containerd", Verdict.FAIL, f"{program}: {answer.said.strip()}", fix)
    else:
        runs = f"runs, pid {pid}" if (pid := containerd_pid(scene)) else "does not run now"
        yield Row("containerd", Verdict.PASS, f"{program}, version {dotted(version)}; {runs}")


def runtime(scene: Scene) -> Iterator[Row]:
    """The shim that containerd would find, and that it is this version of ours."""
    found = shutil.which(LAUNCHER, path=search_path(scene))
    if found is None:
        fix = f"link it: ln -s $(dirname $(readlink -f $(which kata-shimd)))/{LAUNCHER} /usr/local/bin/"
        yield Row("runtime", Verdict.FAIL, f"{LAUNCHER} is not in containerd's PATH", fix)
        yield Row("launcher", Verdict.SKIP, "there is none")
        return
    answer = scene.ask([found, "-v"])
    yield _runtime_row(scene, found, answer.status, answer.said.strip())
    yield _launcher_row(scene, Path(found).resolve())


def _runtime_row(scene: Scene, found: str, status: int | None, said: str) -> Row:
    if status != 0:
        return Row("runtime", Verdict.FAIL, f"{found}: {said}", "install the package again")
    if not said.startswith(_OURS):
        return Row("runtime", Verdict.FAIL, f"{found} is another shim: {said}", "put ours before it in PATH")
    version = said.removeprefix(_OURS).split()[0]
    if version != scene.version:
        fix = "let both come from one installation"
        return Row("runtime", Verdict.FAIL, f"{found} is version {version}, kata-shimd is {scene.version}", fix)
    return Row("runtime", Verdict.PASS, f"{found}, version {version}")


def _launcher_row(scene: Scene, launcher: Path) -> Row:
    """Whether the launcher finds a Python, by its own rule, that has our package."""
    python = launcher.with_name("python3")
    if not python.exists():
        python = Path(_interpreter(launcher.with_name("kata-shimd")))
    answer = scene.ask([python, "-I", "-c", "import kata_shimd.daemon"]) if python.is_absolute() else None
    if answer is None:
        fix = "install the package kata-shimd, and link to its launcher rather than copying it"
        return Row("launcher", Verdict.FAIL, f"neither python3 nor kata-shimd lies beside {launcher}", fix)
    if answer.status != 0:
        return Row("launcher", Verdict.FAIL, f"{python}: {answer.said.strip()}", "install the package kata-shimd again")
    return Row("launcher", Verdict.PASS, f"starts daemons with {python}")


def _interpreter(script: Path) -> str:
    """Whom a script names: in its first line, or, where that has no room, in the line that makes sh execute it."""
    try:
        text = os.fsdecode(script.read_bytes()[:4096])
    except OSError:
        return ""
    first, _, rest = text.partition("\n")
    if first.startswith("#!/bin/sh"):
        found = _EXEC.match(rest)
        return (found[1] or found[2]) if found else ""
    return next(iter(first.removeprefix("#!").split()), "") if first.startswith("#!") else ""


def search_path(scene: Scene) -> str:
    """PATH of a containerd that runs, which is the one that counts; else ours."""
    if pid := containerd_pid(scene):
        try:
            words = (scene.proc / str(pid) / "environ").read_bytes().split(b"\0")
        except OSError:
            return scene.path
        return next((os.fsdecode(word[5:]) for word in words if word.startswith(b"PATH=")), scene.path)
    return scene.path


def version_in(said: str) -> tuple[int, int]:
    found = _NUMBERS.search(said)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
