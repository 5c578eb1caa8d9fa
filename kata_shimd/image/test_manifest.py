"""The built-in manifest is whole, and every mistake in one is named."""

import tomllib

import pytest

from kata_shimd.errors import InvalidArgument
from kata_shimd.image.manifest import default_text, parse

DEFAULT = default_text()


def test_default_manifest_has_what_a_guest_needs():
    manifest = parse(DEFAULT)
    assert manifest.kernel.package.startswith("linux-image-")
    assert {"virtio_blk", "squashfs", "overlay", "virtiofs", "virtio_console"} <= set(manifest.initrd.modules)
    assert manifest.rootfs.links["sbin"] == "usr/sbin"
    assert "etc/resolv.conf" in manifest.rootfs.text
    assert manifest.rootfs.modes["tmp"] == 0o1777


def test_every_mode_is_of_a_directory_that_is_made():
    manifest = parse(DEFAULT)
    assert manifest.rootfs.modes.keys() <= set(manifest.rootfs.directories)


@pytest.mark.parametrize(
    ("old", "new", "cause"),
    [
        ("format = 1", "format = 2", "this builder knows 1"),
        ("format = 1", "", "format is None"),
        ("trivial_modules", "trivial_module", "initrd: unknown or missing: trivial_module, trivial_modules"),
        ('architecture = "amd64"', "architecture = 64", "architecture: 64 is of the wrong type"),
        ("[kernel]", "kernel = 5\n[other]", "unknown or missing: other"),
        ('"var/tmp" = 0o1777', '"/var/tmp" = 0o1777', "'/var/tmp' is not a path below"),
        ('"usr/bin/crun"', '"../../etc/shadow"', "is not a path below"),
        ('["sd_mod"]', '"sd_mod"', "device_modules: virtio_scsi: 'sd_mod' is of the wrong type"),
        ("tmp = 0o1777", 'tmp = "1777"', "modes: tmp: '1777' is of the wrong type"),
        ("format = 1", "format = ", "read guest manifest: manifest.toml"),
    ],
)
def test_a_mistake_is_named(old, new, cause):
    assert old in DEFAULT
    with pytest.raises(InvalidArgument, match=cause):
        parse(DEFAULT.replace(old, new, 1))


def test_default_manifest_is_sorted_where_order_means_nothing():
    """So that a line has one place, and two people adding the same thing meet."""
    rootfs = tomllib.loads(DEFAULT)["rootfs"]
    for key in ("modules", "directories"):
        assert rootfs[key] == sorted(rootfs[key])
