"""Peers in other languages, built once into a cache outside the checkout and run over sockets of their own."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CACHE = Path(os.environ.get("KATA_SHIMD_CACHE", "/var/cache/kata-shimd"))


@pytest.fixture(scope="module", autouse=True)
def module_leaves_nothing() -> None:
    """No machine is needed here, so the wider leak check, which starts one, is replaced by `leaves_nothing`."""


@pytest.fixture(autouse=True)
def leaves_nothing() -> Iterator[None]:
    """Every descriptor that a test opened is closed when it ends."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    yield
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.fixture(scope="session")
def gopeer() -> Path:
    binary = CACHE / "go/ttrpc-peer"
    binary.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["go", "build", "-o", binary, "."], cwd=HERE / "gopeer", check=True)
    return binary


@pytest.fixture(scope="session")
def rustpeer() -> Path:
    target = CACHE / "cargo-test/ttrpc-peer"
    command = ["cargo", "build", "--release", "--quiet", "--target-dir", target]
    subprocess.run(command, cwd=HERE / "rustpeer", check=True)
    return target / "release" / "rustpeer"


@pytest.fixture(params=["go", "rust"])
def language(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def peer(language: str, request: pytest.FixtureRequest) -> Path:
    """The binary of the peer: ``peer server|client PATH``."""
    binary: Path = request.getfixturevalue("gopeer" if language == "go" else "rustpeer")
    return binary


@pytest.fixture
def peer_server(peer: Path, tmp_path: Path) -> Iterator[Path]:
    """A running peer; the path of its socket."""
    path = tmp_path / "peer.sock"
    with subprocess.Popen([peer, "server", path], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield path
        finally:
            process.kill()
