"""The directory of a container: its name. What is mounted in it is seen in integration tests, in a namespace of their own."""

from pathlib import Path

import pytest

from kata_shimd.errors import HostFailed
from kata_shimd.host.files import HostFiles
from kata_shimd.ledger import NAME, Kind, Ledger
from kata_shimd.pod.storage import RootfsShare

EMPTY = RootfsShare(())


@pytest.fixture
def files(tmp_path):
    """`HostFiles` of a pod whose ``undo`` is the program given; each call is another daemon's."""
    (tmp_path / "shared").mkdir()
    (tmp_path / NAME).touch()

    def begin(*, again=False, undo="/bin/true"):
        return HostFiles(Ledger(tmp_path), Path(undo), tmp_path / "shared", again=lambda: again)

    return begin


async def test_each_creation_has_a_directory_of_a_new_name(files, tmp_path):
    """The guest may still believe what it saw under the old one."""
    host, names = files(), []
    for _ in range(3):
        names.append(host.directory("c1"))
        await host.share_rootfs("c1", EMPTY)
        assert (tmp_path / "shared" / names[-1] / "rootfs").is_dir()
        await host.undo_container("c1")
    assert len(set(names)) == 3
    assert all(name.startswith("c1-") for name in names)


async def test_a_creation_that_is_taken_up_again_goes_on_in_its_directory(files, tmp_path):
    before = files()
    await before.share_rootfs("c1", EMPTY)
    after = files(again=True)
    assert after.directory("c1") == before.directory("c1")
    await after.share_rootfs("c1", EMPTY)
    assert [path.name for path in (tmp_path / "shared").iterdir()] == [before.directory("c1")]
    assert [record.kind for record in Ledger(tmp_path).state.live.values()] == [Kind.DIR]


async def test_what_an_undo_left_behind_is_not_used_by_the_next_creation(files):
    host = files(undo="/bin/false")
    first = host.directory("c1")
    await host.share_rootfs("c1", EMPTY)
    with pytest.raises(HostFailed, match="undo container: c1"):
        await host.undo_container("c1")
    await host.share_rootfs("c1", EMPTY)
    assert host.directory("c1") != first
    assert files(again=True).directory("c1") == host.directory("c1")
