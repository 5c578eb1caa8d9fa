"""OCI JSON into the agent's mirror: everything arrives, or is refused by name."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_shimd.agent import oci
from kata_shimd.errors import InvalidArgument, ShimError, Unimplemented


def test_spellings_of_json_and_mirror_are_one_name():
    made = oci.process(
        {
            "terminal": True,
            "consoleSize": {"height": 1, "width": 2},
            "user": {"uid": 1, "gid": 2, "additionalGids": [3]},
            "noNewPrivileges": True,
            "oomScoreAdj": 9,
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 2**64 - 1, "soft": 5}],
            "capabilities": {"bounding": ["CAP_KILL"], "ambient": []},
        }
    )
    assert (made.terminal, made.console_size.width, made.user.additional_gids) == (True, 2, [3])
    assert (made.no_new_privileges, made.oom_score_adj, made.rlimits[0].hard) == (True, 9, 2**64 - 1)
    assert made.capabilities.bounding == ["CAP_KILL"]


def test_linux_in_full():
    made = oci.spec(
        {
            "ociVersion": "1.0.2",
            "linux": {
                "cgroupsPath": "/x",
                "maskedPaths": ["/proc/kcore"],
                "sysctl": {"net.core.somaxconn": "1"},
                "devices": [
                    {"path": "/dev/x", "type": "c", "major": 1, "minor": 3, "fileMode": 438, "uid": 0, "gid": 0}
                ],
                "resources": {
                    "memory": {"limit": 5, "disableOOMKiller": True, "kernelTCP": 1},
                    "cpu": {"shares": 2, "quota": -1, "realtimePeriod": 7},
                    "blockIO": {"throttleReadIOPSDevice": [{"major": 8, "minor": 0, "rate": 1}]},
                    "hugepageLimits": [{"pageSize": "2MB", "limit": 1}],
                },
                "seccomp": {
                    "defaultAction": "SCMP_ACT_ERRNO",
                    "syscalls": [{"names": ["a"], "action": "x", "errnoRet": 0, "args": [{"index": 1, "valueTwo": 2}]}],
                },
            },
        }
    )
    assert made.version == "1.0.2"
    linux = made.linux
    assert (linux.cgroups_path, linux.masked_paths) == ("/x", ["/proc/kcore"])
    assert (linux.resources.memory.disable_oom_killer, linux.resources.memory.kernel_tcp) == (True, 1)
    assert linux.resources.block_io.throttle_read_iops_device[0].rate == 1
    assert linux.resources.hugepage_limits[0].pagesize == "2MB"
    assert linux.seccomp.syscalls[0].errnoret == 0
    assert linux.seccomp.syscalls[0].args[0].value_two == 2
    assert linux.devices[0].file_mode == 438


def test_absent_numbers_of_a_device_rule_mean_any():
    made = oci.resources({"devices": [{"allow": False, "access": "rwm"}, {"allow": True, "type": "c", "major": 0}]})
    assert [(rule.major, rule.minor) for rule in made.devices] == [(-1, -1), (0, -1)]


@pytest.mark.parametrize(
    ("convert", "value", "named"),
    [
        (oci.spec, {"process": {"scheduler": {"policy": "x"}}}, "process.scheduler"),
        (oci.process, {"user": {"umask": 0}}, "process.user.umask"),
        (oci.resources, {"unified": {"a": "b"}}, "linux.resources.unified"),
    ],
)
def test_what_the_guest_cannot_be_told_is_refused_by_name(convert, value, named):
    with pytest.raises(Unimplemented, match=named):
        convert(value)


def test_what_the_mirror_lacks_goes_by_an_annotation_that_nobody_else_can_write():
    made = oci.spec(
        {
            "annotations": {"a": "b", oci.UNTOLD_ANNOTATION: '{"process.user.umask": 0}'},
            "process": {"user": {"uid": 1, "umask": 0}},
            "linux": {
                "resources": {"unified": {"memory.high": "5"}},
                "seccomp": {"defaultAction": "x", "defaultErrnoRet": 38},
            },
        }
    )
    assert made.annotations["a"] == "b"
    assert json.loads(made.annotations[oci.UNTOLD_ANNOTATION]) == {
        "linux.resources.unified": {"memory.high": "5"},
        "linux.seccomp.defaultErrnoRet": 38,
        "process.user.umask": 0,
    }
    forged = oci.spec({"annotations": {oci.UNTOLD_ANNOTATION: "{}"}})
    assert oci.UNTOLD_ANNOTATION not in forged.annotations


def test_the_usual_umask_of_an_exec_needs_no_telling():
    assert oci.process({"user": {"uid": 3, "umask": 0o22}}).user.uid == 3


def test_empty_or_meaningless_extras_pass():
    oci.spec(
        {
            "linux": {"resources": {"unified": {}, "rdma": {"x": {}}}, "seccomp": {"defaultErrnoRet": 1}},
            "windows": {"a": 1},
        }
    )


@pytest.mark.parametrize(
    "value",
    [{"hostname": 1}, {"process": []}, {"mounts": {}}, {"process": {"args": "x"}}, {"process": {"terminal": 1}}],
)
def test_wrong_types_are_refused(value):
    with pytest.raises(InvalidArgument, match="was expected"):
        oci.spec(value)


KEYS = ["process", "linux", "resources", "devices", "memory", "limit", "args", "user", "uid", "mounts", "x"]
TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=15,
)


@given(st.dictionaries(st.sampled_from(KEYS), TREES, max_size=5))
def test_any_tree_converts_or_is_a_shim_error(tree):
    try:
        oci.spec(tree)
    except ShimError:
        pass
