"""The cases of test_mounts. Run in a private mount namespace: ``python -m integration.vm.mount_cases CASE DIRECTORY``."""

import os
import subprocess
import sys
from pathlib import Path

from integration.vm.site import LAUNCHER
from kata_shimd.errors import HostFailed
from kata_shimd.host import mounts
from kata_shimd.ledger import NAME, Ledger
from kata_shimd.pod.values import Mount


def bind_of_a_directory(ledger, here):
    (here / "source/file").touch()
    mounts.bind(ledger, here / "source", here / "target")
    assert (here / "target/file").exists()
    assert mounts.is_mount_point(here / "target")


def bind_of_a_file(ledger, here):
    (here / "source/file").write_text("text")
    (here / "file").touch()
    mounts.bind(ledger, here / "source/file", here / "file")
    assert (here / "file").read_text() == "text"
    assert mounts.is_mount_point(here / "file")


def readonly_bind_keeps_the_sources_other_flags(ledger, here):
    mounts.mount(ledger, Mount("tmpfs", "tmpfs", ("nosuid", "nodev", "noexec", "size=64k")), here / "source")
    mounts.bind(ledger, here / "source", here / "target", readonly=True)
    assert {"ro", "nosuid", "nodev", "noexec"} <= options(here / "target")
    assert "rw" in options(here / "source")
    refused(lambda: (here / "target/file").touch())


def readonly_bind_is_readonly_wherever_it_is_propagated(ledger, here):
    mounts.bind(ledger, here / "target", here / "target", recursive=False)
    mounts.make_shared(here / "target")
    (here / "target/below").mkdir()
    (here / "copy").mkdir()
    mounts.bind(ledger, here / "target", here / "copy", recursive=False)
    mounts.bind(ledger, here / "source", here / "target/below", readonly=True)
    assert {"ro"} <= options(here / "copy/below")
    refused(lambda: (here / "copy/below/file").touch())


def readonly_reaches_what_is_mounted_below_when_asked(ledger, here):
    (here / "source/below").mkdir()
    mounts.mount(ledger, Mount("tmpfs", "tmpfs"), here / "source/below")
    mounts.bind(ledger, here / "source", here / "target", readonly=True)
    (here / "target/below/file").touch()
    (here / "all").mkdir()
    mounts.mount(ledger, Mount("bind", str(here / "source"), ("rbind", "ro", "rro")), here / "all")
    refused(lambda: (here / "all/below/other").touch())
    (here / "source/below/other").touch()


def flags_of_a_bind(ledger, here):
    mounts.mount(ledger, Mount("tmpfs", "tmpfs", ("noatime",)), here / "source")
    words = ("bind", "nosuid", "noexec", "nodiratime", "relatime")
    mounts.mount(ledger, Mount("bind", str(here / "source"), words), here / "target")
    assert {"rw", "nosuid", "noexec", "nodiratime", "relatime"} <= options(here / "target")
    assert "noatime" not in options(here / "target")


def plain_bind_leaves_out_what_is_mounted_below(ledger, here):
    (here / "source/below").mkdir()
    mounts.mount(ledger, Mount("tmpfs", "tmpfs"), here / "source/below")
    (here / "source/below/file").touch()
    mounts.bind(ledger, here / "source", here / "target", recursive=False)
    assert not (here / "target/below/file").exists()


def filesystem_options_reach_the_filesystem(ledger, here):
    mounts.mount(ledger, Mount("tmpfs", "tmpfs", ("mode=710", "size=64k", "nosuid")), here / "target")
    assert (here / "target").stat().st_mode & 0o777 == 0o710
    assert os.statvfs(here / "target").f_blocks * os.statvfs(here / "target").f_frsize == 64 << 10


def overlay_of_many_layers(ledger, here):
    """127 layers at containerd's paths are more than the one page that mount(2) reads."""
    snapshots = here / "io.containerd.snapshotter.v1.overlayfs/snapshots"
    for number in range(127):
        layer = snapshots / str(number) / "fs"
        layer.mkdir(parents=True)
        (layer / f"from-{number}").touch()
    for name in ("fs", "work"):
        (snapshots / "200" / name).mkdir(parents=True)
    lower = ":".join(str(snapshots / str(number) / "fs") for number in range(127))
    assert len(lower) > mounts.MAX_DATA
    words = ("index=off", f"workdir={snapshots}/200/work", f"upperdir={snapshots}/200/fs", f"lowerdir={lower}")
    before = Path.cwd()
    mounts.mount(ledger, Mount("overlay", "overlay", words), here / "target")
    assert Path.cwd() == before
    assert len(list((here / "target").iterdir())) == 127
    (here / "target/new").touch()
    assert (snapshots / "200/fs/new").exists()


def propagation_options(ledger, here):
    mounts.mount(ledger, Mount("bind", str(here / "source"), ("rbind", "rshared")), here / "target")
    assert "shared:" in entry(here / "target")
    mounts.make_private(here / "target")
    assert "shared:" not in entry(here / "target")


def failure_says_what_and_where(ledger, here):
    try:
        mounts.mount(ledger, Mount("ext4", str(here / "nowhere"), ("ro",)), here / "target")
    except HostFailed as error:
        assert str(error) == f"mount ext4: {here}/nowhere at {here}/target: No such file or directory"
    else:
        raise AssertionError("it did not fail")


def undo_takes_several_at_one_place(ledger, here):
    for _ in range(3):
        mounts.bind(ledger, here / "source", here / "target")
    subprocess.run([LAUNCHER, "undo", ledger.pod_dir], check=True)
    assert not mounts.is_mount_point(here / "target")


def entry(path):
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return next(line for line in reversed(lines) if line.split()[4] == str(path))


def options(path):
    return set(entry(path).split()[5].split(","))


def refused(work):
    try:
        work()
    except OSError:
        return
    raise AssertionError("it was allowed")


CASES = {
    case.__name__: case
    for case in (
        bind_of_a_directory,
        bind_of_a_file,
        readonly_bind_keeps_the_sources_other_flags,
        readonly_bind_is_readonly_wherever_it_is_propagated,
        readonly_reaches_what_is_mounted_below_when_asked,
        flags_of_a_bind,
        plain_bind_leaves_out_what_is_mounted_below,
        filesystem_options_reach_the_filesystem,
        overlay_of_many_layers,
        propagation_options,
        failure_says_what_and_where,
        undo_takes_several_at_one_place,
    )
}


def main(case, directory):
    here = Path(directory)
    # A file system of its own: overlay upon overlay, as where these tests run in a container, is not always possible.
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", here], check=True)
    for name in ("source", "target", "pod"):
        (here / name).mkdir(mode=0o700)
    (here / "pod" / NAME).touch(mode=0o600)
    (here / "pod" / NAME).write_text('{"op":"open","v":1,"pod":"p","namespace":"n","id":"i","address":"a"}\n')
    CASES[case](Ledger(here / "pod"), here)


if __name__ == "__main__":
    main(*sys.argv[1:])
