"""virtiofsd's two dialects: how they are told apart, and their command lines against golden files."""

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest

from kata_shimd.errors import HostFailed, InvalidArgument
from kata_shimd.vm.spec import CacheMode, ShareSpec
from kata_shimd.vm.test_argv import GOLDEN, lines
from kata_shimd.vm.virtiofsd import Dialect, Server, argv, dialect, find

SHARE = ShareSpec(programs=(Path("/usr/libexec/virtiofsd"),), cache=CacheMode.AUTO)
EXPORT = Path("/run/kata-shimd/pods/0123456789abcdef0123/export")
C_SAYS = "virtiofsd version 7.2.22 (Debian 1:7.2+dfsg-7)\nusing FUSE kernel interface version 7.36"


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (C_SAYS, Dialect.C),
        ("virtiofsd 1.10.0", Dialect.RUST),
        ("virtiofsd 1.13.2-dev\n", Dialect.RUST),
        ("virtiofsd", Dialect.C),
        ("", Dialect.C),
    ],
)
def test_the_version_tells_the_dialect(said, kind):
    assert dialect(said) is kind


CASES = {
    "virtiofsd-c": (Dialect.C, SHARE, False),
    "virtiofsd-c-debug": (Dialect.C, replace(SHARE, cache=CacheMode.NEVER, xattr=True, threads=4), True),
    "virtiofsd-rust": (Dialect.RUST, SHARE, False),
    "virtiofsd-rust-debug": (
        Dialect.RUST,
        replace(SHARE, cache=CacheMode.METADATA, xattr=True, extra_args=("--inode-file-handles=prefer",)),
        True,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_command_line(case):
    kind, share, debug = CASES[case]
    text = lines(argv(share.programs[0], kind, share, EXPORT, 9, debug=debug))
    path = GOLDEN / f"{case}.argv"
    if os.environ.get("KATA_SHIMD_WRITE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


def test_every_golden_file_is_of_a_case():
    assert {file.stem for file in GOLDEN.glob("virtiofsd-*.argv")} == set(CASES)


def test_the_c_daemon_has_no_metadata_mode():
    with pytest.raises(InvalidArgument, match="cache=metadata"):
        argv(Path("/v"), Dialect.C, replace(SHARE, cache=CacheMode.METADATA), EXPORT, 9, debug=False)


def script(path, body):
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def test_the_first_candidate_that_can_be_executed_is_taken(tmp_path):
    plain = tmp_path / "plain"
    plain.touch(mode=0o644)
    program = script(tmp_path / "program", "exit 0")
    assert find([tmp_path / "missing", tmp_path, plain, program]) == program


def test_no_candidate_names_all_that_were_looked_at(tmp_path):
    with pytest.raises(HostFailed, match=f"{tmp_path}/a, {tmp_path}/b: not found.*install virtiofsd"):
        find([tmp_path / "a", tmp_path / "b"])


async def test_probe_asks_the_program(tmp_path):
    program = script(tmp_path / "v", "[ $1 = --version ] && echo virtiofsd 1.10.0")
    server = await Server.probe(ShareSpec(programs=(program,)), timeout=10)
    assert (server.program, server.dialect) == (program, Dialect.RUST)


async def test_a_program_that_fails_says_what_it_said(tmp_path):
    program = script(tmp_path / "v", "echo no such library >&2; exit 3")
    with pytest.raises(HostFailed, match="no such library"):
        await Server.probe(ShareSpec(programs=(program,)), timeout=10)


async def test_a_program_that_hangs_is_bounded(tmp_path):
    program = script(tmp_path / "v", "exec sleep 100")
    async with asyncio.timeout(5):
        with pytest.raises(HostFailed, match="no answer"):
            await Server.probe(ShareSpec(programs=(program,)), timeout=0.2)
