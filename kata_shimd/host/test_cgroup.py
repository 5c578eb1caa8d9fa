"""Where the pod's control group lies. That it is made and joined is shown on a host, by `integration/cri/test_cgroup.py`."""

from pathlib import Path

import pytest

from kata_shimd.errors import InvalidArgument
from kata_shimd.host import cgroup


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("/k8s.io/4f1c", "k8s.io/kata_4f1c"),
        ("/kubepods/burstable/pod12-3/4f1c", "kubepods/burstable/pod12-3/kata_4f1c"),
        ("4f1c", "kata_4f1c"),
        ("/a//./b/", "a/kata_b"),
        (
            "kubepods-burstable-pod1_2.slice:cri-containerd:4f1c",
            "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice/kata_cri-containerd-4f1c.scope",
        ),
        ("-.slice:p:n", "kata_p-n.scope"),
    ],
)
def test_its_place(path: str, place: str) -> None:
    assert cgroup.relative(path) == Path(place)


@pytest.mark.parametrize("path", ["", "/", "../a", "/a/../b", "/a/..", "s.slice:p:../../n", "../x.slice:p:n"])
def test_what_is_no_place(path: str) -> None:
    with pytest.raises(InvalidArgument, match=r"linux\.cgroupsPath"):
        cgroup.relative(path)


TMPFS = "30 23 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro,mode=755\n"
V1 = "32 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
NAMED = "33 30 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n"
BESIDE = "31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n"
V2 = "31 23 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n"


@pytest.mark.parametrize(
    ("mounts", "tops"),
    [
        (V2, ["/sys/fs/cgroup"]),
        (TMPFS + V1 + NAMED, ["/sys/fs/cgroup/cpu,cpuacct"]),
        (TMPFS + V1 + BESIDE + NAMED, ["/sys/fs/cgroup/cpu,cpuacct"]),
        (TMPFS, []),
    ],
    ids=["v2", "v1", "hybrid", "none"],
)
def test_the_hierarchies(mounts: str, tops: list[str]) -> None:
    assert list(cgroup.hierarchies(mounts)) == list(map(Path, tops))


IN_CONTAINER = "32 30 0:28 /docker/1 /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"


@pytest.mark.parametrize(
    ("mounts", "own", "groups"),
    [
        (V2, "0::/system.slice/containerd.service\n", ["/sys/fs/cgroup/system.slice/containerd.service"]),
        (V2, "0::/\n", ["/sys/fs/cgroup"]),
        (TMPFS + V1 + NAMED, "2:name=systemd:/x\n1:cpuacct,cpu:/a:b\n", ["/sys/fs/cgroup/cpu,cpuacct/a:b"]),
        (TMPFS + V1 + BESIDE, "1:cpu,cpuacct:/a\n0::/b\n", ["/sys/fs/cgroup/cpu,cpuacct/a"]),
        (TMPFS + IN_CONTAINER, "1:cpu,cpuacct:/docker/1/a\n", ["/sys/fs/cgroup/cpu,cpuacct/a"]),
        (TMPFS + IN_CONTAINER, "1:cpu,cpuacct:/elsewhere\n", []),
        (TMPFS, "0::/\n", []),
    ],
)
def test_where_a_process_is(mounts: str, own: str, groups: list[str]) -> None:
    assert list(cgroup._current(mounts, own)) == list(map(Path, groups))


def test_groups_above_that_have_no_processors_yet_get_some(tmp_path: Path) -> None:
    """Not those that have: `mems` of the lower one is somebody's choice."""
    for group, cpus, mems in (("", "0-3\n", "0-1\n"), ("pods", "\n", "\n"), ("pods/one", "\n", "1\n")):
        (tmp_path / group).mkdir(exist_ok=True)
        (tmp_path / group / "cpuset.cpus").write_text(cpus)
        (tmp_path / group / "cpuset.mems").write_text(mems)
    cgroup._make_above(tmp_path / "pods/one")
    files = [tmp_path / group / name for group in ("pods", "pods/one") for name in ("cpuset.cpus", "cpuset.mems")]
    assert [file.read_text() for file in files] == ["0-3\n", "0-1\n", "0-3\n", "1\n"]
