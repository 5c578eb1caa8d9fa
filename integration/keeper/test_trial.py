"""The launcher's keep mode alone, when another daemon is to come next: it settles and the keeper follows it, or it is no good."""

import json
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.harness.process import find
from integration.harness.waiting import eventually
from integration.keeper.test_keep import DAEMON, LAUNCHER, SAYS, SOON, Kept

#: Serves and settles; the launcher that it names is its third word.
SETTLES = f"""{SAYS}
import socket
control = socket.socket(fileno=fds.FIRST)
control.send(f"SETTLED=1\\nLAUNCHER={{sys.argv[2]}}".encode())
signal.pause()
"""


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    made = Kept(tmp_path)
    made.store("listen", made.listener.fileno())
    yield made
    made.close()
    for daemon in begun(tmp_path / "next"):
        if (found := find(daemon["pid"])) is not None and "kata_shimd" in found.command():
            found.kill()


def begun(log: Path) -> list[dict]:
    """Daemons that came next, in order."""
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def next_is(kept: Kept, words: list[str | Path], patience: int = 60, more: str = "") -> None:
    fd = os.memfd_create("argv")
    os.write(fd, b"".join(os.fsencode(word) + b"\0" for word in words))
    socket.send_fds(kept.control, [f"NEXT=1\nPATIENCE={patience}{more}".encode()], [fd])
    os.close(fd)


def test_one_that_settles_stays_and_the_keeper_becomes_its_own(kept: Kept, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    other = Path(shutil.copy2(LAUNCHER, tmp_path / "bin"))
    log = tmp_path / "next"
    next_is(kept, [sys.executable, "-c", SETTLES, log, other])
    kept.die()
    exe = Path(f"/proc/{kept.keeper.pid}/exe")
    eventually("the other keeper", lambda: exe.readlink() == other, within=SOON)
    (first,) = begun(log)
    assert first["held"] == ["listen"] and kept.recorded() == first["pid"]
    fds = Path(f"/proc/{kept.keeper.pid}/fd")
    before = len(list(fds.iterdir()))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(kept.pod / "shim.sock"))
        eventually("the connection and its journal", lambda: len(list(fds.iterdir())) >= before + 2, within=SOON)
        found = find(first["pid"])
        assert found is not None
        found.kill()
        eventually("a later daemon", lambda: len(begun(log)) == 2, within=SOON)
    assert begun(log)[1]["held"] == ["c1", "j1", "listen"], "all that was held, and what has come since"
    assert kept.daemons() == [], "none of the kind before"


@pytest.mark.parametrize(("last", "patience"), [("die", 60), ("pause", 1)], ids=["dies", "hangs"])
def test_one_that_does_not_settle_is_followed_by_one_of_the_kind_before(
    kept: Kept, tmp_path: Path, last: str, patience: int
) -> None:
    words = [last] if last == "die" else []
    next_is(kept, [sys.executable, "-c", DAEMON, tmp_path / "next", *words], patience)
    kept.die()
    (back,) = eventually("one of the kind before", kept.daemons, within=SOON)
    assert len(begun(tmp_path / "next")) == 1
    assert back["held"] == ["listen"] and kept.recorded() == back["pid"]
    found = find(back["pid"])
    assert found is not None
    found.kill()
    eventually("another of them", lambda: len(kept.daemons()) == 2, within=SOON)
    assert len(begun(tmp_path / "next")) == 1, "and it is not tried again"


def test_a_keeper_that_comes_in_the_middle_knows_the_way_back(kept: Kept, tmp_path: Path) -> None:
    """Its own command line is that of the daemon before; the one that is there is another's."""
    next_is(kept, [sys.executable, "-c", DAEMON, tmp_path / "next"], more="\nBEGUN=1")
    kept.die()
    (back,) = eventually("one of the kind before", kept.daemons, within=SOON)
    assert (back["held"], begun(tmp_path / "next")) == (["listen"], [])


def test_one_that_settles_in_the_middle_stays(kept: Kept, tmp_path: Path) -> None:
    next_is(kept, [sys.executable, "-c", DAEMON, tmp_path / "next"], more="\nBEGUN=1")
    kept.control.send(f"SETTLED=1\nLAUNCHER={LAUNCHER}".encode())
    kept.die()
    eventually("another like it", lambda: len(begun(tmp_path / "next")) == 1, within=SOON)
    assert kept.daemons() == []


@pytest.mark.parametrize("words", [[], ["relative"], ["/nowhere/python3"]], ids=["empty", "relative", "missing"])
def test_nobody_to_be_begun_costs_nothing(kept: Kept, words: list[str]) -> None:
    next_is(kept, words)
    kept.die()
    (daemon,) = eventually("one of the kind before", kept.daemons, within=SOON)
    assert daemon["held"] == ["listen"]


def test_deaths_for_another_and_on_trial_are_not_counted(tmp_path: Path) -> None:
    kept = Kept(tmp_path, "--deaths", "0", "--within", "600")
    try:
        kept.store("listen", kept.listener.fileno())
        next_is(kept, [sys.executable, "-c", DAEMON, tmp_path / "next", "die"])
        kept.die()
        (daemon,) = eventually("one of the kind before", kept.daemons, within=SOON)
        assert kept.keeper.poll() is None and kept.recorded() == daemon["pid"]
    finally:
        kept.close()
