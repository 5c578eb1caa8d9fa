"""Sockets: closed to others, connected before anybody accepts, errors that name the path."""

import stat

import pytest

from kata_shimd.errors import HostFailed
from kata_shimd.vm import sockets


def test_only_root_may_connect(tmp_path):
    with sockets.listen(tmp_path / "s"):
        assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600


def test_the_backlog_takes_a_connection_before_anybody_accepts(tmp_path):
    with sockets.listen(tmp_path / "s") as server, sockets.connect(tmp_path / "s") as client:
        client.send(b"first")
        accepted, _ = server.accept()
        with accepted:
            assert accepted.recv(10) == b"first"
        assert client.getblocking() is False


def test_a_full_backlog_fails_and_does_not_wait(tmp_path):
    clients = []
    with sockets.listen(tmp_path / "s"), pytest.raises(HostFailed, match=r"connect: .*/s: Resource temporarily"):
        for _ in range(100):
            clients.append(sockets.connect(tmp_path / "s"))
    for client in clients:
        client.close()


@pytest.mark.parametrize(
    ("path", "cause"), [("missing/s", "No such file"), ("x" * 120, "too long"), (".", "Address already in use")]
)
def test_a_path_that_will_not_do(tmp_path, path, cause):
    with pytest.raises(HostFailed, match=f"bind socket: .*{cause}"):
        sockets.listen(tmp_path / path)


def test_nobody_listens(tmp_path):
    sockets.listen(tmp_path / "s").close()
    with pytest.raises(HostFailed, match=r"connect: .*/s: Connection refused"):
        sockets.connect(tmp_path / "s")
