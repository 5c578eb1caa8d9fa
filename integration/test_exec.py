"""``ctr task exec``: further processes in a running container."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from integration.harness.ctr import Ctr
from integration.harness.events import Events


@pytest.mark.parametrize("code", [0, 3])
def test_output_and_exit_code(ctr: Ctr, name: str, running: str, code: int) -> None:
    done = ctr.exec(running, name, "sh", "-c", f"echo out; echo err >&2; exit {code}")
    assert (done.code, done.out, done.err) == (code, "out", "err")


def test_it_shares_the_container(ctr: Ctr, name: str, running: str) -> None:
    listed = ctr.exec(running, name, "ps", "-o", "pid,args").ok().out.splitlines()
    assert any(line.split()[:3] == ["1", "sh", "-c"] for line in listed), listed


def test_cwd(ctr: Ctr, name: str, running: str) -> None:
    assert ctr.exec(running, name, "pwd", options=["--cwd", "/home/app"]).ok().out == "/home/app"


def test_user(ctr: Ctr, name: str, running: str) -> None:
    assert ctr.exec(running, name, "id", "-u", options=["--user", "1000:1000"]).ok().out == "1000"


def test_a_program_that_is_not_there(ctr: Ctr, name: str, running: str) -> None:
    done = ctr.exec(running, name, "/no/such/program")
    assert done.code != 0
    assert "/no/such/program" in done.err
    assert ctr.exec(running, name, "true").ok(), "the id is free again"


def test_an_id_may_be_given_again(ctr: Ctr, name: str, running: str) -> None:
    """Its process has ended and is forgotten: the id is free, in the guest as well."""
    for number in range(3):
        done = ctr.exec(running, name, "sh", "-c", f"echo {number}; exit {number}")
        assert (done.code, done.out) == (number, str(number)), done


def test_twenty_at_once(ctr: Ctr, name: str, running: str) -> None:
    def one(number: int) -> tuple[int, str]:
        done = ctr.exec(running, f"{name}-{number}", "sh", "-c", f"echo {number}; exit {number}")
        return done.code, done.out

    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(one, range(20))) == [(number, str(number)) for number in range(20)]


def test_events_in_order(ctr: Ctr, name: str, running: str) -> None:
    with Events(ctr) as events:
        ctr.exec(running, name, "true").ok()
        seen = events.until(running, "/tasks/exit")
    assert [event.topic for event in seen] == ["/tasks/exec-added", "/tasks/exec-started", "/tasks/exit"]
    assert {event.fields.get("exec_id") or event.fields.get("id") for event in seen} == {name}
