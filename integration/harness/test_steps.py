"""What somebody who installs sees: progress, what was done, and of a step that fails what, why and what to do."""

import io
import os
import pty
import re
from pathlib import Path

import pytest

from integration.harness import install, steps
from integration.harness.install import Layout
from integration.harness.steps import StepFailed, Steps


@pytest.fixture
def log():
    """Steps that write to a log, no terminal."""
    return Steps("setup", out=io.StringIO())


def test_a_step_is_a_line_with_its_time_and_what_there_is_to_say(log):
    with log.step("packages") as step:
        step.note("all are there")
    assert re.fullmatch(r"\[setup\] packages: \d+\.\d s \(all are there\)\n", log.out.getvalue())
    assert list(log.seconds) == ["packages"]


def test_a_program_that_fails_is_quoted_with_what_to_do(log):
    script = "echo reading; echo no room >&2; exit 3"
    with pytest.raises(StepFailed) as failed, log.step("wheel") as step:
        step.run(["sh", "-c", script], hint="make room")
    said = str(failed.value)
    assert said.startswith("wheel: sh -c ") and "failed with 3:\n    reading\n    no room\n" in said
    assert said.endswith("  what to do: make room")
    assert "[setup] wheel: FAILED after " in log.out.getvalue()
    assert log.seconds == {}


def test_a_program_that_is_not_there_is_named(log):
    said = r"^guest: /no/such/program: No such file or directory\n  what to do: install it$"
    with pytest.raises(StepFailed, match=said), log.step("guest") as step:
        step.run(["/no/such/program"], hint="install it")


def test_only_the_end_of_much_output_is_kept(log):
    with pytest.raises(StepFailed) as failed, log.step("wheel") as step:
        step.run(["sh", "-c", "seq 100000; exit 1"])
    quoted = str(failed.value).splitlines()[1:]
    assert [line.strip() for line in quoted] == [str(number) for number in range(100_001 - steps.TAIL_LINES, 100_001)]


def test_in_a_log_a_long_step_says_that_it_still_runs(log, monkeypatch):
    """The program goes on when it has been told of."""
    monkeypatch.setattr(steps, "HEARTBEAT", 0.02)
    reader, writer = os.pipe()
    monkeypatch.setattr(steps.Step, "_beat", _and_then(steps.Step._beat, lambda: os.write(writer, b"go\n")))
    with log.step("guest") as step:
        step.run(["sh", "-c", f"echo fetching; read -r _ < /proc/{os.getpid()}/fd/{reader}"])
    os.close(reader)
    os.close(writer)
    assert re.search(r"^  guest, \d+ s: (fetching|nothing said yet)$", log.out.getvalue(), re.MULTILINE)


def _and_then(first, second):
    def both(*arguments):
        first(*arguments)
        second()

    return both


def test_on_a_terminal_the_newest_line_is_shown_in_place():
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        with Steps("setup", out=terminal).step("guest") as step:
            step.run(["echo", "fetching"])
        terminal.flush()
        shown = _read_until(ours, "[setup] guest: ")
    os.close(ours)
    assert "\r\x1b[K  guest, 0 s: fetching" in shown
    assert "\r\x1b[K[setup] guest: " in shown


def _read_until(terminal: int, last: str) -> str:
    """A terminal hands over what was written piece by piece: read until ``last`` is among it."""
    shown = ""
    while last not in shown:
        shown += os.read(terminal, 4096).decode()
    return shown


# --- what decides that there is nothing to do ------------------------------------------------------------------------


def test_what_is_built_is_built_again_only_of_other_sources(tmp_path, monkeypatch):
    monkeypatch.setattr(install, "REPOSITORY", tmp_path)
    (tmp_path / "part").mkdir()
    (tmp_path / "part/a.py").write_text("a = 1\n")
    before = install.source_hash(["part"])
    (tmp_path / "part/__pycache__").mkdir()
    (tmp_path / "part/__pycache__/a.pyc").write_bytes(b"compiled")
    (tmp_path / "part/test_a.py").write_text("assert True\n")
    assert install.source_hash(["part"]) == before
    (tmp_path / "part/a.py").write_text("a = 2\n")
    assert install.source_hash(["part"]) != before


def test_a_stamp_is_fresh_for_what_it_was_written_for(tmp_path):
    stamp = install._Stamp(tmp_path, "wheel", "one")
    assert not stamp.fresh()
    stamp.write()
    assert stamp.fresh()
    assert not install._Stamp(tmp_path, "wheel", "two").fresh()


def test_a_command_of_somebody_else_is_left_alone(log, tmp_path, monkeypatch):
    monkeypatch.setattr(install, "LINKS", tmp_path)
    (tmp_path / install.COMMANDS[0]).write_text("theirs")
    with pytest.raises(StepFailed, match="is a file of somebody else"), log.step("commands") as step:
        install._links(step, Layout(Path("/opt/it"), tmp_path))
    assert (tmp_path / install.COMMANDS[0]).read_text() == "theirs"


def test_links_are_set_once_and_follow_the_prefix(log, tmp_path, monkeypatch):
    monkeypatch.setattr(install, "LINKS", tmp_path)
    for prefix in ("/opt/one", "/opt/one", "/opt/two"):
        with log.step("commands") as step:
            install._links(step, Layout(Path(prefix), tmp_path))
        assert {name: str((tmp_path / name).readlink()) for name in install.COMMANDS} == {
            name: f"{prefix}/bin/{name}" for name in install.COMMANDS
        }
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(install.COMMANDS)
