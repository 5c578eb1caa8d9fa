"""What is told of a call: in the pod's journal, and at debug level in the log, found by pod, container and call."""

import logging
from types import SimpleNamespace

import pytest

from kata_shimd import log
from kata_shimd.errors import NotFound
from kata_shimd.task.boundary import boundary


def call(method):
    return SimpleNamespace(method=method, id="c1/3")


@pytest.mark.parametrize("method", ["Kill", "State"])
def test_a_call_that_went_well(caplog, method):
    caplog.set_level(logging.DEBUG)
    notes = []
    with boundary(lambda event, **fields: notes.append((event, fields["rpc"])))(call(method)):
        pass
    told = [("rpc", "Kill")] if method == "Kill" else []
    assert [note for note in notes if note[0] == "rpc"] == told
    assert len(caplog.messages) == len(told), "nobody wants to read of every State"


def test_what_is_logged_of_a_refusal_says_of_which_call_and_container(caplog):
    caplog.set_level(logging.DEBUG)
    caplog.handler.setFormatter(log.ContextFormatter())
    with pytest.raises(NotFound), boundary(lambda *_, **__: None)(call("Kill")):
        log.container.set("c7")
        raise NotFound("kill", "c7", "no such container")
    (line,) = caplog.text.splitlines()
    assert "kill: c7: no such container" in line and line.endswith("container=c7 rpc=Kill")
