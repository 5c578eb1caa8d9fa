"""``file://`` and ``binary://`` in place of FIFOs: ``ctr run --log-uri``, and what happens to a logger over its life."""

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest

from integration.harness.ctr import PATIENCE, Ctr
from integration.harness.sandbox import SANDBOX, TYPE
from integration.harness.waiting import eventually

#: What makes a container one of a pod that is there.
Notes = Mapping[str, str]

BOTH: Final = "echo to-out; echo to-err >&2"
#: A logger that copies what it gets, and tells how it was started and that it came to the end.
COPIES: Final = """\
#!/bin/sh
{ echo "$@"; env; } > "$2.started"
exec 5>&-
cat <&3 > "$2.out" &
exec 3<&-
cat <&4 > "$2.err"
wait
echo end > "$2.ended"
"""
#: One that never reads, and ends when it is told to.
DEAF: Final = """\
#!/bin/sh
trap 'echo told > "$2.ended"; exit 0' TERM
exec 5>&-
while :; do sleep 0.1; done
"""
#: One that is ready, and gone.
GONE: Final = "#!/bin/sh\nexec 5>&-\n"


@pytest.fixture(scope="module")
def of_pod(ctr: Ctr) -> Iterator[Notes]:
    """A machine is booted once, except where a pod's own end is looked at."""
    ctr.start("uris", "sh", "-c", "while :; do sleep 86400; done", annotations={TYPE: "sandbox", SANDBOX: "uris"})
    yield {TYPE: "container", SANDBOX: "uris"}
    ctr.remove("uris")


@pytest.fixture
def place(ctr: Ctr, name: str) -> Path:
    """A directory below the test machine's own, which goes with it."""
    made = ctr.containerd.host.root / f"io-{name}"
    made.mkdir()
    return made


def logger(place: Path, script: str) -> str:
    """The URI of a program, which is told to write beside itself."""
    program = place / "logger"
    program.write_text(script)
    program.chmod(0o755)
    return f"binary://{program}?to={place / 'log'}"


def run(ctr: Ctr, name: str, script: str, uri: str, notes: Notes | None = None) -> None:
    ctr.run(name, "sh", "-c", script, options=["--log-uri", uri], annotations=notes).ok()


def test_a_file_is_made_with_its_parents_and_takes_both_streams(
    ctr: Ctr, of_pod: Notes, name: str, place: Path
) -> None:
    file = place / "a" / "b c" / "log"
    run(ctr, name, BOTH, f"file://{place}/a/b%20c/log", of_pod)
    assert sorted(file.read_text().splitlines()) == ["to-err", "to-out"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o755


def test_a_file_is_appended_to(ctr: Ctr, of_pod: Notes, name: str, place: Path) -> None:
    file = place / "log"
    file.write_text("before\n")
    for number in (1, 2):
        run(ctr, f"{name}-{number}", f"echo run {number}", f"file://{file}", of_pod)
    assert file.read_text() == "before\nrun 1\nrun 2\n"


def test_a_file_takes_more_than_a_pipe_holds(ctr: Ctr, of_pod: Notes, name: str, place: Path) -> None:
    file = place / "log"
    run(ctr, name, "head -c 3000000 /dev/zero | tr '\\0' x", f"file://{file}", of_pod)
    assert file.read_bytes() == b"x" * 3_000_000


def test_an_exec_has_a_file_of_its_own(ctr: Ctr, of_pod: Notes, name: str, place: Path) -> None:
    file = place / "log"
    ctr.exec(of_pod[SANDBOX], name, "sh", "-c", BOTH, options=["--log-uri", f"file://{file}"]).ok()
    assert sorted(file.read_text().splitlines()) == ["to-err", "to-out"]


def test_a_logger_gets_both_streams_its_words_and_two_variables(
    ctr: Ctr, of_pod: Notes, name: str, place: Path
) -> None:
    run(ctr, name, BOTH, logger(place, COPIES), of_pod)
    eventually("the logger's end", (place / "log.ended").exists, within=PATIENCE)
    assert (place / "log.out").read_text() == "to-out\n"
    assert (place / "log.err").read_text() == "to-err\n"
    words, *variables = (place / "log.started").read_text().splitlines()
    assert words == f"to {place / 'log'}"
    of_the_shell = {"PWD", "OLDPWD", "_", "SHLVL"}
    told = {line for line in variables if line.partition("=")[0] not in of_the_shell}
    assert told == {f"CONTAINER_ID={name}", f"CONTAINER_NAMESPACE={ctr.namespace}"}


def test_a_logger_gets_all_of_much(ctr: Ctr, of_pod: Notes, name: str, place: Path) -> None:
    """More than pipes hold, written just before the end."""
    run(ctr, name, "head -c 3000000 /dev/zero | tr '\\0' x", logger(place, COPIES), of_pod)
    eventually("the logger's end", (place / "log.ended").exists, within=PATIENCE)
    assert (place / "log.out").read_bytes() == b"x" * 3_000_000


def test_nothing_starts_before_the_logger_is_ready(ctr: Ctr, of_pod: Notes, name: str, place: Path) -> None:
    """It makes itself ready only once a FIFO was written to, and until then there is no container."""
    gate = place / "gate"
    os.mkfifo(gate)
    waits = COPIES.replace("exec 5>&-", f"cat {gate} > /dev/null\nexec 5>&-")
    client = ctr.spawn(
        *ctr.run_words(name, "echo", "up", options=["--rm", "--log-uri", logger(place, waits)], annotations=of_pod)
    )
    try:
        eventually("the logger's start", (place / "log.started").exists, within=PATIENCE)
        assert name not in ctr.tasks()
        gate.write_bytes(b"go")
        assert client.wait(PATIENCE) == 0
    finally:
        client.kill()
        client.communicate()
    eventually("the logger's end", (place / "log.ended").exists, within=PATIENCE)
    assert (place / "log.out").read_text() == "up\n"


def test_a_logger_that_reads_nothing_is_told_to_end(ctr: Ctr, name: str, place: Path) -> None:
    run(ctr, name, "echo up", logger(place, DEAF))
    eventually("the logger's end", (place / "log.ended").exists, within=PATIENCE)
    assert (place / "log.ended").read_text() == "told\n"


def test_a_logger_that_dies_takes_nothing_along(ctr: Ctr, of_pod: Notes, name: str, place: Path) -> None:
    run(ctr, name, "head -c 1000000 /dev/zero; exit 0", logger(place, GONE), of_pod)


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("gopher://example/1", "unknown scheme"),
        ("binary:///no/such/logger", "/no/such/logger"),
        ("file:///proc/version/log", "/proc/version"),
    ],
    ids=["scheme", "logger", "file"],
)
@pytest.mark.vm
def test_what_cannot_be_is_refused_by_name(ctr: Ctr, of_pod: Notes, name: str, uri: str, said: str) -> None:
    done = ctr.run(name, "true", options=["--log-uri", uri], annotations=of_pod)
    ctr.remove(name)
    assert done.code != 0
    assert said in done.err
