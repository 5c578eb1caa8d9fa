"""The daemon's command line and its gate."""

import logging
import os
import socket
from pathlib import Path

import pytest

from kata_shimd import daemon
from kata_shimd.daemon import Arguments, parse
from kata_shimd.errors import InvalidArgument

WORDS = "--run-dir /r --pod-dir /r/pods/h --namespace n --id i --address /c.sock --bundle /b --launcher /l"
ARGUMENTS = Arguments(Path("/r"), Path("/r/pods/h"), "n", "i", "/c.sock", Path("/b"), Path("/l"), debug=False)


def test_what_the_launcher_says():
    assert parse(WORDS.split()) == ARGUMENTS
    said = parse([*WORDS.split(), "--debug", "--check", "7"])
    assert (said.debug, said.check) == (True, 7)


def test_a_value_may_look_like_anything():
    words = ["--id" if word == "--id" else word for word in WORDS.split()]
    words[words.index("i")] = "--debug"
    said = parse(words)
    assert (said.sandbox_id, said.debug) == ("--debug", False)


def test_what_another_daemon_is_started_with_is_understood():
    argv = ARGUMENTS.argv("/python", "/l")
    assert argv[:4] == ["/python", "-I", "-m", "kata_shimd.daemon"]
    assert parse(argv[4:]) == ARGUMENTS


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        ("", "missing"),
        (WORDS.replace("--bundle /b", ""), "--bundle: missing"),
        (f"{WORDS} --colour red", "--colour: unknown"),
        (f"{WORDS} extra", "extra: unknown"),
        (f"{WORDS} --check", "--check: no value"),
        (f"{WORDS} --check x", "'x' is no descriptor"),
    ],
)
def test_what_is_refused(words, cause):
    with pytest.raises(InvalidArgument, match=cause):
        parse(words.split())


def test_words_that_are_wrong_are_one_line_and_an_exit_after_the_gate(capsys):
    passed = []
    with pytest.raises(SystemExit) as end:
        daemon.main(["--colour"], lambda: passed.append(True))
    assert (end.value.code, passed) == (2, [True])
    assert capsys.readouterr().err == "read command line: --colour: unknown\n"


def test_a_configuration_that_is_wrong_is_told_after_the_gate_and_nothing_was_made(tmp_path, monkeypatch, capfd):
    """The launcher reads why only when it has let us go; it undoes what is on record, which must be all there is."""
    (bundle := tmp_path / "b").mkdir()
    (bundle / "config.json").write_text('{"ociVersion": "1.0.2"}')
    (conf := tmp_path / "configuration.toml").write_text("[hypervisor.qemu]\ndefault_vcpus = 'many'\n")
    ready = os.pipe()
    bootstrap = os.memfd_create("bootstrap")
    there = set(tmp_path.rglob("*"))
    seen = []
    root, shown = logging.getLogger(), logging.raiseExceptions
    before = root.handlers[:], root.level
    with socket.socket() as listener:
        fds = {"listen": listener.fileno(), "ready": ready[1], "bootstrap": bootstrap}
        monkeypatch.setattr(daemon.fds, "adopt", lambda _: fds)
        monkeypatch.setenv("KATA_CONF_FILE", str(conf))
        words = ["--run-dir", tmp_path, "--pod-dir", tmp_path / "p", "--bundle", bundle, "--launcher", "/l"]
        argv = [*map(str, words), "--namespace", "n", "--id", "i", "--address", "a"]
        with pytest.raises(SystemExit) as end:
            daemon.main(argv, lambda: seen.append(set(tmp_path.rglob("*"))))
    root.handlers[:], root.level = before
    logging.raiseExceptions = shown
    assert end.value.code == 1
    assert seen and all(found == there for found in seen)
    os.close(ready[0])
    os.close(ready[1])
    os.close(bootstrap)
    assert "default_vcpus" in capfd.readouterr().err
