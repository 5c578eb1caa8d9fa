"""Which loop a daemon runs on, and how much it says."""

import asyncio
import logging
import os
import sys
from types import SimpleNamespace

import pytest
import uvloop

from kata_shimd import daemon
from kata_shimd.config import load
from kata_shimd.config.model import EventLoop
from kata_shimd.daemon import loop_factory
from kata_shimd.errors import NotFound


def test_uvloop_is_taken_where_it_is_there():
    assert loop_factory(EventLoop.AUTO) is loop_factory(EventLoop.UVLOOP) is uvloop.Loop
    assert loop_factory(EventLoop.ASYNCIO) is asyncio.SelectorEventLoop


def test_without_uvloop_the_plain_loop_does_unless_somebody_insists(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert loop_factory(EventLoop.AUTO) is asyncio.SelectorEventLoop
    with pytest.raises(NotFound, match="choose event loop: uvloop: it cannot be imported; install uvloop"):
        loop_factory(EventLoop.UVLOOP)


@pytest.mark.parametrize(("text", "level"), [(b"", logging.INFO), (b"[runtime]\nenable_debug = true\n", logging.DEBUG)])
def test_debug_of_the_runtime_is_the_daemons_level(monkeypatch, tmp_path, text, level):
    """And the configured loop is the one that runs."""
    body = text + b'[shimd]\nevent_loop = "asyncio"\n'
    bootstrap = os.open(tmp_path / "bootstrap", os.O_RDWR | os.O_CREAT)
    ran = []
    monkeypatch.setattr(daemon.assembly, "configure", lambda *_: load(None, body, None, {}, search=()))

    async def serve():
        ran.append((logging.getLogger().level, type(asyncio.get_running_loop())))

    monkeypatch.setattr(daemon.log, "configure", lambda *_args, **_named: logging.getLogger().setLevel(logging.INFO))
    before = logging.getLogger().level
    try:
        arguments = SimpleNamespace(bundle=tmp_path, pod_dir=tmp_path, debug=False, sandbox_id="s")
        with daemon._runner(daemon._configured(arguments, bootstrap, in_unit=False), uvloop.new_event_loop()) as runner:
            runner.run(serve())
    finally:
        logging.getLogger().setLevel(before)
        os.close(bootstrap)
    assert ran == [(level, asyncio.SelectorEventLoop)]
