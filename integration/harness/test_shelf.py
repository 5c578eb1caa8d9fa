"""Hosts of a session have the same templates, and nothing else in common."""

from pathlib import Path

from integration.harness.host import Host
from integration.harness.shelf import PLACE


def place(host: Host) -> Path:
    return host.inside / PLACE.relative_to("/")


def test_what_one_has_made_the_next_finds() -> None:
    with Host() as one, Host() as other:
        (place(one) / "kept").touch()
        (one.inside / "run/own").touch()
        assert (place(other) / "kept").exists() and not (other.inside / "run/own").exists()
        (place(other) / "kept").unlink()
        told = other.run(["stat", "--file-system", "--format=%T", PLACE])
        assert told.stdout == b"tmpfs\n", told
        assert place(other).stat().st_mode & 0o777 == 0o700


def test_it_is_not_in_our_own_namespace() -> None:
    with Host():
        assert not [line for line in Path("/proc/self/mounts").read_text().splitlines() if "kt-shelf-" in line]
