"""The judges of the matrix can find somebody guilty: a daemon that does not answer, a call that never ends."""

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from integration.chaos.play import _states
from integration.chaos.probe import Shim, overdue
from integration.harness.scale import SCALE
from kata_shimd import wire
from kata_shimd.api import task, ttrpc, wkt
from kata_shimd.ttrpc.frames import RESPONSE, pack


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    """A daemon's socket on which nothing is answered, unless a test does."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "shim.sock"))
        sock.listen()
        yield sock


def play_at(tmp_path: Path) -> Any:
    """As much of a play as is asked for State."""
    return SimpleNamespace(ids=("c1",), sandbox_id="c1", stage=SimpleNamespace(shim=lambda _: Shim(tmp_path)))


def test_a_daemon_that_does_not_answer_state_is_complained_of(tmp_path: Path, listener: socket.socket) -> None:
    (complaint,) = _states(play_at(tmp_path))
    assert complaint.startswith("State of c1: ")


def test_a_daemon_that_is_gone_is_not(tmp_path: Path, listener: socket.socket) -> None:
    listener.close()
    assert not [*_states(play_at(tmp_path))]


def test_a_lost_task_that_is_said_to_have_ended_well_is(tmp_path: Path, listener: socket.socket) -> None:
    state = task.StateResponse(id="c1", exit_status=0, exited_at=wkt.Timestamp(seconds=1))
    answer = threading.Thread(target=_answer, args=(listener, wire.encode(state)))
    answer.start()
    complaints = [*_states(play_at(tmp_path))]
    answer.join()
    assert complaints == ["State tells exit status 0 of c1"]


def _answer(listener: socket.socket, payload: bytes) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.recv(65536)
        connection.sendall(pack(1, RESPONSE, 0, wire.encode(ttrpc.Response(payload=payload))))
        connection.recv(1)


def rpc(event: str, name: str, call: str, **fields: Any) -> dict[str, Any]:
    return json.loads(json.dumps({"event": event, "rpc": name, "call": call, **fields}))


def test_a_call_that_took_too_long_is_overdue_and_wait_never_is() -> None:
    long = 61_000 * SCALE
    assert [*overdue([rpc("rpc", "Create", "c1/1", ms=long), rpc("rpc", "Wait", "c1/3", ms=long)])] == [
        f"Create took {long / 1000:.1f} s, more than {60 * SCALE:.0f}"
    ]


def test_a_call_that_was_never_left_is_overdue_unless_the_daemon_was_killed() -> None:
    began = rpc("rpc-began", "Create", "c1/1")
    assert not [*overdue([began])]
    assert [*overdue([began, {"event": "daemon-ended"}])] == ["Create was begun and never left"]
    assert not [*overdue([began, rpc("rpc", "Create", "c1/1", ms=1.0), {"event": "daemon-ended"}])]
