"""Our .proto files against those compiled into upstream's Go modules: names, numbers, types, labels, methods.

containerd, ttrpc and cgroups are compared with the descriptors in their modules, which `upstream/` prints; it needs Go
and the modules that `upstream/go.mod` pins.

Kata's module, github.com/kata-containers/kata-containers/src/runtime, cannot be had that way: for it, for the
repository's root and for github.com/kata-containers/agent the Go module proxy answered, on 2026-11-24, "403 Forbidden,
server response: This module version is not available". The agent's protocol is compared with `kata_table.txt` instead,
a second transcription from other notes. It has numbers and names of every message but those of the memory agent, and
types of only a few; what it cannot see is a wrong type.
"""

import re
import runpy
import subprocess
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from google.protobuf import json_format
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorSet

HERE = Path(__file__).resolve().parent
GENERATE = HERE.parents[1] / "protos" / "generate.py"

KATA_PACKAGES = {"grpc", "types"}
OWN_PACKAGES = {"kata_shimd.v1", "kata_shimd.wkt"}

INTENDED = {
    "containerd.runc.v1.Options.criu_path": "field 8 until containerd 2.0, which reserves it; older daemons still send it",
}
"""What ours has and upstream has not, and why."""

UNNOTED = {
    "grpc.WaitProcessResponse.ago": "our own, told by our agent only (docs/guest-agent.md)",
    "grpc.Spec.Solaris": "the OCI spec of another system; the notes leave it out",
    "grpc.Spec.Windows": "the same",
}
"""Fields of the agent's messages that `kata_table.txt` does not have, and why."""


@dataclass(frozen=True)
class Field:
    """What of a field is on the wire or in its meaning; `reference` is the message's or enum's full name."""

    number: int
    type: str
    label: str
    reference: str
    optional: bool
    oneof: str


@dataclass(frozen=True)
class Method:
    request: str
    response: str
    client_streaming: bool
    server_streaming: bool


@dataclass(frozen=True)
class Protocol:
    """Fields by "message.field", enum members by "enum.member", methods by "service.method"; names without a field too."""

    messages: frozenset[str]
    fields: dict[str, Field]
    members: dict[str, int]
    methods: dict[str, Method]


def neutral(name: str) -> str:
    """A type's name without what sets ours apart: our stand-ins for google's types, and v3's use of v2's messages."""
    bare = name.lstrip(".").replace("kata_shimd.wkt.", "google.protobuf.")
    return re.sub(r"^containerd\.task\.v3\.(?!Task\b)", "containerd.task.v2.", bare)


def field_of(message: DescriptorProto, field: FieldDescriptorProto) -> Field:
    in_oneof = field.HasField("oneof_index") and not field.proto3_optional
    return Field(
        field.number,
        FieldDescriptorProto.Type.Name(field.type),
        FieldDescriptorProto.Label.Name(field.label),
        neutral(field.type_name),
        field.proto3_optional,
        message.oneof_decl[field.oneof_index].name if in_oneof else "",
    )


def nested(prefix: str, message: DescriptorProto) -> list[tuple[str, DescriptorProto]]:
    """(full name, descriptor) of the message and all within it, map entries too."""
    name = f"{prefix}.{message.name}"
    return [(name, message)] + [pair for inner in message.nested_type for pair in nested(name, inner)]


def protocol(files: FileDescriptorSet) -> Protocol:
    messages = {
        name: message for file in files.file for top in file.message_type for name, message in nested(file.package, top)
    }
    enums = [(f"{file.package}.{enum.name}", enum) for file in files.file for enum in file.enum_type]
    enums += [(f"{name}.{enum.name}", enum) for name, message in messages.items() for enum in message.enum_type]
    services = [(f"{file.package}.{service.name}", service) for file in files.file for service in file.service]
    return Protocol(
        frozenset(messages),
        {
            f"{name}.{field.name}": field_of(message, field)
            for name, message in messages.items()
            for field in message.field
        },
        {f"{name}.{member.name}": member.number for name, enum in enums for member in enum.value},
        {
            f"{name}.{method.name}": Method(
                neutral(method.input_type),
                neutral(method.output_type),
                method.client_streaming,
                method.server_streaming,
            )
            for name, service in services
            for method in service.method
        },
    )


@pytest.fixture(scope="module")
def ours() -> Protocol:
    return protocol(SimpleNamespace(**runpy.run_path(str(GENERATE))).descriptors())


@pytest.fixture(scope="module")
def packages() -> set[str]:
    """Proto packages of ours that upstream's modules have as well."""
    files = SimpleNamespace(**runpy.run_path(str(GENERATE))).descriptors().file
    return {file.package for file in files} - KATA_PACKAGES - OWN_PACKAGES


@pytest.fixture(scope="module")
def upstream() -> Protocol:
    done = subprocess.run(["go", "run", "."], cwd=HERE / "upstream", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # Options that need extensions we do not have are of no consequence on the wire.
    return protocol(json_format.Parse(done.stdout, FileDescriptorSet(), ignore_unknown_fields=True))


def of_packages(names, packages: set[str]) -> set[str]:
    return {name for name in names if any(name.startswith(f"{package}.") for package in packages)}


def test_our_messages_are_upstreams(ours, upstream, packages):
    assert of_packages(ours.messages, packages) - upstream.messages == set()


def test_our_fields_are_upstreams(ours, upstream, packages):
    different = {
        name: (ours.fields[name], upstream.fields.get(name))
        for name in of_packages(ours.fields, packages)
        if ours.fields[name] != upstream.fields.get(name)
    }
    assert different.keys() == INTENDED.keys(), different


def test_we_have_every_field_of_a_message_we_have(ours, upstream):
    missing = {name for name in upstream.fields if name.rpartition(".")[0] in ours.messages and name not in ours.fields}
    assert missing == set()


def test_enums_are_upstreams(ours, upstream, packages):
    names = {name.rpartition(".")[0] for name in of_packages(ours.members, packages)}
    theirs = {name: number for name, number in upstream.members.items() if name.rpartition(".")[0] in names}
    assert {name: ours.members[name] for name in of_packages(ours.members, packages)} == theirs


def test_services_are_upstreams(ours, upstream, packages):
    services = {name.rpartition(".")[0] for name in of_packages(ours.methods, packages)}
    theirs = {name: method for name, method in upstream.methods.items() if name.rpartition(".")[0] in services}
    assert {name: ours.methods[name] for name in of_packages(ours.methods, packages)} == theirs
    assert "containerd.task.v3.Task.Create" in theirs


def test_every_event_of_a_task_or_sandbox_is_ours(ours, upstream):
    events = {name for name in upstream.messages if re.fullmatch(r"containerd\.events\.(Task|Sandbox)\w+", name)}
    assert len(events) > 10
    assert events <= ours.messages


def test_task_v3_differs_from_v2_in_its_name_only(upstream):
    """Ours defines v2's messages only and lets both services use them; this is why it may."""
    v2, v3 = (
        {
            name.removeprefix(f"containerd.task.{version}."): field
            for name, field in upstream.fields.items()
            if name.startswith(f"containerd.task.{version}.")
        }
        for version in ("v2", "v3")
    )
    assert len(v2) > 60
    assert v2 == v3


def kata_table() -> dict[str, dict[str, tuple[int, str]]]:
    """{message: {field: (number, type or "")}} of `kata_table.txt`."""
    table = {}
    for line in (HERE / "kata_table.txt").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        message, _, rest = line.partition(": ")
        name = message if "." in message else f"grpc.{message}"
        parts = (re.fullmatch(r"(\w+)=(\d+)(?::(\w+))?", word) for word in rest.split() if word != "-")
        table[name] = {part[1]: (int(part[2]), part[3] or "") for part in parts if part}
        assert rest == "-" or len(table[name]) == len(rest.split()), f"this line does not parse: {line}"
    return table


@pytest.mark.parametrize("message", kata_table())
def test_agent_messages_are_those_of_the_notes(ours, message):
    table = kata_table()[message]
    noted = {name for name in ours.fields if name.rpartition(".")[0] == message} - UNNOTED.keys()
    fields = {name.rpartition(".")[2]: ours.fields[name] for name in noted}
    assert message in ours.messages
    assert {name: number for name, (number, _) in table.items()} == {name: f.number for name, f in fields.items()}
    for name, (_, kind) in table.items():
        assert not kind or fields[name].type == f"TYPE_{kind.upper()}"
