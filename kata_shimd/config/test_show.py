"""The text forms and the verbs around them."""

import argparse
import json
import re
from pathlib import Path

import pytest

from kata_shimd.config import cli, load
from kata_shimd.config.show import as_json, as_toml
from kata_shimd.errors import InvalidArgument

KATA = Path(__file__).parent / "testdata" / "kata-qemu.toml"
BODIES = {
    "nothing": "",
    "guest": '[hypervisor.qemu]\nkernel = "/k"\nimage = "/i \\"q\\" \\\\ é"\n',
    "guest_dir": '[shimd]\nguest_dir = "/g"\n',
    "numbers": "[hypervisor.qemu]\ndefault_vcpus = 1.25\n[agent.kata]\nlaunch_process_timeout = 3\ndial_timeout = 86400\n",
    "kata": KATA.read_text(),
}


@pytest.mark.parametrize("text", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("origin", [False, True])
def test_shown_toml_loads_as_the_same_configuration(text, origin):
    loaded = load(None, text.encode(), None, {}, search=())
    shown = as_toml(loaded, origin=origin)
    assert load(None, shown.encode(), None, {}, search=()).config == loaded.config


def test_json_has_values_and_on_demand_origins_by_table():
    loaded = load(None, b"[runtime]\nenable_debug = true\n", None, {}, search=())
    answer = json.loads(as_json(loaded, origin=True))
    assert answer["schema_version"] == 1
    assert answer["config"]["runtime"]["enable_debug"] is True
    assert answer["origin"]["runtime"]["enable_debug"] == {"layer": "option", "where": "config_body", "line": 2}
    assert answer["origin"]["runtime"]["create_container_timeout"] == {"layer": "default"}
    assert "origin" not in json.loads(as_json(loaded))


@pytest.fixture
def run(capsys):
    """Runs the verb as the program would: exit code, stdout, stderr."""
    parser = argparse.ArgumentParser()
    cli.add_parser(parser.add_subparsers(required=True))

    def run(*arguments):
        args = parser.parse_args(["config", *map(str, arguments)])
        return args.run(args), *capsys.readouterr()

    return run


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text("[runtime]\nenable_debug = true\n")
    return path


def test_show_prints_toml_with_origins(run, file):
    code, out, err = run("show", "--origin", file)
    assert (code, err) == (0, "")
    assert f"enable_debug = true  # {file}:2" in out.splitlines()


def test_show_prints_json(run, file):
    code, out, _ = run("show", "-o", "json", file)
    assert code == 0
    assert json.loads(out)["files"] == [str(file)]


def test_show_takes_annotations(run, file):
    code, out, _ = run("show", "--annotation", "io.katacontainers.config.runtime.disable_guest_seccomp=0", file)
    assert code == 0
    assert "disable_guest_seccomp = false" in out


def test_show_says_on_stderr_what_is_wrong(run, file):
    file.write_text("[runtime]\nenable_debug = 3\nxyzzy = 1\n")
    code, out, err = run("show", file)
    assert (code, out) == (1, "")
    assert "enable_debug: must be true or false" in err


def test_show_warns_on_stderr(run, file):
    file.write_text("[runtime]\nenable_debg = true\n")
    code, out, err = run("show", file)
    assert code == 0
    assert "did you mean enable_debug?" in err
    assert "[runtime]" in out


def test_check_of_a_good_file_is_ok(run):
    code, out, err = run("check", KATA)
    assert (code, out, err) == (0, f"read {KATA}\nok\n", "")


def test_check_makes_errors_of_unknown_names_and_reports_all(run, file):
    file.write_text(
        "[runtime]\nenable_debg = true\ncreate_container_timeout = 0\n[hypervisor.qemu]\nseccompsandbox = 'off'\n"
    )
    code, out, _ = run("check", file)
    assert code == 1
    assert f"error: {file}:2: runtime.enable_debg: nobody knows this key; did you mean enable_debug?" in out
    assert f"error: {file}:3: runtime.create_container_timeout: 0 is not between" in out
    assert out.endswith("wrong\n")


def test_check_leaves_warnings_warnings(run, file):
    file.write_text("[hypervisor.qemu]\nseccompsandbox = 'off'\n")
    code, out, _ = run("check", file)
    assert code == 0
    assert f"warning: {file}:2: hypervisor.qemu.seccompsandbox: QEMU runs without" in out


def test_check_answers_in_json(run, file):
    file.write_text("[runtime]\nenable_debg = true\n")
    code, out, _ = run("check", "-o", "json", file)
    answer = json.loads(out)
    assert (code, answer["ok"], answer["schema_version"]) == (1, False, 1)
    assert answer["problems"] == [
        {
            "severity": "error",
            "key": "runtime.enable_debg",
            "origin": f"{file}:2",
            "what": "nobody knows this key",
            "hint": "did you mean enable_debug?",
        }
    ]


def test_check_of_the_host_fails_for_what_it_lacks(run, file):
    file.write_text('[hypervisor.qemu]\nkernel = "/nonexistent/k"\nimage = "/nonexistent/i"\n')
    code, out, _ = run("check", "--host", file)
    assert code == 1
    assert "fail: kernel: /nonexistent/k: no such file; set kernel and image\n" in out


def test_check_of_an_absent_file_is_wrong(run, tmp_path):
    code, out, _ = run("check", tmp_path / "absent.toml")
    assert code == 1
    assert "cannot be read: No such file" in out


@pytest.mark.parametrize("arguments", [(), ("sho",), ("show", "--annotation", "x"), ("check", "-o", "toml")])
def test_wrong_usage_is_2(run, arguments):
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    assert caught.value.code == 2


def test_environment_is_the_caller_s(file, capsys):
    args = argparse.Namespace(config_verb="show", file=None, annotation=[], output="toml", origin=False)
    assert cli.run(args, env_path=file) == 0
    assert capsys.readouterr().out.startswith(f"# {file}\n")


def test_file_of_the_command_line_wins_over_the_environment(file, tmp_path, capsys):
    args = argparse.Namespace(config_verb="show", file=file, annotation=[], output="toml", origin=False)
    assert cli.run(args, env_path=tmp_path / "absent.toml") == 0
    assert capsys.readouterr().out.startswith(f"# {file}\n")


def test_a_refusal_sends_to_the_check_of_the_very_file(tmp_path):
    path = tmp_path / "my file.toml"
    path.write_text("[hypervisor.qemu]\ndefault_vcpus = []\n")
    with pytest.raises(InvalidArgument, match=re.escape(f"see `kata-shimd config check '{path}'`")):
        load(path, b"", None, {})


def test_an_absent_file_is_not_called_defaults(run, tmp_path):
    _, said = run("check", str(tmp_path / "none.toml"))[:2]
    assert "built-in defaults" not in said
