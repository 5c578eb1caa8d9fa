"""The command line, on a store with a guest in it."""

import argparse
import json

import pytest

from kata_shimd.image import cli
from kata_shimd.image.store import Store


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "guest")
    for digest in ("aaaa", "bbbb"):
        with store.locked(), store.workspace() as work:
            (work / digest).mkdir()
            record = {"kernel_release": "6.1", "outputs": {"vmlinuz": {"size": 3 << 20}}}
            (work / digest / "manifest.json").write_text(json.dumps(record))
            store.publish(work / digest, digest)
            store.switch(digest)
    return store


@pytest.fixture
def kata_shimd(store, capsys):
    def call(*words):
        parser = argparse.ArgumentParser()
        cli.add_parser(parser.add_subparsers())
        args = parser.parse_args(["guest", *words, "--output", str(store.directory)])
        code = args.run(args)
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def test_ls_marks_the_current_guest(kata_shimd):
    code, out, _ = kata_shimd("ls")
    assert code == 0
    assert sorted(line.split()[:-1] for line in out.splitlines()) == [
        ["*", "bbbb", "6.1", "3", "MiB"],
        ["aaaa", "6.1", "3", "MiB"],
    ]


def test_show_prints_the_record(kata_shimd, store):
    code, out, _ = kata_shimd("show")
    assert code == 0
    assert json.loads(out)["path"] == str(store.directory / "bbbb")
    assert json.loads(kata_shimd("show", "aa")[1])["current"] is False


def test_rm_removes(kata_shimd, store):
    assert kata_shimd("rm", "aaaa")[:2] == (0, "aaaa\n")
    assert [guest.digest for guest in store.guests()] == ["bbbb"]


def test_a_failure_is_one_line_and_code_1(kata_shimd):
    code, out, err = kata_shimd("rm", "bbbb")
    assert (code, out) == (1, "")
    assert (
        err == "kata-shimd: remove guest: bbbb: it is the current one; build or choose another one first, or --force\n"
    )


def test_build_names_a_manifest_that_is_not_there(kata_shimd):
    code, _, err = kata_shimd("build", "--manifest", "/nonexistent/manifest.toml")
    assert code == 1
    assert "read guest manifest: /nonexistent/manifest.toml: No such file or directory" in err
