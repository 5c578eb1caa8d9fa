"""A person at a terminal: ``ctr run --tty`` and ``ctr task exec --tty``."""

import pytest

from integration.harness.ctr import PATIENCE, Ctr
from integration.harness.terminal import Terminal


def test_run_with_a_terminal(ctr: Ctr, name: str) -> None:
    words = ctr.argv(*ctr.run_words(name, "sh", options=["--rm", "--tty"]))
    with Terminal(ctr.containerd.host, words) as terminal:
        terminal.expect("# ", within=PATIENCE)
        terminal.send("tty && echo $((40 + 2))\n")
        terminal.expect(r"/dev/[a-z/0-9]+\s+42\s", within=PATIENCE)
        terminal.send("exit 9\n")
        assert terminal.wait(within=PATIENCE) == 9


@pytest.mark.parametrize("mode", ["run", "exec"])
def test_resize(ctr: Ctr, name: str, running: str, mode: str) -> None:
    """The size the client has at the start, and every later one, reaches the process."""
    shell = ("sh", "-c", "trap 'stty size' WINCH; stty size; while :; do sleep 0.1; done")
    if mode == "run":
        words = ctr.run_words(name, *shell, options=["--rm", "--tty"])
    else:
        words = ["task", "exec", "--exec-id", name, "--tty", running, *shell]
    with Terminal(ctr.containerd.host, ctr.argv(*words), rows=30, cols=100) as terminal:
        terminal.expect("30 100", within=PATIENCE)
        terminal.resize(50, 132)
        terminal.expect("50 132", within=PATIENCE)
        if mode == "run":
            ctr.kill(name).ok()
        else:
            ctr.kill(running, "SIGKILL", "--exec-id", name).ok()
        assert terminal.wait(within=PATIENCE) == 137


def test_typed_interrupt_reaches_the_foreground(ctr: Ctr, name: str, running: str) -> None:
    shell = ("sh", "-c", "trap 'exit 33' INT; echo up; while :; do sleep 0.1; done")
    words = ctr.argv("task", "exec", "--exec-id", name, "--tty", running, *shell)
    with Terminal(ctr.containerd.host, words) as terminal:
        terminal.expect("up", within=PATIENCE)
        terminal.send("\x03")
        assert terminal.wait(within=PATIENCE) == 33
