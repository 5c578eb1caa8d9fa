"""The table of status codes of `containerd.md` §6.1, row by row, on a real pod, over the shim's own socket and under both names.

Each walk takes one container from nothing to deleted; a row is a call, the codes it must answer, and what relies on them.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from integration.differential.bundle import spec
from integration.differential.steps import Program
from integration.harness import pods
from integration.harness import shim as raw
from integration.harness.ctr import Ctr
from integration.harness.sandbox import SANDBOX, TYPE
from integration.harness.scale import SCALE
from integration.harness.shim import NAMES, ShimSocket
from integration.harness.waiting import eventually
from kata_shimd.api import containerd_types
from kata_shimd.errors import Code

pytestmark = pytest.mark.vm

OK, NOT_FOUND, USED = Code.OK, Code.NOT_FOUND, Code.ALREADY_EXISTS
WRONG_STATE, INVALID = Code.FAILED_PRECONDITION, Code.INVALID_ARGUMENT
UNIMPLEMENTED: Final = Code.UNIMPLEMENTED
#: What stands for the walk's container in a row.
SELF: Final = "{self}"


@dataclass(frozen=True, slots=True)
class Row:
    """One call. ``fields`` beside the container's id; ``container`` where it is another's."""

    rpc: str
    code: Code
    fields: Mapping[str, Any] | None = None
    container: str = SELF

    def __str__(self) -> str:
        words = [f"{name}={value}" for name, value in (self.fields or {}).items() if name != "spec"]
        return " ".join([self.rpc, *words, self.code.name])


SLEEP: Final = raw.json_any(raw.PROCESS, raw.process("sleep", "86400"))
RESOURCES: Final = raw.json_any(raw.RESOURCES, {"cpu": {"shares": 512}})
KILL: Final = {"signal": 9}
E: Final = {"exec_id": "e"}
#: A container's life after its Create; and how often one id lives it.
LIFE: Final = (("Start", None), ("Kill", KILL), ("Wait", None), ("Delete", None))
AGAIN: Final = 3
NEW: Final = {"exec_id": "e", "spec": SLEEP}
NOBODY: Final = "nobody"

#: Every RPC but Create, with a request that would be right if there were such a container. Clients take it for already gone.
UNKNOWN_CONTAINER: Final = (
    *(Row(rpc, NOT_FOUND, None, NOBODY) for rpc in ("State", "Start", "Delete", "Pids", "Pause", "Resume")),
    *(Row(rpc, NOT_FOUND, None, NOBODY) for rpc in ("Checkpoint", "Wait", "Stats", "ResizePty")),
    Row("CloseIO", NOT_FOUND, {"stdin": True}, NOBODY),
    Row("Kill", NOT_FOUND, KILL, NOBODY),
    Row("Exec", NOT_FOUND, NEW, NOBODY),
    Row("Update", NOT_FOUND, {"resources": RESOURCES}, NOBODY),
    # containerd's reload asks for containers that a shim may have lost, and its Shutdown follows every Delete.
    Row("Connect", OK, None, NOBODY),
    Row("Shutdown", OK, None, NOBODY),
)
#: The daemon asks State before most RPCs about an exec.
UNKNOWN_EXEC: Final = (
    *(Row(rpc, NOT_FOUND, E) for rpc in ("State", "Start", "Delete", "Wait", "ResizePty")),
    Row("Kill", NOT_FOUND, {**E, **KILL}),
    Row("CloseIO", NOT_FOUND, {**E, "stdin": True}),
)
CREATED: Final = (
    Row("Create", USED, {"bundle": "/nowhere"}),
    Row("State", OK),
    Row("Exec", WRONG_STATE, NEW),
    Row("Pause", WRONG_STATE),
    Row("Resume", WRONG_STATE),
)
RUNNING: Final = (
    Row("Start", OK),
    Row("Start", WRONG_STATE),
    Row("Delete", WRONG_STATE),
    Row("Resume", WRONG_STATE),
    *UNKNOWN_EXEC,
    Row("Exec", INVALID, {"exec_id": "../e", "spec": SLEEP}),
    Row("Exec", INVALID, {"exec_id": "e", "spec": None}),
    Row("Exec", OK, NEW),
    Row("Exec", USED, NEW),
    Row("Kill", WRONG_STATE, {**E, **KILL}),
    Row("Start", OK, E),
    Row("Start", WRONG_STATE, E),
    Row("Delete", WRONG_STATE, E),
    Row("Kill", OK, {**E, **KILL}),
    Row("Wait", OK, E),
    Row("Kill", NOT_FOUND, {**E, **KILL}),
    Row("Delete", OK, E),
    *UNKNOWN_EXEC,
    Row("Update", OK, {"resources": RESOURCES}),
    Row("Update", INVALID),
    Row("Stats", OK),
    Row("Pids", OK),
    Row("Connect", OK),
    Row("CloseIO", OK, {"stdin": True}),
    Row("ResizePty", OK, {"width": 80, "height": 24}),
    Row("Checkpoint", UNIMPLEMENTED),
    Row("Kill", INVALID, {"signal": 65}),
)
PAUSED: Final = (
    Row("Exec", OK, NEW),
    Row("Pause", OK),
    Row("Pause", WRONG_STATE),
    Row("Exec", WRONG_STATE, {"exec_id": "f", "spec": SLEEP}),
    Row("Checkpoint", UNIMPLEMENTED),
    Row("Resume", OK),
    Row("Resume", WRONG_STATE),
)
STOPPED: Final = (
    Row("Kill", OK, KILL),
    Row("Wait", OK),
    # CRI's stop ignores NotFound only, and a Wait may come late.
    Row("Kill", NOT_FOUND, KILL),
    Row("Kill", NOT_FOUND, {**KILL, "all": True}),
    Row("Wait", OK),
    Row("State", OK),
    # CRI tells an OOM kill from the counters after the exit.
    Row("Stats", OK),
    Row("Start", WRONG_STATE),
    Row("Start", WRONG_STATE, E),
    Row("Exec", WRONG_STATE, {"exec_id": "f", "spec": SLEEP}),
    Row("Pause", WRONG_STATE),
)
DELETED: Final = (
    Row("Delete", OK),
    Row("Delete", NOT_FOUND),
    Row("State", NOT_FOUND),
    Row("Kill", NOT_FOUND, KILL),
    Row("Wait", NOT_FOUND),
    Row("Stats", NOT_FOUND),
    Row("Connect", OK),
)


@pytest.fixture(scope="module")
def pod(ctr: Ctr) -> Iterator[str]:
    ctr.start("codes", "sleep", "86400", annotations={TYPE: "sandbox", SANDBOX: "codes"})
    yield "codes"
    ctr.remove("codes")


@dataclass(frozen=True, slots=True)
class Walk:
    """A shim under one of its names, and the bundle of the container that is walked through its life."""

    socket: ShimSocket
    container: str
    bundle: Path
    rootfs: Path

    def create(self, **fields: Any) -> Code:
        """Create it, by a request that ``fields`` change."""
        mount = containerd_types.Mount(type="bind", source=str(self.rootfs), options=["rbind", "ro"])
        request = {"id": self.container, "bundle": str(self.bundle), "rootfs": [mount], **fields}
        return self.socket.code("Create", **request)

    def wrong(self, rows: Sequence[Row]) -> list[str]:
        """Make the calls in their order: those that answer something else."""
        return [f"{row}, not {got.name}" for row in rows if (got := self.code(row)) is not row.code]

    def code(self, row: Row) -> Code:
        fields = {name: self._own(value) for name, value in (row.fields or {}).items()}
        return self.socket.code(row.rpc, id=self._own(row.container), **fields)

    def _own(self, value: Any) -> Any:
        return self.container if value == SELF else value


@pytest.fixture(params=NAMES, ids=["v2", "v3"])
def walk(ctr: Ctr, pod: str, name: str, rootfs_dir: Path, request: pytest.FixtureRequest) -> Iterator[Walk]:
    socket = ShimSocket(ShimSocket.of(ctr, pod).path, request.param)
    bundle = ctr.containerd.host.root / f"bundle-{name}"
    (bundle / "rootfs").mkdir(parents=True)
    notes = {TYPE: "container", SANDBOX: pod}
    content = spec(Program.SLEEP, terminal=False, cgroup=f"/codes/{name}", annotations=notes)
    raw_json = raw.json_any("", content).value
    (bundle / "config.json").write_bytes(raw_json)
    made = Walk(socket, name, bundle, rootfs_dir)
    yield made
    made.socket.code("Kill", id=name, signal=9)
    made.socket.code("Wait", id=name)
    made.socket.code("Delete", id=name)
    shutil.rmtree(bundle)


def test_every_row(walk: Walk) -> None:
    """One after the other: a row that answers otherwise is told, and those after it may follow from it."""
    wrong = walk.wrong(UNKNOWN_CONTAINER)
    assert walk.create() is OK
    assert wrong + walk.wrong((*CREATED, *RUNNING, *PAUSED, *STOPPED, *DELETED)) == []


def test_the_rows_are_of_all_17_rpcs() -> None:
    rows = (*UNKNOWN_CONTAINER, *CREATED, *RUNNING, *PAUSED, *STOPPED, *DELETED)
    assert len({row.rpc for row in rows}) == 17


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"checkpoint": "/some/where"}, WRONG_STATE),
        ({"bundle": "/nowhere"}, INVALID),
        ({"id": "../codes"}, INVALID),
        ({"stdout": "gopher://example/1"}, INVALID),
    ],
    ids=["checkpoint", "bundle", "id", "stdio"],
)
def test_a_create_that_fails(walk: Walk, fields: dict[str, Any], code: Code) -> None:
    """Never Unimplemented, which makes containerd 2.x ask again as v2; the Delete that follows finds nothing; the id is free."""
    assert walk.create(**fields) is code
    assert walk.socket.code("Delete", id=walk.container) is NOT_FOUND
    assert walk.create() is OK


def test_an_id_that_is_used_again_at_once(walk: Walk) -> None:
    """After a Create that failed in the guest, and after a Delete: nothing that the guest remembers is taken for the new one's."""
    config = walk.bundle / "config.json"
    good = config.read_bytes()
    bad = json.loads(good)
    bad["process"]["args"] = ["/no/such/program"]
    told = []
    for _ in range(AGAIN):
        config.write_text(json.dumps(bad))
        refused = walk.create()
        config.write_bytes(good)
        lived = [walk.create(), *(walk.code(Row(rpc, OK, fields)) for rpc, fields in LIFE)]
        told.append([refused, *lived])
    assert told == [[INVALID, *[OK] * 5]] * AGAIN


def test_the_connection_is_lost(ctr: Ctr, name: str) -> None:
    """The daemon of a pod is gone: containerd clears up after it, and its task is NotFound and listed nowhere."""
    ctr.start(name, "sleep", "86400")
    try:
        pods.Pod(ctr.containerd.host.run_dir, _pod_hash(ctr, name)).process("daemon").kill()
        eventually("the task to go", lambda: name not in ctr.tasks(), within=20 * SCALE)
        assert "not found" in ctr.kill(name).err
    finally:
        ctr.remove(name)


def _pod_hash(ctr: Ctr, sandbox_id: str) -> str:
    return pods.pod_hash(str(ctr.containerd.address), ctr.namespace, sandbox_id)
