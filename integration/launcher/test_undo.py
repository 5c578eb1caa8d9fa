"""`undo`: each kind of object on the host, for real; in order, twice, interrupted, and led astray."""

import os
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from integration.launcher.conftest import LAUNCHER, TIMEOUT, Pod


class TestProcess:
    def test_it_is_killed(self, pod: Pod, sleeper):
        child = sleeper()
        pod.process(1, child.pid)
        pod.undo_all()
        assert child.wait(5) == -signal.SIGKILL

    def test_it_is_asked_first(self, pod: Pod, sleeper):
        child = sleeper()
        pod.process(1, child.pid, polite=True, grace_ms=5000)
        pod.undo_all()
        assert child.wait(5) == -signal.SIGTERM

    def test_one_that_will_not_listen(self, pod: Pod, sleeper):
        child = sleeper("sh", "-c", "trap '' TERM; echo up; while :; do sleep 1000; done")
        pod.process(1, child.pid, polite=True, grace_ms=100)
        pod.undo_all()
        assert child.wait(5) == -signal.SIGKILL or child.returncode == -signal.SIGTERM

    def test_the_same_number_is_not_the_same_process(self, pod: Pod, sleeper):
        child = sleeper()
        pod.plan(1, "process", what="qemu")
        pod.made(1, pid=child.pid, start=1)
        pod.undo_all()
        assert child.poll() is None

    def test_one_that_was_never_made(self, pod: Pod):
        pod.plan(1, "process", what="qemu")
        pod.undo_all()

    def test_the_daemon_ends_first(self, pod: Pod, sleeper):
        """Were it to live, it could make more. This one writes a record the moment its VM ends."""
        vm = sleeper()
        script = f"while kill -0 {vm.pid} 2>/dev/null; do sleep 0.01; done; touch {pod.path.parent}/too-late"
        daemon = sleeper("sh", "-c", script)
        pod.process(1, daemon.pid, what="daemon")
        pod.process(2, vm.pid)
        pod.undo_all()
        assert daemon.wait(5) == -signal.SIGKILL
        assert not (pod.path.parent / "too-late").exists()

    def test_who_asks_is_spared(self, pod: Pod):
        """A daemon that tears its own pod down (here: a shell that runs undo) lives on, and its record with it."""
        script = 'read go; "$0" undo "$1"; echo "undone with $?"'
        argv = ["sh", "-c", script, str(LAUNCHER), str(pod.path)]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as daemon:
            pod.process(1, daemon.pid, what="daemon")
            stdout, _ = daemon.communicate("go\n", timeout=TIMEOUT)
        assert stdout == "undone with 0\n"
        assert not pod.path.exists()

    def test_a_daemon_that_becomes_the_undo(self, pod: Pod):
        """The last act of a daemon may be to exec it: then the recorded pid is undo's own."""
        argv = ["sh", "-c", 'read go; exec "$0" undo "$1"', str(LAUNCHER), str(pod.path)]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, text=True) as daemon:
            pod.process(1, daemon.pid, what="daemon")
            daemon.communicate("go\n", timeout=TIMEOUT)
        assert daemon.returncode == 0
        assert not pod.path.exists()

    def test_who_asks_stays_in_the_list_when_something_is_left(self, pod: Pod):
        argv = ["sh", "-c", 'read go; "$0" undo "$1" 2>/dev/null; echo "undone with $?"', str(LAUNCHER), str(pod.path)]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as daemon:
            pod.process(1, daemon.pid, what="daemon")
            pod.plan(2, "wormhole")
            pod.plan(3, "file", path="/no/such/file")
            stdout, _ = daemon.communicate("go\n", timeout=TIMEOUT)
        assert (stdout, pod.undone()) == ("undone with 1\n", [3])


class TestMount:
    def test_stacked(self, pod: Pod, tmpfs, tmp_path: Path):
        where = tmpfs(tmpfs(tmp_path / "m"))
        pod.plan(1, "mount", path=str(where))
        pod.undo_all()
        assert not where.is_mount()

    @pytest.mark.parametrize("path", ["/no/such/place", "/usr/bin"])
    def test_not_a_mount_point(self, pod: Pod, path: str):
        pod.plan(1, "mount", path=path)
        pod.undo_all()

    def test_busy(self, pod: Pod, tmpfs, tmp_path: Path):
        where = tmpfs(tmp_path / "m")
        with (where / "open").open("w"):
            pod.plan(1, "mount", path=str(where))
            pod.undo_all()
            assert not where.is_mount()

    def test_a_link_is_not_followed(self, pod: Pod, tmpfs, tmp_path: Path):
        where = tmpfs(tmp_path / "m")
        (tmp_path / "link").symlink_to(where)
        pod.plan(1, "mount", path=str(tmp_path / "link"))
        pod.undo_all()
        assert where.is_mount()

    def test_below_the_pod_no_link_is_followed_at_all(self, pod: Pod, tmpfs, tmp_path: Path):
        """A guest can make any directory it shares a link."""
        where = tmpfs(tmp_path / "m")
        (pod.path / "shared").symlink_to(tmp_path)
        pod.plan(1, "mount", path=str(pod.path / "shared/m"))
        [left] = pod.left()
        assert "record 1: mount" in left and where.is_mount()


class TestDir:
    def test_a_tree(self, pod: Pod, tmp_path: Path):
        tree = tmp_path / "tree"
        (tree / "a/b").mkdir(parents=True)
        (tree / "a/file").write_text("x")
        (tree / "a/dangling").symlink_to("/no/such")
        os.mkfifo(tree / "a/b/fifo")
        pod.plan(1, "dir", path=str(tree))
        pod.undo_all()
        assert not tree.exists()

    def test_a_link_is_removed_and_not_followed(self, pod: Pod, tmp_path: Path):
        (tmp_path / "precious").mkdir()
        (tmp_path / "precious/file").touch()
        (tmp_path / "tree").mkdir()
        (tmp_path / "tree/link").symlink_to(tmp_path / "precious")
        pod.plan(1, "dir", path=str(tmp_path / "tree"))
        pod.undo_all()
        assert (tmp_path / "precious/file").exists() and not (tmp_path / "tree").exists()

    def test_a_link_in_its_place_is_left(self, pod: Pod, tmp_path: Path):
        (tmp_path / "precious").mkdir()
        (tmp_path / "tree").symlink_to(tmp_path / "precious")
        pod.plan(1, "dir", path=str(tmp_path / "tree"))
        [left] = pod.left()
        assert left.endswith("tree is not a directory") and (tmp_path / "precious").exists()

    def test_a_mount_is_never_crossed(self, pod: Pod, tmpfs, tmp_path: Path):
        (tmp_path / "tree").mkdir()
        where = tmpfs(tmp_path / "tree/m")
        (where / "precious").touch()
        pod.plan(1, "dir", path=str(tmp_path / "tree"))
        [left] = pod.left()
        assert left.endswith("m is a mount point") and (where / "precious").exists()

    def test_nor_a_bind_mount_of_the_same_file_system(self, pod: Pod, tmp_path: Path):
        (tmp_path / "precious").mkdir()
        (tmp_path / "precious/file").touch()
        where = tmp_path / "tree"
        where.mkdir()
        subprocess.run(["mount", "--bind", tmp_path / "precious", where], check=True)
        try:
            pod.plan(1, "dir", path=str(where))
            [left] = pod.left()
        finally:
            subprocess.run(["umount", "-l", where], check=True)
        assert left.endswith("tree is a mount point") and (tmp_path / "precious/file").exists()
        pod.undo_all()

    def test_deeper_than_fds_and_paths_reach(self, pod: Pod, tmp_path: Path):
        tree = tmp_path / "tree"
        tree.mkdir()
        home = os.open(".", os.O_RDONLY)
        os.chdir(tree)
        for n in range(3000):
            Path("file").touch()
            Path(f"d{n % 7}").mkdir()
            os.chdir(f"d{n % 7}")
        os.fchdir(home)
        os.close(home)
        pod.plan(1, "dir", path=str(tree))
        pod.undo_all()
        assert not tree.exists()


class TestFile:
    def test_a_file_and_a_socket(self, pod: Pod, tmp_path: Path):
        (tmp_path / "file").touch()
        pod.plan(1, "file", path=str(tmp_path / "file"))
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(tmp_path / "socket"))
            pod.plan(2, "file", path=str(tmp_path / "socket"))
            pod.undo_all()
        assert {path.name for path in tmp_path.iterdir()} == set()

    def test_a_directory_is_not_a_file(self, pod: Pod, tmp_path: Path):
        (tmp_path / "dir").mkdir()
        pod.plan(1, "file", path=str(tmp_path / "dir"))
        [left] = pod.left()
        assert left.startswith(f"undo: {pod.path}: record 1: file {tmp_path}/dir: unlink: ")


class TestCgroup:
    def test_with_children_and_processes(self, pod: Pod, cgroups: list[Path], sleeper):
        for n, group in enumerate(cgroups, 1):
            child, grandchild = group / "child", group / "child/grandchild"
            grandchild.mkdir(parents=True)
            for place in (child, grandchild):
                (place / "cgroup.procs").write_text(str(sleeper().pid))
            pod.plan(n, "cgroup", path=str(group))
        pod.undo_all()
        assert [group for group in cgroups if group.exists()] == []

    def test_frozen(self, pod: Pod, cgroups: list[Path], sleeper):
        [freezer] = [group for group in cgroups if (group / "freezer.state").exists()]
        child = sleeper()
        (freezer / "cgroup.procs").write_text(str(child.pid))
        (freezer / "freezer.state").write_text("FROZEN")
        pod.plan(1, "cgroup", path=str(freezer))
        pod.undo_all()
        assert child.wait(5) == -signal.SIGKILL

    def test_who_asks_steps_out(self, pod: Pod, cgroups: list[Path]):
        script = 'for procs; do echo 0 >"$procs"; done; "$0" undo "$POD"; echo "undone with $?"'
        for n, group in enumerate(cgroups, 1):
            pod.plan(n, "cgroup", path=str(group))
        done = subprocess.run(
            ["sh", "-c", script, LAUNCHER, *(group / "cgroup.procs" for group in cgroups)],
            capture_output=True, text=True, timeout=TIMEOUT, check=False, env={**os.environ, "POD": str(pod.path)},
        )  # fmt: skip
        assert (done.stdout, done.stderr) == ("undone with 0\n", "")
        assert [group for group in cgroups if group.exists()] == []

    def test_a_directory_that_is_no_cgroup(self, pod: Pod, tmp_path: Path):
        (tmp_path / "dir").mkdir()
        pod.plan(1, "cgroup", path=str(tmp_path / "dir"))
        [left] = pod.left()
        assert left.endswith("not a cgroup") and (tmp_path / "dir").exists()


class TestOrder:
    def test_what_is_needed_by_something_left_stays(self, pod: Pod, tmp_path: Path):
        (tmp_path / "tree").mkdir()
        pod.plan(1, "dir", path=str(tmp_path / "tree"))
        pod.plan(2, "wormhole", needs=[1])
        pod.plan(3, "file", path="/no/such/file", scope="container/c")
        left = pod.left()
        assert [line.split(": ")[2] for line in left] == ["record 2", "record 1"]
        assert (tmp_path / "tree").exists() and pod.undone() == [3]

    def test_one_scope(self, pod: Pod, tmp_path: Path):
        for n, scope in enumerate(("pod", "container/a", "container/ab"), 1):
            (tmp_path / str(n)).touch()
            pod.plan(n, "file", path=str(tmp_path / str(n)), scope=scope)
        done = pod.undo("container/a")
        assert (done.returncode, done.stderr, pod.undone()) == (0, "", [2])
        assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "3", "pod"]

    @pytest.mark.parametrize("n", [1, 2, 3])
    def test_killed_at_every_record_and_run_again(self, pod: Pod, tmp_path: Path, tmpfs, sleeper, n: int):
        child = sleeper()
        tree = tmp_path / "tree"
        tree.mkdir()
        pod.plan(1, "dir", path=str(tree))
        tmpfs(tree / "m")
        pod.plan(2, "mount", path=str(tree / "m"), needs=[1])
        pod.process(3, child.pid)
        assert pod.undo(KATA_SHIMD_DIE_AT=f"undo:{n}").returncode == -signal.SIGKILL
        assert pod.undone() == [3, 2, 1][:n]
        pod.undo_all()
        assert (tree.exists(), child.wait(5)) == (False, -signal.SIGKILL)


class TestTrust:
    """Whoever can write the ledger can have root remove things."""

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda pod: (pod / "ledger").chmod(0o644),
            lambda pod: os.chown(pod / "ledger", 1, 1),
            lambda pod: pod.chmod(0o755),
            lambda pod: os.chown(pod, 1, 1),
        ],
    )
    def test_a_ledger_others_could_have_written(self, pod: Pod, tmp_path: Path, spoil: Callable[[Path], None]):
        (tmp_path / "precious").touch()
        pod.plan(1, "file", path=str(tmp_path / "precious"))
        spoil(pod.path)
        done = pod.undo()
        assert done.returncode == 1 and done.stderr.count("\n") == 1
        assert (tmp_path / "precious").exists()

    def test_a_link_in_place_of_the_ledger(self, pod: Pod, tmp_path: Path):
        (pod.path / "ledger").rename(tmp_path / "real")
        (pod.path / "ledger").symlink_to(tmp_path / "real")
        assert pod.undo().returncode == 1


class TestDamage:
    def test_a_torn_last_line(self, pod: Pod, tmp_path: Path):
        (tmp_path / "made").touch()
        pod.plan(1, "file", path=str(tmp_path / "made"))
        with (pod.path / "ledger").open("a") as ledger:
            ledger.write('{"op":"plan","n":2,"kind":"file","path":"/etc/passwd"')
        done = pod.undo("container/none")
        assert (done.returncode, done.stderr) == (0, "")
        pod.undo_all()
        assert not (tmp_path / "made").exists() and Path("/etc/passwd").exists()

    def test_no_ledger(self, pod: Pod):
        """Made, and its maker died before the ledger: nothing can be in it."""
        (pod.path / "ledger").unlink()
        pod.undo_all()

    def test_a_mount_nobody_wrote_down(self, pod: Pod, tmpfs):
        """The list of what is left stays as long as anything is."""
        tmpfs(pod.path / "m")
        [left] = pod.left()
        assert left.endswith("m is a mount point") and (pod.path / "ledger").exists()
