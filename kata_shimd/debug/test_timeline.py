"""The timeline leaves nothing out, keeps the order and shows long texts once."""

import ast
import re
from pathlib import Path

import kata_shimd
from kata_shimd.debug import timeline
from kata_shimd.debug.story import tell
from kata_shimd.debug.testing import BOOTED, SUCCESSOR, as_read, event

#: What writes the launcher's own events.
LAUNCHERS = Path(kata_shimd.__file__).resolve().parents[1] / "launcher/src/journal.rs"


def shown(*events):
    return list(timeline.lines(tell(as_read(events), live=True)))


def test_time_event_and_words_in_order():
    lines = shown(*BOOTED)
    assert lines[0] == "   +0.000s  daemon                  serves k8s.io/sandbox-1, pid 42"
    assert lines[3] == "   +0.300s  boot-phase              qmp took 80.1 ms"
    assert len(lines) == len(BOOTED)


def test_rpcs_say_how_they_ended():
    done, failed, cancelled = shown(
        event("rpc", rpc="Start", call=1, ms=12.0),
        event("rpc", rpc="Kill", call=2, ms=3.0, code="NOT_FOUND", error="kill: c1: ended"),
        event("rpc", rpc="Wait", call=3, ms=9.0, cancelled=True),
    )
    assert done.endswith("Start took 12.0 ms")
    assert failed.endswith("Kill failed after 3.0 ms: NOT_FOUND: kill: c1: ended")
    assert cancelled.endswith("Wait was cancelled after 9.0 ms")


def test_what_has_no_words_is_shown_as_it_is():
    assert shown(event("novel", number=3, text="a b"))[0].endswith("novel                   number=3 text=a b")
    assert shown(event("created", container="c", pid=9))[0].endswith("container c pid=9")
    assert shown(event("daemon"))[0].endswith("serves ?/?, pid ?")


def test_outputs_are_blocks_and_told_once():
    console = "\n".join(f"line {number}" for number in range(30))
    detail = {"cause": "QEMU ended", "stderr": "oops\n", "console": console}
    lines = shown(event("qemu-ended", **detail), event("vm-ended", expected=False, **detail))
    assert lines.count("            | oops") == 1
    assert lines.count("            | line 29") == 1
    assert "            | … 10 lines above" in lines
    assert lines[-1].endswith("vm-ended                QEMU ended expected=False")


def test_a_guest_cannot_write_to_the_terminal():
    hostile = "\x1b]0;owned\a\x1b[2J\nfake   +9.000s  vm-ended"
    every = [
        event(name, **dict.fromkeys(("error", "console", "cause", "x\x1by"), hostile)) for name in ("rpc", "vm-ended")
    ]
    assert all(line.isprintable() for line in shown(*every))


def test_long_lives_are_told_in_hours():
    events = as_read([event("daemon"), event("daemon-ended")])
    events[1]["t"] += 3 * 3600 * 10**9
    assert list(timeline.lines(tell(events, live=True)))[1].startswith(" +3h00m00s")


def test_only_the_last_life_is_told():
    lines = shown(*BOOTED, event("daemon-ended"), *BOOTED[:2])
    assert [line.split()[:2] for line in lines] == [["+0.000s", "daemon"], ["+0.100s", "accelerator"]]


def test_later_daemons_are_told_in_the_same_life():
    lines = shown(
        *BOOTED, event("daemon-ended"), *BOOTED, SUCCESSOR, event("exited", container="c1", exec="", status=3)
    )
    assert [line.split()[1] for line in lines][-3:] == ["agent-ready", "daemon", "exited"]
    assert len(lines) == len(BOOTED) + 2
    assert "pid 43" in lines[-2] and "later" in lines[-2]


def test_every_event_that_is_written_has_words():
    known = timeline.EVENTS
    assert written_events() - known == set()
    assert known - written_events() == set()


def written_events():
    """First arguments of calls of a journal or a note, anywhere in the package, what `record` makes of events, the launcher's."""
    return {*written_by_the_daemon(), *re.findall(r'"event": "(\w+)"', LAUNCHERS.read_text())}


def written_by_the_daemon():
    package = Path(kata_shimd.__file__).parent
    files = [path for path in package.rglob("*.py") if not {"api", "config", "image"} & set(path.parts)]
    return {
        name
        for path in files
        if not path.name.startswith("test_") and path.name != "testing.py"
        for node in ast.walk(ast.parse(path.read_text()))
        for name in _written(node)
    }


def _written(node):
    match node:
        case ast.Call(
            func=ast.Attribute(attr="write" | "begin" | "_note", value=receiver), args=[ast.Constant(str(name)), *_]
        ):
            if "journal" in ast.unparse(receiver) or ast.unparse(receiver) == "self":
                yield name
        case ast.Call(func=ast.Name(id="_line"), args=[ast.Constant(str(name)), *_]):
            yield name
        case ast.Return(value=ast.Tuple(elts=[ast.Constant(str(name)), ast.Dict() | ast.BinOp()])) if name:
            yield name
