"""The generated API: it is what protos/ describes, it is lean, and its services are protoc's."""

import runpy
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest

import kata_shimd.api
from kata_shimd import wire
from kata_shimd.api import agent, events, task
from kata_shimd.api.services import agent as agent_rpcs
from kata_shimd.api.services import streaming, task_v2, task_v3

GENERATE = Path(__file__).resolve().parents[1] / "protos" / "generate.py"


@pytest.fixture(scope="module")
def generator() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(GENERATE)))


def test_committed_code_is_what_the_generator_writes():
    done = subprocess.run([sys.executable, str(GENERATE), "--check"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_check_names_what_differs(generator):
    files = generator.committed()
    changed = files | {"agent.py": "", "services/new.py": ""}
    del changed["wkt.py"]
    assert generator.differences(files) == []
    assert generator.differences(changed) == ["agent.py", "services/new.py", "wkt.py"]


def imported_by(statement: str) -> set[str]:
    """Top-level names and our modules that a fresh interpreter has after the statement."""
    probe = f"import sys; sys.path.insert(0, sys.argv[1]); {statement}; print(*sys.modules)"
    root = str(GENERATE.parents[1])
    done = subprocess.run([sys.executable, "-I", "-c", probe, root], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_descriptors_import_no_messages():
    modules = imported_by("import kata_shimd.api.services.agent, kata_shimd.api.services.task_v2")
    assert "betterproto2" not in modules
    assert not {name for name in modules if "_generated" in name}


def test_messages_import_only_what_they_refer_to():
    modules = imported_by("import kata_shimd.api.task")
    assert {name.removeprefix("kata_shimd.api._generated.") for name in modules if "_generated." in name} >= {
        "containerd.task.v2",
        "containerd.types",
        "kata_shimd.wkt",
    }
    assert not modules & {"importlib.metadata", "grpc", "grpclib", "google.protobuf", "dateutil"}
    assert "kata_shimd.api._generated.grpc" not in modules


def test_packages_named_like_the_standard_library_do_no_harm():
    modules = imported_by(
        "import kata_shimd.api.cgroup1, kata_shimd.api.agent_types, io, types; io.BytesIO; types.ModuleType"
    )
    assert "kata_shimd.api._generated.io.containerd.cgroups.v1" in modules


def test_runtime_is_of_the_series_the_code_was_generated_for():
    said = sys.modules["betterproto2._version"].__version__
    assert (
        version("betterproto2").split(".")[:2] == version("betterproto2_compiler").split(".")[:2] == said.split(".")[:2]
    )


def test_every_alias_is_documented(generator):
    documented = kata_shimd.api.__doc__.replace(",", " ").split()
    assert set(generator.ALIASES.values()) <= {word.strip(";") for word in documented}


def test_services_are_those_that_protoc_sees(generator):
    files = generator.descriptors().file
    services = {f"{file.package}.{service.name}": service for file in files for service in file.service}
    assert services.keys() == generator.SERVICES.keys()
    for name, module in generator.SERVICES.items():
        ours = import_module(f"kata_shimd.api.services.{module}").SERVICE
        assert ours.name == name
        assert [described(method) for method in ours] == [proto_described(method) for method in services[name].method]


def described(method) -> tuple:
    types = (wire.full_name(method.request), wire.full_name(method.response))
    return method.name, *types, method.client_streaming, method.server_streaming


def proto_described(method) -> tuple:
    google = (
        name[1:].replace("kata_shimd.wkt.", "google.protobuf.") for name in (method.input_type, method.output_type)
    )
    return method.name, *google, method.client_streaming, method.server_streaming


def test_a_method_is_found_by_its_name_on_the_wire():
    assert task_v2.SERVICE.method("CloseIO") is task_v2.CLOSE_IO
    assert task_v2.SERVICE.method("close_io") is None
    assert task_v2.CLOSE_IO.path == "/containerd.task.v2.Task/CloseIO"
    assert agent_rpcs.GET_OOM_EVENT.response is agent.OomEvent


def test_both_task_services_speak_of_the_same_messages():
    assert task_v3.CREATE.request is task_v2.CREATE.request is task.CreateTaskRequest
    assert task_v3.SERVICE.name == "containerd.task.v3.Task"


def test_streaming_is_the_one_that_streams():
    assert not streaming.STREAM.unary
    assert all(method.unary for method in agent_rpcs.SERVICE)


def test_an_absent_message_is_none_and_an_empty_one_is_written():
    assert wire.decode(events.TaskCreate, b"").io is None
    assert wire.encode(events.TaskCreate(io=events.TaskIo())) == b"\x22\x00"
