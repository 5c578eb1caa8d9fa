"""What goes into the root image: libraries, links inside the guest's root, fixed modes."""

from pathlib import PurePosixPath

import pytest

from kata_shimd.errors import HostFailed, NotFound
from kata_shimd.image.elf_testing import program
from kata_shimd.image.manifest import RootfsPart
from kata_shimd.image.rootfs import PackageTree, Staging, merged, with_libraries

LOADER = "/lib64/ld-linux-x86-64.so.2"
LIB = "usr/lib/x86_64-linux-gnu"


@pytest.fixture
def packages(tmp_path):
    """A package that has merged its paths, and libc6, which has not."""
    files = {
        "usr/bin/crun": program(LOADER, ["libcap.so.2", "libc.so.6"]),
        f"{LIB}/libcap.so.2.66": program("", ["libc.so.6"]),
        "lib/x86_64-linux-gnu/libc.so.6": program("", []),
        "lib/x86_64-linux-gnu/ld-2.36.so": program("", []),
        "bin/busybox": program("", []),
    }
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    (tmp_path / LIB / "libcap.so.2").symlink_to("libcap.so.2.66")
    (tmp_path / "lib64").mkdir()
    (tmp_path / "lib64/ld-linux-x86-64.so.2").symlink_to("/lib/x86_64-linux-gnu/ld-2.36.so")
    return PackageTree(tmp_path)


def test_programs_come_with_their_libraries_and_linker(packages):
    chosen = with_libraries([PurePosixPath("usr/bin/crun"), PurePosixPath("usr/bin/busybox")], packages)
    assert {str(path): source.name for path, source in chosen.items()} == {
        "usr/bin/crun": "crun",
        "usr/bin/busybox": "busybox",
        f"{LIB}/libcap.so.2": "libcap.so.2.66",
        f"{LIB}/libc.so.6": "libc.so.6",
        "usr/lib64/ld-linux-x86-64.so.2": "ld-2.36.so",
    }


def test_a_library_nobody_has_is_named_with_who_wants_it(packages):
    (packages.root / f"{LIB}/libcap.so.2").unlink()
    with pytest.raises(NotFound, match=r"find library: libcap\.so\.2: usr/bin/crun needs it"):
        with_libraries([PurePosixPath("usr/bin/crun")], packages)


def test_a_link_cannot_leave_the_guests_root(packages):
    (packages.root / "usr/bin/evil").symlink_to("../../../../../../../bin/busybox")
    assert packages.get(PurePosixPath("usr/bin/evil")) == packages.root / "bin/busybox"
    (packages.root / "usr/bin/passwd").symlink_to("/etc/passwd")
    assert packages.find(PurePosixPath("usr/bin/passwd")) is None


def test_a_circle_of_links_is_an_error(packages):
    (packages.root / "usr/bin/a").symlink_to("b")
    (packages.root / "usr/bin/b").symlink_to("a")
    with pytest.raises(HostFailed, match="too many levels"):
        packages.find(PurePosixPath("usr/bin/a"))


@pytest.mark.parametrize(
    ("path", "expected"),
    [("bin/sh", "usr/bin/sh"), ("/lib64/ld.so", "usr/lib64/ld.so"), ("usr/bin/sh", "usr/bin/sh"), ("etc/x", "etc/x")],
)
def test_merged(path, expected):
    assert merged(PurePosixPath(path)) == PurePosixPath(expected)


def test_skeleton_has_directories_links_text_and_modes_whatever_the_umask(tmp_path):
    part = RootfsPart(
        packages=(),
        files=(),
        modules=(),
        directories=("usr/bin", "tmp"),
        modes={"tmp": 0o1777},
        links={"bin": "usr/bin"},
        text={"etc/resolv.conf": ""},
    )
    tmp_path.chmod(0o700)
    staging = Staging(tmp_path)
    staging.skeleton(part)
    (tmp_path / "usr").chmod(0o700)
    staging.set_modes(part.modes)
    modes = {name: (tmp_path / name).stat().st_mode & 0o7777 for name in ("", "usr", "tmp", "etc/resolv.conf")}
    assert modes == {"": 0o755, "usr": 0o755, "tmp": 0o1777, "etc/resolv.conf": 0o644}
    assert (tmp_path / "bin").readlink().name == "bin"


def test_copy_drops_set_id_bits(tmp_path):
    source = tmp_path / "su"
    source.write_bytes(b"x")
    source.chmod(0o4755)
    Staging(tmp_path / "root").copy({PurePosixPath("usr/bin/su"): source})
    assert (tmp_path / "root/usr/bin/su").stat().st_mode & 0o7777 == 0o755
