"""The command: verbs, exit codes, and what goes to which stream."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kata_shimd import __version__, cli
from kata_shimd.cli import check as check_verb
from kata_shimd.cli import ps, upgrading
from kata_shimd.debug import check, pods
from kata_shimd.debug.testing import BOOTED, DAEMON, POD, SUCCESSOR, event, write_journal, write_ledger

OTHER = "fedcba98765432100000"
SHUTDOWN = event("rpc", rpc="Shutdown", ms=0.1)
PANIC = "Kernel panic - not syncing: \x1b[31mno init\n"
DIED = event("vm-ended", cause="the guest rebooted", expected=False, status="0", stderr="qemu: bye\n", console=PANIC)


def run(*words):
    """The exit code, argparse's included."""
    try:
        return cli.main([str(word) for word in words])
    except SystemExit as end:
        return end.code


def fresh(*words):
    """In an interpreter of its own: (exit code, stdout, names of imported modules)."""
    code = (
        "import sys\nfrom kata_shimd.cli import main\ntry:\n    code = main(sys.argv[1:])\n"
        "except SystemExit as end:\n    code = end.code\n"
        "print(*sorted(sys.modules), file=sys.stderr)\nsys.exit(code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, set(done.stderr.split())


# --- the command -----------------------------------------------------------------------------------------------------


def test_help_names_every_verb_and_imports_none():
    code, said, modules = fresh("--help")
    assert code == 0
    assert all(f"    {verb.name} " in said for verb in cli.VERBS)
    assert not {verb.module for verb in cli.VERBS} & modules
    assert not {"asyncio", "json", "betterproto2"} & modules


@pytest.mark.parametrize("verb", [verb.name for verb in cli.VERBS])
def test_every_verb_explains_itself(verb, capsys):
    assert run(verb, "--help") == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"usage: kata-shimd {verb}") and not said.err


@pytest.mark.parametrize("verb", [verb for verb in cli.VERBS if verb.name in ("ps", "why", "logs", "version")])
def test_looking_at_pods_needs_no_wire_and_no_vm(verb):
    _, _, modules = fresh(verb.name, "--help")
    assert not {"kata_shimd.wire", "kata_shimd.vm", "qemu", "betterproto2"} & modules


@pytest.mark.parametrize("words", [(), ("nonsense",), ("why",), ("ps", "--nonsense"), ("logs", "x", "-n", "-1")])
def test_wrong_usage_is_2_on_stderr(words, capsys):
    assert run(*words) == 2
    said = capsys.readouterr()
    assert "usage: kata-shimd" in said.err and not said.out


def test_a_reader_that_leaves_is_no_traceback(tmp_path):
    for number in range(2000):
        (tmp_path / "journal").mkdir(exist_ok=True)
        (tmp_path / "journal" / f"{number:020}.jsonl").touch()
    shell = subprocess.Popen(
        [sys.executable, "-m", "kata_shimd.cli", "ps", "-aq", "--run-dir", tmp_path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert shell.stdout is not None and shell.stderr is not None
    shell.stdout.close()
    assert (shell.wait(), shell.stderr.read()) == (1, b"")
    shell.stderr.close()


def test_version(capsys):
    assert run("version", "-o", "json") == 0
    assert json.loads(capsys.readouterr().out)["versions"]["kata-shimd"] == __version__
    assert run("version") == 0
    assert f"kata-shimd    {__version__}\n" in capsys.readouterr().out


# --- pods ------------------------------------------------------------------------------------------------------------


def test_no_such_pod_is_4(tmp_path, capsys):
    assert run("why", "x", "--run-dir", tmp_path) == 4
    said = capsys.readouterr()
    assert said.err.startswith("kata-shimd: find pod: x: ") and not said.out


def test_several_pods_are_2_and_listed(tmp_path, capsys):
    write_ledger(tmp_path, sandbox_id="web-1")
    write_ledger(tmp_path, pod=OTHER, sandbox_id="web-2")
    assert run("logs", "web", "--run-dir", tmp_path) == 2
    said = capsys.readouterr()
    assert f"  {POD}  web-1  k8s.io  starting\n" in said.err and OTHER in said.err and not said.out


def test_why_of_a_dead_pod(tmp_path, capsys):
    write_journal(tmp_path, [*BOOTED, DIED])
    assert run("why", "sandbox-1", "--run-dir", tmp_path) == 0
    sentence = r"The guest's kernel panicked: Kernel panic - not syncing: \x1b[31mno init."
    assert capsys.readouterr().out.endswith(f"\n{sentence}\n")
    assert run("why", POD[:5], "--run-dir", tmp_path, "-o", "json") == 0
    assert json.loads(capsys.readouterr().out)["verdict"]["rule"] == "guest-panic"


def test_the_run_directory_comes_from_the_environment(tmp_path, capsys, monkeypatch):
    write_ledger(tmp_path)
    monkeypatch.setenv("KATA_SHIMD_RUN_DIR", str(tmp_path))
    assert run("ps", "-q") == 0
    assert capsys.readouterr().out == f"{POD}\n"


def test_ps_shows_the_living_and_with_all_the_dead(tmp_path, capsys):
    scope = {"op": "plan", "n": 1, "scope": "container/c1", "kind": "dir", "path": "/x"}
    write_ledger(tmp_path, scope, sandbox_id="s" * 64)
    write_journal(tmp_path, BOOTED, pod=OTHER)
    assert run("ps", "--run-dir", tmp_path) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.split() == ["POD", "SANDBOX", "NAMESPACE", "PHASE", "DAEMON", "QEMU", "CONTAINERS", "AGE"]
    assert row.split()[:7] == [POD[:12], "s" * 12, "k8s.io", "starting", "-", "-", "c1"]
    assert run("ps", "--all", "--no-trunc", "--run-dir", tmp_path) == 0
    said = capsys.readouterr().out
    assert "s" * 64 in said and OTHER in said


def test_ps_counts_the_containers_that_make_no_line(tmp_path, capsys):
    scopes = [{"op": "plan", "n": n, "scope": f"container/c{n}", "kind": "dir", "path": "/x"} for n in range(1, 8)]
    write_ledger(tmp_path, *scopes)
    assert run("ps", "--run-dir", tmp_path) == 0
    assert "  c1,c2,c3,c4,3 more  " in capsys.readouterr().out
    assert run("ps", "--no-trunc", "--run-dir", tmp_path) == 0
    assert "c1,c2,c3,c4,c5,c6,c7" in capsys.readouterr().out


def test_ps_as_json(tmp_path, capsys):
    write_journal(tmp_path, [DAEMON])
    assert run("ps", "-a", "-o", "json", "--run-dir", tmp_path) == 0
    assert json.loads(capsys.readouterr().out) == {
        "schema_version": 1,
        "pods": [
            {
                "hash": POD,
                "sandbox_id": "sandbox-1",
                "namespace": "k8s.io",
                "address": "",
                "phase": "ended",
                "processes": [],
                "containers": [],
                "began": "2025-06-15T15:06:40.000000000Z",
            }
        ],
    }


@pytest.mark.parametrize(
    ("seconds", "shown"), [(-5, "0s"), (59, "59s"), (60, "1m"), (61, "1m1s"), (3600, "1h"), (90061, "1d1h")]
)
def test_age(seconds, shown):
    assert ps.age(seconds) == shown


# --- logs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "file"),
    [
        ((), "console.log"),
        (("--console",), "console.log"),
        (("--qemu",), "qemu.stderr"),
        (("--daemon",), "daemon.stderr"),
        (("--virtiofsd",), "virtiofsd.stderr"),
    ],
)
def test_logs_of_a_live_pod_are_its_files(tmp_path, capsys, options, file):
    (write_ledger(tmp_path).parent / file).write_bytes(b"one\ntwo \x1b[2J\xff\nthree\n")
    assert run("logs", POD, *options, "--run-dir", tmp_path) == 0
    assert capsys.readouterr() == ("one\ntwo \\x1b[2J\\xff\nthree\n", "")
    assert run("logs", POD, *options, "-n", "1", "--run-dir", tmp_path) == 0
    assert capsys.readouterr().out == "three\n"
    assert run("logs", POD, *options, "-n", "0", "--run-dir", tmp_path) == 0
    assert capsys.readouterr().out == ""


def test_logs_of_a_dead_pod_are_what_its_journal_kept(tmp_path, capsys):
    write_journal(tmp_path, [*BOOTED, DIED])
    assert run("logs", POD, "--qemu", "--run-dir", tmp_path) == 0
    said = capsys.readouterr()
    assert said.out == "qemu: bye\n" and "journal" in said.err


def test_logs_that_were_not_kept_are_3(tmp_path, capsys):
    write_journal(tmp_path, [*BOOTED])
    assert run("logs", POD, "--virtiofsd", "--run-dir", tmp_path) == 3
    said = capsys.readouterr()
    assert not said.out and "ended" in said.err


def test_a_link_in_a_pods_directory_is_not_followed(tmp_path, capsys):
    (write_ledger(tmp_path).parent / "console.log").symlink_to("/etc/passwd")
    assert run("logs", POD, "--run-dir", tmp_path) == 1
    assert not capsys.readouterr().out


# --- check -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verdict", "code"), [(check.Verdict.FAIL, 1), (check.Verdict.PASS, 0), (check.Verdict.SKIP, 0)]
)
def test_check_fails_with_any_failure(monkeypatch, capsys, tmp_path, verdict, code):
    rows = {"one": lambda scene: iter([check.Row("one", verdict, str(scene.run_dir), "mend it")])}
    monkeypatch.setattr(check_verb, "CHECKS", rows)
    assert run("check", "-o", "json", "--run-dir", tmp_path) == code
    answer = json.loads(capsys.readouterr().out)
    assert answer == {
        "schema_version": 1,
        "ok": code == 0,
        "checks": [{"name": "one", "verdict": str(verdict), "why": str(tmp_path), "fix": "mend it"}],
    }


@pytest.mark.parametrize(
    ("argv", "status", "said"),
    [
        ((sys.executable, "-c", "print('out'); import sys; print('err', file=sys.stderr)"), 0, "out\nerr\n"),
        ((sys.executable, "-c", "raise SystemExit(3)"), 3, ""),
        (("/no/such/program",), None, os.strerror(2)),
    ],
)
def test_asking_a_program(argv, status, said):
    assert check_verb.ask(argv) == check.Answer(status, said)


def test_a_program_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr(check_verb, "ASK_SECONDS", 0.05)
    answer = check_verb.ask((sys.executable, "-c", "import signal; signal.pause()"))
    assert answer.status is None and "no answer" in answer.said


def test_the_devices_asked_for_are_those_of_qemus_command_line():
    from kata_shimd.pod.network import Nic
    from kata_shimd.vm.accel import Accelerator
    from kata_shimd.vm.argv import argv
    from kata_shimd.vm.spec import ShareSpec, VmSpec, Vsock, Wires

    spec = VmSpec(
        name="s", uuid="u", qemu=Path("q"), accelerator=Accelerator.TCG, kernel=Path("k"), image=Path("i"),
        share=ShareSpec(programs=()), nics=(Nic(id="t", mac="m", fds=(9,)),),
    )  # fmt: skip
    wires = Wires(monitor=3, debug_monitor=4, console=5, share=6, agent=7, vsock=Vsock(cid=3, vhost_fd=8))
    words = argv(spec, wires)
    used = {words[index + 1].partition(",")[0] for index, word in enumerate(words) if word == "-device"}
    assert used == {*check_verb.DEVICES, check_verb.VSOCK_DEVICE}


def test_the_longest_socket_is_the_one_that_is_checked_for():
    from kata_shimd.debug.check_host import LONGEST_SOCKET
    from kata_shimd.vm import sockets

    names = [value for name, value in vars(sockets).items() if name.isupper() and str(value).endswith(".sock")]
    assert Path(LONGEST_SOCKET).name == max([*names, "shim.sock"], key=len)


# --- upgrade ---------------------------------------------------------------------------------------------------------


def test_upgrade_wants_to_know_whom(tmp_path, capsys):
    assert run("upgrade", "--run-dir", tmp_path) == 2
    assert run("upgrade", "x", "--all", "--run-dir", tmp_path) == 2
    assert capsys.readouterr().err.count("name pods, or say --all") == 2


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """This interpreter has a launcher beside it."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/containerd-shim-kata-v2").touch(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin/python3"))


def test_upgrade_of_nobody(installed, tmp_path, capsys):
    assert run("upgrade", "x", "--run-dir", tmp_path) == 4
    assert run("upgrade", "--all", "--run-dir", tmp_path, "-o", "json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["schema_version"], answer["installed"], answer["pods"]) == (1, __version__, [])


def test_upgrade_of_a_pod_that_has_ended(installed, tmp_path, capsys):
    write_journal(tmp_path, [DAEMON])
    assert run("upgrade", POD, "--run-dir", tmp_path) == 3
    assert "this pod has ended; kata-shimd why" in capsys.readouterr().err


def test_upgrade_of_a_pod_whose_daemon_is_not_reached(installed, tmp_path, capsys):
    write_ledger(tmp_path)
    assert run("upgrade", POD, "--run-dir", tmp_path) == 1
    row = capsys.readouterr().out.splitlines()[1].split(maxsplit=5)
    assert (row[0], row[4]) == (POD[:12], "refused")
    assert row[5].startswith("reach daemon: ")


def test_upgrade_of_a_pod_that_ends_meanwhile_is_no_failure(installed, tmp_path, capsys):
    write_ledger(tmp_path)
    write_journal(tmp_path, [DAEMON, ("daemon-ended", {})])
    assert run("upgrade", POD, "--run-dir", tmp_path) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[4] == "ended"


def test_upgrade_of_a_pod_whose_name_ended_before_and_which_is_not_reached(installed, tmp_path, capsys):
    write_ledger(tmp_path)
    write_journal(tmp_path, [DAEMON, ("daemon-ended", {}), DAEMON])
    assert run("upgrade", POD, "--run-dir", tmp_path) == 1
    assert capsys.readouterr().out.splitlines()[1].split()[4] == "refused"


@pytest.mark.parametrize(
    ("life", "ended"), [([SHUTDOWN], True), ([SHUTDOWN, DAEMON], False), ([SHUTDOWN, SUCCESSOR], True), ([], False)]
)
async def test_a_pod_that_was_told_to_end_and_of_which_nothing_is_left_has_ended(tmp_path, life, ended):
    """Its daemon may have been on its way out for another version's, and its keeper have done the rest."""
    write_journal(tmp_path, [DAEMON, *life])
    assert await upgrading._has_ended(pods.load(tmp_path, POD)) is ended


def test_upgrade_from_where_nothing_is_installed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python3"))
    assert run("upgrade", "--all", "--run-dir", tmp_path) == 1
    assert "there is no launcher beside this command's interpreter" in capsys.readouterr().err
