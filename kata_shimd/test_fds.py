"""Adopting fds: only ours, only if they are what they are said to be."""

import os

import pytest

from kata_shimd import fds
from kata_shimd.errors import InvalidArgument


def environment(**changes):
    return {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "listen"} | changes


def test_names_become_fds_and_variables_go(monkeypatch):
    made = os.open("/dev/null", os.O_RDONLY)
    monkeypatch.setattr(fds, "FIRST", made)
    os.set_inheritable(made, True)
    variables = environment()
    assert fds.adopt(variables) == {"listen": made}
    assert variables == {}
    assert not os.get_inheritable(made)
    os.close(made)


@pytest.mark.parametrize(
    "changes",
    [{"LISTEN_PID": "1"}, {"LISTEN_PID": ""}, {"LISTEN_FDS": "2"}, {"LISTEN_FDS": "x"}],
    ids=["another's", "missing", "too many", "no number"],
)
def test_what_is_not_for_us_is_refused(changes):
    with pytest.raises(InvalidArgument, match="adopt fds"):
        fds.adopt(environment(**changes))


def test_an_fd_that_is_not_open_is_refused(monkeypatch):
    monkeypatch.setattr(fds, "FIRST", 1000)
    with pytest.raises(InvalidArgument, match="fd 1000 is not open"):
        fds.adopt(environment())
