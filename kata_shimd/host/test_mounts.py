"""Mount options and overlay paths. The mounts themselves are made in integration/vm/test_mounts.py, in a namespace of its own."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_shimd.errors import HostFailed, InvalidArgument
from kata_shimd.host import mounts
from kata_shimd.host.mounts import Flag, Options
from kata_shimd.ledger import NAME, Ledger
from kata_shimd.pod.values import Mount


@pytest.mark.parametrize(
    ("words", "parsed"),
    [
        ((), Options()),
        (("ro", "nosuid"), Options(Flag.RDONLY | Flag.NOSUID)),
        (("ro", "rw"), Options()),
        (("rbind", "rw"), Options(Flag.BIND | Flag.REC)),
        (("rbind", "rprivate", "ro"), Options(Flag.BIND | Flag.REC | Flag.RDONLY, (Flag.PRIVATE | Flag.REC,))),
        (("defaults", "lowerdir=/a:/b", "index=off"), Options(data=("lowerdir=/a:/b", "index=off"))),
        (("noexec", "exec", "size=64k"), Options(data=("size=64k",))),
    ],
)
def test_options(words, parsed):
    assert Options.parse(words) == parsed


@pytest.mark.parametrize("word", ["loop", "X-containerd.mkdir.path=/x"])
def test_what_containerd_would_do_itself_is_refused(word):
    with pytest.raises(InvalidArgument, match=word):
        Options.parse([word])


SNAPSHOTS = "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots"


def test_layers_of_one_snapshotter_become_short():
    lower = ":".join(f"{SNAPSHOTS}/{number}/fs" for number in range(127))
    directory, data = mounts.shortened(
        ("index=off", f"workdir={SNAPSHOTS}/200/work", f"upperdir={SNAPSHOTS}/200/fs", f"lowerdir={lower}")
    )
    assert directory == SNAPSHOTS
    assert data.startswith("index=off,workdir=200/work,upperdir=200/fs,lowerdir=0/fs:1/fs:2/fs")
    assert len(lower) > mounts.MAX_DATA > len(data)


def test_nothing_to_share():
    assert mounts.shortened(("size=1m", "mode=755"))[0] == ""
    assert mounts.shortened(("lowerdir=relative:/absolute",))[0] == ""


PATH = st.lists(st.text("ab.", min_size=1, max_size=5).filter(lambda name: name.strip(".")), min_size=1, max_size=5)


@given(st.lists(PATH, min_size=1, max_size=8))
def test_shortened_paths_name_the_same_directories(paths):
    absolute = ["/" + "/".join(path) for path in paths]
    directory, data = mounts.shortened((f"lowerdir={':'.join(absolute)}",))
    back = [os.path.normpath(Path(directory) / part) for part in data.removeprefix("lowerdir=").split(":")]
    assert back == absolute


@pytest.fixture
def ledger(tmp_path):
    (tmp_path / NAME).touch()
    opened = Ledger(tmp_path)
    yield opened
    opened.close()


def test_a_mount_that_fails_is_recorded_all_the_same(ledger, tmp_path):
    target = tmp_path / "missing"
    with pytest.raises(HostFailed, match=r"mount bind.*/missing: No such file"):
        mounts.mount(ledger, Mount("bind", str(tmp_path), ("rbind",)), target, scope="container/c", needs=(7,))
    (record,) = ledger.state.live.values()
    assert (record.kind, record.scope, record.needs) == ("mount", "container/c", (7,))
    assert record.fields["path"] == str(target)


def test_options_beyond_a_page_that_cannot_be_shortened(ledger, tmp_path):
    layers = ":".join(f"/{number}{'x' * 100}" for number in range(100))
    with pytest.raises(HostFailed, match=r"the kernel takes 4095.*fewer layers"):
        mounts.mount(ledger, Mount("overlay", "overlay", (f"lowerdir={layers}",)), tmp_path)


def test_the_root_is_a_mount_point_and_a_plain_directory_is_none(tmp_path):
    assert mounts.is_mount_point(Path("/proc"))
    assert not mounts.is_mount_point(tmp_path)
    with pytest.raises(HostFailed, match="No such file"):
        mounts.is_mount_point(tmp_path / "missing")
