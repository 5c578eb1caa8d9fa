"""The monitor for people, against a monitor that means them no good: QEMU may be the guest's by now."""

import asyncio
import json

from kata_shimd.cli import qmp
from kata_shimd.cli.output import FAILED, OK

GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}, "capabilities": []}}


async def answers(path, *replies):
    """Serve one client: the greeting, its capabilities, then each of ``replies`` to a command; what `converse` came to."""
    left = [{"return": {}}, *replies]

    async def serve(reader, writer):
        writer.write(json.dumps(GREETING).encode() + b"\n")
        while line := await reader.read(1 << 16):  # one at a time, and nothing says where it ends
            asked = {key: value for key, value in json.loads(line).items() if key == "id"}
            writer.write(json.dumps({**left.pop(0), **asked}).encode() + b"\n")
        writer.close()

    async with await asyncio.start_unix_server(serve, path):
        return await qmp.converse(str(path), iter([("query-status", {})] * len(replies)))


async def test_an_answer_is_shown_as_json(tmp_path, capsys):
    assert await answers(tmp_path / "s", {"return": {"status": "running\x1b[2J"}}) == OK
    assert capsys.readouterr().out == '{\n  "status": "running\\u001b[2J"\n}\n'


async def test_an_error_moves_no_terminal(tmp_path, capsys):
    error = {"error": {"class": "GenericError", "desc": "no\x1b[2J\nkata-shimd: all is well"}}
    assert await answers(tmp_path / "s", error, {"return": {}}) == FAILED
    said = capsys.readouterr().err
    assert "\x1b" not in said and said.count("\n") == 1 and said.startswith("kata-shimd: query-status: no")
