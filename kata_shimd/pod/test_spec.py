"""OCI specs: what is refused, and what the guest gets."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_shimd.errors import InvalidArgument, Unimplemented
from kata_shimd.pod import spec, storage

PROCESS = {"args": ["sh"], "cwd": "/", "apparmorProfile": "p", "selinuxLabel": "l", "capabilities": {"bounding": ["X"]}}
NO_FILES = storage.Plan(storage.RootfsShare(()), (), (), "/run/kata-containers/shared/containers/c1/rootfs")


def guest(value, seccomp=True):
    return spec.for_guest(value, "c1", NO_FILES, seccomp=seccomp)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"process": []}', '{"mounts": [1]}', '{"linux": "x"}', '{"process": {"args": []}}']
)
def test_broken_specs_are_refused_with_the_file_named(text):
    with pytest.raises(InvalidArgument, match=r"b/config\.json|b.config"):
        spec.parse(text.encode(), "b/config.json")


def test_missing_file(tmp_path):
    with pytest.raises(InvalidArgument, match=r"config\.json: No such file"):
        spec.load(tmp_path)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_spec_or_invalid_argument(data):
    try:
        spec.parse(data, "x")
    except InvalidArgument:
        pass


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('{"root": {"path": {}}}', "root.path is no text"),
        ('{"root": {"path": "a\\u0000"}}', "root.path holds a NUL"),
        ('{"hostname": "\\ud800"}', "hostname holds a NUL or is not Unicode"),
        ('{"mounts": [{}, {"options": 1}]}', r"mounts\[1\].options is no list"),
        ('{"mounts": [{"options": [null]}]}', r"mounts\[0\].options\[0\] is no text"),
        ('{"linux": {"namespaces": ["pid"]}}', r"linux.namespaces\[0\] is no object"),
        ('{"linux": {"resources": {"cpu": 1}}}', "linux.resources.cpu is no object"),
    ],
)
def test_a_part_of_another_shape_is_named(text, part):
    with pytest.raises(InvalidArgument, match=part):
        spec.parse(text.encode(), "x")


def test_resources_of_another_shape_are_refused():
    with pytest.raises(InvalidArgument, match="cpu is no object"):
        spec.parse_resources(b'{"cpu": []}', "c1")


KEYS = ["process", "args", "cwd", "env", "root", "mounts", "linux", "hooks"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(JSON)
def test_any_tree_is_a_spec_or_invalid_argument(tree):
    try:
        spec.parse(json.dumps(tree).encode(), "x")
    except InvalidArgument:
        pass


@pytest.mark.parametrize(
    ("notes", "kind"),
    [
        ({}, spec.Kind.SINGLE),
        ({"io.kubernetes.cri.container-type": "sandbox"}, spec.Kind.SANDBOX),
        ({"io.kubernetes.cri-o.ContainerType": "container"}, spec.Kind.CONTAINER),
        ({"io.kubernetes.docker.type": "podsandbox"}, spec.Kind.SANDBOX),
        (
            {"io.kubernetes.cri.container-type": "container", "io.kubernetes.docker.type": "podsandbox"},
            spec.Kind.CONTAINER,
        ),
    ],
)
def test_kind_by_the_first_annotation_present(notes, kind):
    assert spec.kind({"annotations": notes}) is kind


def test_unknown_kind_names_the_annotation():
    with pytest.raises(InvalidArgument, match=r"container-type.*'vm'"):
        spec.kind({"annotations": {"io.kubernetes.cri.container-type": "vm"}})


def test_guest_gets_its_own_paths_namespaces_and_no_host_labels():
    value = {
        "process": PROCESS,
        "root": {"path": "rootfs", "readonly": True},
        "hooks": {"prestart": []},
        "linux": {
            "mountLabel": "m",
            "cgroupsPath": "/a/b",
            "namespaces": [{"type": t} for t in ("pid", "network", "mount", "ipc", "uts", "cgroup", "time")],
        },
    }
    made = guest(value)
    assert made["root"] == {"path": "/run/kata-containers/shared/containers/c1/rootfs", "readonly": True}
    assert "hooks" not in made and "mountLabel" not in made["linux"]
    assert [n["type"] for n in made["linux"]["namespaces"]] == ["pid", "mount", "ipc", "uts"]
    assert made["process"] == {"args": ["sh"], "cwd": "/", "capabilities": {"bounding": ["X"]}}
    assert "hooks" in value, "the caller's spec is not changed"


def test_hooks_are_refused_by_name():
    with pytest.raises(Unimplemented, match=r"hooks \(poststop, prestart\)"):
        guest({"hooks": {"prestart": [{"path": "/x"}], "poststop": [{"path": "/y"}], "poststart": []}})


def test_the_domain_name_becomes_a_setting_of_the_kernel():
    made = guest({"domainname": "example.org", "linux": {"sysctl": {"kernel.msgmax": "1"}}})
    assert "domainname" not in made
    assert made["linux"]["sysctl"] == {"kernel.msgmax": "1", "kernel.domainname": "example.org"}


def test_an_update_repeats_of_the_unified_files_only_what_changes():
    repeated = {"unified": {"memory.oom.group": "1", "memory.high": "5"}, "pids": {"limit": 1}}
    made = spec.changes(repeated, {"memory.oom.group": "1", "memory.high": "4"})
    assert made == {"unified": {"memory.high": "5"}, "pids": {"limit": 1}}


def test_a_shared_pid_namespace_is_the_pods():
    value = {"linux": {"namespaces": [{"type": "pid", "path": "/proc/1/ns/pid"}, {"type": "uts"}]}}
    assert spec.shares_pod_pid_namespace(value)
    assert [n["type"] for n in guest(value)["linux"]["namespaces"]] == ["uts"]


def test_host_cpu_numbers_go_and_limits_stay():
    value = {"cpu": {"quota": 5, "cpus": "0-3", "mems": "0"}, "memory": {"limit": 1}, "pids": {"limit": 7}}
    assert spec.resources_for_guest(value) == {"cpu": {"quota": 5}, "memory": {"limit": 1}, "pids": {"limit": 7}}


def test_seccomp_only_where_it_is_wanted():
    value = {"linux": {"seccomp": {"defaultAction": "SCMP_ACT_ERRNO"}}}
    assert "seccomp" in guest(value)["linux"]
    assert "seccomp" not in guest(value, seccomp=False)["linux"]


def test_id_mappings_are_refused_not_dropped():
    with pytest.raises(Unimplemented, match="id mappings"):
        guest({"linux": {"uidMappings": [{"containerID": 0}]}})


@pytest.mark.parametrize(
    ("path", "made"),
    [("", "/c1"), ("/ctr/c1", "/ctr/c1"), ("system.slice:cri:abc", "/system.slice/cri-abc.scope")],
)
def test_cgroups_path(path, made):
    assert spec.cgroups_path(path, "c1") == made


def test_dns_is_the_lines_of_the_mounted_file(tmp_path):
    (tmp_path / "r").write_text("nameserver 1.2.3.4\nsearch x\n")
    value = {"mounts": [{"destination": "/etc/resolv.conf", "source": str(tmp_path / "r")}]}
    assert spec.dns(value) == ("nameserver 1.2.3.4", "search x")
    assert spec.dns({}) == ()
