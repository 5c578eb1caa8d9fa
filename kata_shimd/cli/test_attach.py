"""``kata-shimd attach`` and ``qmp``: what is typed, what is a script, exit codes. The daemon's side is in debug/test_attach.py."""

import io

import pytest

from kata_shimd import cli
from kata_shimd.cli import attach, qmp
from kata_shimd.debug import attached
from kata_shimd.debug.testing import POD, write_ledger
from kata_shimd.errors import InvalidArgument, Unavailable


class Recorder:
    """A session that remembers what it was asked; a statement in ``fails`` fails."""

    def __init__(self, fails=()):
        self.asked, self.fails = [], fails

    def run(self, source, say):
        self.asked.append(source)
        say(f"ran {source}\n")
        return source not in self.fails

    def stacks(self, say):
        self.asked.append("<stacks>")

    def complete(self, text):
        return [text + "xyz"]

    def close(self):
        self.asked.append("<closed>")


@pytest.fixture
def session(monkeypatch):
    made = Recorder()
    monkeypatch.setattr(attached, "connect", lambda pod: made)
    return made


def run(tmp_path, *words):
    write_ledger(tmp_path)
    return cli.main(["attach", *words, POD, "--run-dir", str(tmp_path)])


def test_one_command(session, tmp_path, capsys):
    assert run(tmp_path, "-c", "1 + 1") == 0
    assert session.asked == ["1 + 1", "<closed>"]
    assert capsys.readouterr().out == "ran 1 + 1\n"


def test_one_command_that_fails(session, tmp_path):
    session.fails = ("1 / 0",)
    assert run(tmp_path, "-c", "1 / 0") == 1


def test_stacks(session, tmp_path):
    assert run(tmp_path, "--stacks") == 0
    assert session.asked == ["<stacks>", "<closed>"]


def test_a_script_runs_statement_by_statement_up_to_the_first_failure(session, tmp_path, monkeypatch):
    script = "x = 1\n\n@decorated\ndef f():\n    return x\nawait g(); h()\nboom()\nnever()\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(script))
    session.fails = ("boom()",)
    assert run(tmp_path) == 1
    assert session.asked == ["x = 1", "@decorated\ndef f():\n    return x", "await g()", "h()", "boom()", "<closed>"]


def test_a_script_that_is_no_python_runs_nothing(session, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("x = 1\ndef f(:\n"))
    assert run(tmp_path) == 2
    assert session.asked == ["<closed>"]
    assert "kata-shimd: read script: stdin: " in capsys.readouterr().err


@pytest.mark.parametrize("leave", [None, "exit", "quit()"])
def test_the_prompt(session, tmp_path, monkeypatch, leave):
    typed = iter(["for i in x:", "    print(i)", "", "!stacks", "y", leave])
    prompts = []

    def answer(prompt):
        prompts.append(prompt)
        line = next(typed)
        if line is None:
            raise EOFError
        return line

    monkeypatch.setattr("builtins.input", answer)
    monkeypatch.setattr(attach, "HISTORY", tmp_path / "state/history")
    assert attach.prompt(session) == 0
    assert session.asked == ["for i in x:\n    print(i)\n", "<stacks>", "y"]
    assert prompts == [">>> ", "... ", "... ", ">>> ", ">>> ", ">>> "]
    assert (tmp_path / "state/history").stat().st_mode & 0o777 == 0o600


def test_ctrl_c_at_the_prompt_forgets_the_line(session, tmp_path, monkeypatch):
    typed = iter(["def f():", KeyboardInterrupt, "1", EOFError])

    def answer(_prompt):
        line = next(typed)
        if isinstance(line, type):
            raise line
        return line

    monkeypatch.setattr("builtins.input", answer)
    monkeypatch.setattr(attach, "HISTORY", tmp_path / "history")
    assert attach.prompt(session) == 0
    assert session.asked == ["1"]


def test_ctrl_c_during_a_statement_interrupts_it(tmp_path, monkeypatch):
    class Slow(Recorder):
        def run(self, source, say):
            raise KeyboardInterrupt

        def interrupt(self):
            self.asked.append("<interrupt>")

        def finish(self, say):
            self.asked.append("<finished>")
            return False

    typed = iter(["await forever()", "exit"])
    monkeypatch.setattr("builtins.input", lambda _prompt: next(typed))
    monkeypatch.setattr(attach, "HISTORY", tmp_path / "history")
    session = Slow()
    assert attach.prompt(session) == 0
    assert session.asked == ["<interrupt>", "<finished>"]


@pytest.mark.parametrize(
    ("source", "more"),
    [
        ("x = 1", False),
        ("if x:", True),
        ("if x:\n    y", True),
        ("if x:\n    y\n", False),
        ("await x", False),
        ("def f(:", False),
        ("!stacks", False),
        ("(", True),
        ("'\\0", False),
    ],
)
def test_where_a_statement_ends(source, more):
    assert attach.unfinished(source) is more


def test_completion_is_the_daemons(session, tmp_path, monkeypatch):
    monkeypatch.setattr(attach, "HISTORY", tmp_path / "history")
    line = attach._Readline(session.complete)
    assert [line._completer("pod.", 0), line._completer("pod.", 1)] == ["pod.xyz", None]


# --- qmp -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "command"),
    [("query-status\n", ("query-status", {})), ('a {"b": [1]} ', ("a", {"b": [1]})), ("a  {}", ("a", {}))],
)
def test_a_line_is_a_command(line, command):
    assert qmp.parse(line) == command


@pytest.mark.parametrize("line", ["a {", "a 3", "a []"])
def test_a_line_that_is_none(line):
    with pytest.raises(InvalidArgument):
        qmp.parse(line)


def test_qmp_without_qemu_is_said_so(tmp_path, capsys):
    write_ledger(tmp_path)
    assert cli.main(["qmp", POD, "query-status", "--run-dir", str(tmp_path)]) == 1
    assert "it has no running QEMU" in capsys.readouterr().err


async def test_a_monitor_that_is_not_there_is_said_so(tmp_path):
    with pytest.raises(Unavailable, match="connect to QEMU"):
        await qmp.converse(str(tmp_path / "none"), iter([]))
