"""Dependencies as Debian's control files write them; apt itself is replaced by a table of its answers."""

import hashlib

import pytest

from kata_shimd.errors import HostFailed, NotFound
from kata_shimd.image import debian
from kata_shimd.image.debian import Package, kernel_package, parse_stanza, resolve

STANZA = """Package: crun
Version: 1:1.8.1-1+deb12u1
Pre-Depends: base (>= 1)
Depends: libc6 (>= 2.34), libcap2 (>= 1:2.10) | libcap-alt, libsystemd0:any [amd64]
Description: runs containers
 Depends: not a field
Filename: pool/main/c/crun/crun_1.8.1-1+deb12u1_amd64.deb
SHA256: 34bd
"""


def package(name, *depends):
    groups = tuple(tuple(group.split("|")) for group in depends)
    return Package(name, "1", hashlib.sha256(name.encode()).hexdigest(), f"{name}.deb", groups)


def answers(*packages):
    """apt's answers from a table, and the questions asked."""
    table = {it.name: it for it in packages}
    asked = []

    def show(names):
        asked.append(list(names))
        return [table[name] for name in names if name in table]

    return show, asked


def test_stanza_gives_version_archive_hash_and_dependencies():
    assert parse_stanza(STANZA) == Package(
        name="crun",
        version="1:1.8.1-1+deb12u1",
        sha256="34bd",
        file="crun_1.8.1-1+deb12u1_amd64.deb",
        depends=(("base",), ("libc6",), ("libcap2", "libcap-alt"), ("libsystemd0",)),
    )


def test_stanza_without_a_hash_is_refused():
    with pytest.raises(HostFailed, match="SHA256"):
        parse_stanza(STANZA.replace("SHA256", "MD5sum"))


def test_resolve_follows_dependencies_and_survives_circles():
    show, _ = answers(package("a", "b"), package("b", "c", "a"), package("c", "b"), package("z"))
    assert [it.name for it in resolve(["a"], show)] == ["a", "b", "c"]


def test_resolve_takes_the_first_alternative_that_exists():
    show, _ = answers(package("a", "gone|c|b"), package("b"), package("c"))
    assert [it.name for it in resolve(["a"], show)] == ["a", "c"]


def test_resolve_takes_an_alternative_that_is_needed_anyway():
    show, _ = answers(package("a", "b|c", "d"), package("b"), package("c"), package("d"))
    assert [it.name for it in resolve(["a", "c"], show)] == ["a", "c", "d"]


def test_resolve_names_what_apt_does_not_know():
    show, _ = answers(package("a", "x|y"))
    with pytest.raises(NotFound, match=r"find package: x \| y: apt does not know it; run apt-get update"):
        resolve(["a"], show)


def test_resolve_asks_once_when_the_answer_is_as_before():
    show, asked = answers(package("a", "b"), package("b", "c"), package("c"))
    resolve(["a"], show, likely=["b", "c", "no-longer-there"])
    assert asked == [["a", "b", "c", "no-longer-there"]]


def test_kernel_is_what_the_meta_package_points_to():
    real = package("linux-image-6.1.0-56-cloud-amd64", "kmod", "initramfs-tools|dracut")
    show, asked = answers(package("linux-image-cloud-amd64", real.name), real)
    assert kernel_package("linux-image-cloud-amd64", show) == real
    assert kernel_package(real.name, show) == real
    assert not any("kmod" in names for names in asked)


def test_fetch_does_not_download_what_is_there_and_genuine(tmp_path, monkeypatch):
    monkeypatch.setattr(debian, "_download", lambda packages, cache: pytest.fail(f"downloads {packages}"))
    (tmp_path / "a.deb").write_bytes(b"a")
    assert debian.fetch([package("a")], tmp_path) == {"a": tmp_path / "a.deb"}


def test_fetch_replaces_a_cached_archive_that_is_not_genuine(tmp_path, monkeypatch):
    def download(packages, cache):
        for it in packages:
            (cache / it.file).write_bytes(it.name.encode())

    monkeypatch.setattr(debian, "_download", download)
    (tmp_path / "a.deb").write_bytes(b"cut sho")
    assert debian.fetch([package("a")], tmp_path)["a"].read_bytes() == b"a"
