"""The launcher, the daemon and the undo die right after each ledger record; a following `delete` leaves nothing.

Records are counted by the programs themselves (``KATA_SHIMD_DIE_AT``), so the loops go on until a program has survived: a record
that is added later has its kill point at once. containerd is not between us and the launcher, except where a container is made.
"""

import secrets
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import pytest

from integration.conftest import PREFIX
from integration.harness import image, leaks, process
from integration.harness.containerd import Containerd
from integration.harness.ctr import Ctr
from integration.harness.launcher import Launcher, await_settled, booted, recorded
from integration.harness.leaks import Scene
from integration.harness.pods import BOOTED, CLONED, Pod, make_template
from integration.harness.process import Process
from integration.harness.scale import SCALE
from integration.harness.spec import Spec
from integration.harness.waiting import eventually

pytestmark = pytest.mark.vm

#: No program writes so many records; the bound ends a loop that a bug would make endless.
MANY: Final = 60
GONE: Final = 10.0 * SCALE


@pytest.fixture
def booting(tmp_path: Path) -> Path:
    """A configuration without templates: what is recorded here are boots."""
    path = tmp_path / "booting.toml"
    path.write_text(BOOTED)
    return path


@pytest.fixture
def launcher(ctr: Ctr, booting: Path) -> Launcher:
    return Launcher(ctr.containerd, ctr.namespace, booting)


@pytest.fixture
def bundle(launcher: Launcher, ctr: Ctr, name: str, rootfs_dir: Path) -> Iterator[Path]:
    path = launcher.bundle(name, Spec.default(ctr, rootfs_dir, "sleep", "86400").content)
    yield path
    (path / "address").unlink(missing_ok=True)


def clean(scene: Scene, before: leaks.Snapshot, point: str) -> None:
    assert leaks.report(leaks.await_no_leak(scene, before, within=GONE)) == "", f"killed at {point}"


def machine_recorded(launcher: Launcher, name: str) -> bool:
    """The boot has come as far as it makes things on the host."""
    return recorded(launcher.pod(name), "qemu") is not None


def test_the_launcher_killed_at_every_record(scene: Scene, launcher: Launcher, name: str, bundle: Path) -> None:
    before = leaks.snapshot(scene)
    for point in range(1, MANY):
        started = launcher.start(name, bundle, KATA_SHIMD_DIE_AT=f"launcher:{point}")
        assert launcher.delete(name, bundle).returncode == 0, point
        clean(scene, before, f"launcher:{point}")
        if started.returncode == 0:
            break
        assert started.returncode == -9, started.stderr
    assert 1 < point < MANY - 1


def test_the_launcher_killed_while_it_waits_for_the_daemon(
    scene: Scene, launcher: Launcher, name: str, bundle: Path
) -> None:
    """As containerd does whose client has given up. Nobody learns of the pod, and no `delete` comes: it goes by itself."""
    before = leaks.snapshot(scene)
    starting = launcher.spawn_start(name, bundle)
    daemon = eventually("the daemon on record", lambda: recorded(launcher.pod(name), "daemon"), within=GONE)
    daemon.signal(signal.SIGSTOP)
    starting.kill()
    process.finish(starting)
    daemon.signal(signal.SIGCONT)
    clean(scene, before, "the wait")


def test_the_machine_ends_with_a_daemon_that_nobody_watches(
    scene: Scene, launcher: Launcher, name: str, bundle: Path
) -> None:
    """containerd that had not yet connected when the daemon died runs no `delete`: nothing of the pod goes on running."""
    before = leaks.snapshot(scene)
    assert launcher.start(name, bundle).returncode == 0
    pod = launcher.pod(name)
    assert await_settled(pod, until=lambda: booted(pod))
    machine = [recorded(pod, what) for what in ("qemu", "virtiofsd")]
    _daemon_of(pod).kill()
    for left in machine:
        assert left is not None
        eventually(f"the end of {left.command()}", lambda left=left: not left.alive(), within=GONE)
    assert launcher.delete(name, bundle).returncode == 0
    clean(scene, before, "daemon")


def test_the_daemon_killed_at_every_record_of_the_boot(
    scene: Scene, launcher: Launcher, name: str, bundle: Path
) -> None:
    """And of its end: a daemon that has come through the boot is given up by `delete`, and ends the pod by itself."""
    assert 3 < _killed_along(scene, launcher, name, bundle, range(1, MANY)) < MANY - 1


def test_the_daemon_killed_along_a_clone(
    scene: Scene, ctr: Ctr, name: str, bundle: Path, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    """At every record in the long form, at some of them here."""
    config = tmp_path / "cloning.toml"
    config.write_text(CLONED)
    make_template(ctr.containerd.host, PREFIX / "bin/kata-shimd", config)
    cloning = Launcher(ctr.containerd, ctr.namespace, config)
    points = range(1, MANY) if pytestconfig.getoption("--long") else range(secrets.randbelow(6) + 4, MANY, 6)
    assert 3 < _killed_along(scene, cloning, name, bundle, points, cloned=True) < MANY - 1


def _killed_along(
    scene: Scene, launcher: Launcher, name: str, bundle: Path, points: Iterable[int], *, cloned: bool = False
) -> int:
    """The daemon of a pod dies at each of these of its records; the first that it has come through."""
    before = leaks.snapshot(scene)
    for point in points:
        launcher.start(name, bundle, KATA_SHIMD_DIE_AT=f"daemon:{point}")
        pod = launcher.pod(name)
        alive = await_settled(pod, until=lambda: booted(launcher.pod(name)))
        assert launcher.delete(name, bundle).returncode == 0, point
        survived = alive and not await_settled(pod, until=lambda: False) and not pod.directory.exists()
        assert launcher.delete(name, bundle).returncode == 0, point
        clean(scene, before, f"daemon:{point}")
        told = [event["event"] for event in pod.journal()]
        _forget(launcher, name)
        if survived:
            assert ("cloned" in told) is cloned, told
            return point
    return MANY


def test_the_undo_of_delete_killed_at_every_record(scene: Scene, launcher: Launcher, name: str, bundle: Path) -> None:
    """No daemon is there; `delete` undoes by itself, dies on the way, and the next `delete` finishes."""
    before = leaks.snapshot(scene)
    for point in range(1, MANY):
        _start_and_kill_daemon(launcher, name, bundle)
        done = launcher.delete(name, bundle, KATA_SHIMD_DIE_AT=f"undo:{point}")
        assert launcher.delete(name, bundle).returncode == 0, point
        clean(scene, before, f"undo:{point}")
        if done.returncode == 0:
            break
        assert done.returncode == -9, done.stderr
    assert 1 < point < MANY - 1


def test_the_undo_of_the_daemon_killed_at_every_record(
    scene: Scene, launcher: Launcher, name: str, bundle: Path
) -> None:
    """The daemon is told to end the pod, its undo dies on the way; `delete` finishes."""
    before = leaks.snapshot(scene)
    for point in range(1, MANY):
        assert launcher.start(name, bundle, KATA_SHIMD_DIE_AT=f"undo:{point}").returncode == 0
        pod = launcher.pod(name)
        assert await_settled(pod, until=lambda: machine_recorded(launcher, name))
        _daemon_of(pod).signal(signal.SIGTERM)
        survived = (
            not await_settled(pod, until=lambda: False, within=GONE) and not launcher.pod(name).directory.exists()
        )
        assert launcher.delete(name, bundle).returncode == 0, point
        clean(scene, before, f"undo:{point}")
        if survived:
            break
    assert 1 < point < MANY - 1


def test_the_daemon_killed_at_every_record_of_a_container(
    scene: Scene, ctr: Ctr, name: str, booting: Path, tmp_path: Path
) -> None:
    """Through a containerd whose launchers have the kill point: Create, Start, exit and Delete of one container."""
    own = Ctr(Containerd(ctr.containerd.host), ctr.namespace, ctr.runtime, image.NAME, booting)
    image.write_image(archive := tmp_path / "image.tar")
    first = _records_of_a_boot(own, archive, name) + 1
    for point in range(first, MANY):
        own.containerd.start(KATA_SHIMD_DIE_AT=f"daemon:{point}")
        before = leaks.snapshot(scene)
        done = own.run(name, "true")
        own.remove(name)
        clean(scene, before, f"daemon:{point}")
        own.containerd.stop()
        if done.code == 0:
            break
    assert first < point < MANY - 1


def _records_of_a_boot(own: Ctr, archive: Path, name: str) -> int:
    """Boot a pod through this containerd; the number of records its daemon has written when the agent answers."""
    own.containerd.start()
    own("image", "import", archive).ok()
    own.start(name, "sleep", "86400")
    pod = Launcher(own.containerd, own.namespace).pod(name)
    lines = (pod.directory / "ledger").read_text().splitlines()
    by_daemon = [line for line in lines if '"scope":"pod"' in line or '"op":"made"' in line]
    own.remove(name)
    own.containerd.stop()
    # The launcher's own five are not counted by the daemon; one fewer is harmless, one more would leave a gap.
    return max(len(by_daemon) - 5, 1)


def _start_and_kill_daemon(launcher: Launcher, name: str, bundle: Path) -> None:
    assert launcher.start(name, bundle).returncode == 0
    pod = launcher.pod(name)
    assert await_settled(pod, until=lambda: machine_recorded(launcher, name))
    _daemon_of(pod).kill()


def _daemon_of(pod: Pod) -> Process:
    daemon = recorded(pod, "daemon")
    assert daemon is not None
    return daemon


def _forget(launcher: Launcher, name: str) -> None:
    """The journal outlives the pod; the next round asks it anew."""
    (launcher.host.run_dir / "journal" / f"{launcher.pod(name).name}.jsonl").unlink(missing_ok=True)
