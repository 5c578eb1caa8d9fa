"""Annotations are a border: what passes, what does not, and what each one sets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_shimd.config import defaults, load
from kata_shimd.config.key import AGENT, HYPERVISOR, RUNTIME, Status
from kata_shimd.config.keys import BY_ANNOTATION, LONE
from kata_shimd.config.show import value_of
from kata_shimd.errors import InvalidArgument

ALL = '[hypervisor.qemu]\nenable_annotations = [".*"]\n'
H = HYPERVISOR


def annotated(annotations, text=ALL):
    return load(None, text.encode(), None, annotations, search=())


def refusal(annotations, text=ALL):
    with pytest.raises(InvalidArgument) as caught:
        annotated(annotations, text)
    return str(caught.value)


#: Every annotation that acts: a value that differs from the default, and what it becomes.
ACTING = {
    H + "path": ("/opt/qemu/bin/qemu", "/opt/qemu/bin/qemu"),
    H + "machine_type": ("q35", "q35"),
    H + "machine_accelerators": ("nosmm", "nosmm"),
    H + "cpu_features": ("pmu=off,vmx=off", "pmu=off,vmx=off"),
    H + "entropy_source": ("/dev/random", "/dev/random"),
    H + "kernel_params": ("quiet", "cgroup_no_v1=all systemd.unified_cgroup_hierarchy=1 quiet"),
    H + "default_vcpus": ("1.5", 1.5),
    H + "default_max_vcpus": ("8", 8),
    H + "default_memory": ("512", 512),
    H + "memory_slots": ("3", 3),
    H + "shared_fs": ("virtio-fs", "virtio-fs"),
    H + "virtio_fs_daemon": ("/opt/virtiofsd", "/opt/virtiofsd"),
    H + "virtio_fs_cache": ("always", "always"),
    H + "virtio_fs_extra_args": ('["-o", "xattr"]', ["-o", "xattr"]),
    H + "pcie_root_port": ("2", 2),
    AGENT + "kernel_modules": ("e1000e EEE=1; i915", ["e1000e EEE=1", "i915"]),
    RUNTIME + "disable_guest_seccomp": ("0", False),
    RUNTIME + "disable_new_netns": ("true", True),
    RUNTIME + "sandbox_cgroup_only": ("true", True),
    RUNTIME + "internetworking_model": ("macvtap", "macvtap"),
    H + "disable_vhost_net": ("true", True),
    RUNTIME + "create_container_timeout": ("90", 90),
}
GUEST = {H + "kernel": "/k", H + "image": "/i"}
GLOBS = ALL + 'valid_hypervisor_paths = ["/opt/*/bin/qemu"]\nvalid_virtio_fs_daemon_paths = ["/opt/virtiofsd"]\n'


@pytest.mark.parametrize("name", ACTING)
def test_acting_annotation_sets_its_key(name):
    text, becomes = ACTING[name]
    key, _ = BY_ANNOTATION[name]
    loaded = annotated({name: text}, GLOBS)
    assert key.kind.dump(value_of(loaded.config, key)) == becomes
    assert str(loaded.origin[key.dotted]) == f"annotation {name}"
    assert loaded.warnings == ()


def test_kernel_and_image_annotations_choose_the_guest_together():
    hypervisor = annotated(GUEST).config.hypervisor
    assert (str(hypervisor.kernel), str(hypervisor.image), hypervisor.initrd) == ("/k", "/i", None)


def test_every_acting_annotation_is_tested_above():
    acting = {name for name, (key, _) in BY_ANNOTATION.items() if key.status is Status.SUPPORTED}
    assert acting == {*ACTING, *GUEST}


HELD = {name: key for name, (key, _) in BY_ANNOTATION.items() if key.status is not Status.SUPPORTED}
#: Held annotations with a value off every default.
OFF = {bool: "true", int: "7", str: "/something", list: "something"}
SAME = {"disable_image_nvdimm", "disable_block_device_use"}


@pytest.mark.parametrize("name", [name for name, key in HELD.items() if key.name not in SAME])
def test_held_annotation_is_refused_off_its_default(name):
    default = HELD[name].default
    text = refusal({name: "false" if default is True else OFF[type(default)]})
    assert f"annotation {name}: " in text


@pytest.mark.parametrize("name", [name for name, key in HELD.items() if isinstance(key.default, bool)])
def test_held_annotation_is_taken_at_its_default(name):
    assert annotated({name: str(HELD[name].default).lower()}).warnings == ()


@pytest.mark.parametrize("lone", LONE, ids=lambda lone: lone.name)
def test_lone_annotation_is_refused_unless_it_says_nothing(lone):
    assert "is not supported here" in refusal({lone.name: "something"})
    for text in lone.accepted:
        assert annotated({lone.name: text}).warnings == ()


# The allow list.


@pytest.mark.parametrize("pattern", ["memory", "default_", "^default_", "default_memory_", "efault_memory", ""])
def test_pattern_that_matches_only_part_of_the_name_enables_nothing(pattern):
    """Decision 0004: Kata would enable default_memory by most of these."""
    text = refusal({H + "default_memory": "512"}, f'[hypervisor.qemu]\nenable_annotations = ["{pattern}"]\n')
    assert f'{H}default_memory: is not enabled; add "default_memory" to enable_annotations' in text


@pytest.mark.parametrize("pattern", ["default_memory", "default_.*", "^default_memory$", "x|default_memory", ".*"])
def test_pattern_that_matches_the_whole_name_enables_it(pattern):
    text = f'[hypervisor.qemu]\nenable_annotations = ["other", "{pattern}"]\n'
    assert annotated({H + "default_memory": "512"}, text).config.hypervisor.default_memory_mib == 512


def test_empty_list_enables_none():
    assert "is not enabled" in refusal({H + "kernel_params": "a"}, "[hypervisor.qemu]\nenable_annotations = []\n")


def test_default_list_is_kata_s():
    assert annotated({H + "kernel_params": "a"}, "").config.hypervisor.kernel_params[-1] == "a"
    assert "is not enabled" in refusal({H + "default_memory": "512"}, "")


def test_pod_cannot_widen_the_list():
    (warning,) = annotated({H + "enable_annotations": '[".*"]'}, "").warnings
    assert "nobody knows this annotation" in warning


def test_wrong_pattern_is_the_file_s_fault_and_enables_nothing():
    text = refusal({H + "kernel_params": "a"}, '[hypervisor.qemu]\nenable_annotations = ["kernel_params", "("]\n')
    assert "hypervisor.qemu.enable_annotations: '(' is no regular expression" in text
    assert "is not enabled" in text


def test_runtime_and_agent_annotations_need_no_list():
    text = "[hypervisor.qemu]\nenable_annotations = []\n"
    assert not annotated({RUNTIME + "disable_guest_seccomp": "0"}, text).config.runtime.disable_guest_seccomp
    assert annotated({AGENT + "kernel_modules": "a"}, text).config.agent.kernel_modules == ("a",)


# Values.


@pytest.mark.parametrize("path", ["/bin/sh", "/opt/a/b/bin/qemu", "/opt/../bin/sh", "opt/x/bin/qemu", "/opt//bin/qemu"])
def test_path_outside_its_allow_list_is_refused(path):
    assert "is not allowed by valid_hypervisor_paths" in refusal({H + "path": path}, GLOBS)


def test_path_that_is_configured_is_allowed_without_a_list():
    assert annotated({H + "path": "/usr/bin/qemu-system-x86_64"}).config == annotated({}).config


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        (H + "default_memory", "255", "255 is not between 256"),
        (H + "default_memory", "1G", "is not an unsigned integer"),
        (H + "default_memory", "", "is not an unsigned integer"),
        (H + "memory_slots", "0", "must be greater than 0"),
        (H + "disable_vhost_net", "yes", "is not a boolean"),
        (H + "default_vcpus", "many", "is not a number"),
        (H + "virtio_fs_extra_args", "-o", "is not a JSON array of strings"),
        (H + "shared_fs", "none", "is not supported here"),
        (H + "kernel_params", "a\0b", "contains a control character"),
        (RUNTIME + "create_container_timeout", str(2**63), "is not between"),
        (RUNTIME + "internetworking_model", "bridge", "is none of"),
    ],
)
def test_wrong_value_is_refused_with_the_annotation_named(name, text, why):
    message = refusal({name: text})
    assert f"annotation {name}: " in message
    assert why in message


def test_empty_text_leaves_text_as_it_is():
    assert annotated({H + "cpu_features": "", H + "path": ""}).config == annotated({}).config


def test_kernel_params_replace_those_of_the_same_name_and_keep_the_rest():
    text = ALL + 'kernel_params = "a=1 b=2 c a=3"\n'
    assert annotated({H + "kernel_params": "a=4 d"}, text).config.hypervisor.kernel_params == ("b=2", "c", "a=4", "d")


def test_extra_args_are_appended():
    text = ALL + 'virtio_fs_extra_args = ["--a"]\n'
    assert annotated({H + "virtio_fs_extra_args": '["--b"]'}, text).config.hypervisor.virtio_fs_extra_args == (
        "--a",
        "--b",
    )


@pytest.mark.parametrize(
    ("key", "name"), [("kernel_params = 5", "kernel_params"), ("virtio_fs_extra_args = 'x'", "virtio_fs_extra_args")]
)
def test_annotation_does_not_hide_that_the_value_below_is_wrong(key, name):
    value = '["x"]' if name == "virtio_fs_extra_args" else "x"
    assert f"config_body:3: hypervisor.qemu.{name}: must be" in refusal({H + name: value}, ALL + key + "\n")


# Names.


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        (H + "default_memry", f"did you mean {H}default_memory?"),
        (H + "default_maxvcpus", f"did you mean {H}default_max_vcpus?"),
        (RUNTIME + "disable_guest_secomp", f"did you mean {RUNTIME}disable_guest_seccomp?"),
    ],
)
def test_unknown_annotation_is_a_warning_with_the_nearest_and_an_error_when_strict(name, hint):
    (warning,) = annotated({name: "1"}).warnings
    assert "nobody knows this annotation" in warning
    assert hint in warning
    assert hint in refusal({name: "1"}, ALL + "[shimd]\nstrict = true\n")


def test_annotations_of_others_are_passed_over():
    others = {
        "io.kubernetes.cri.container-type": "sandbox",
        "io.katacontainers.container.resource.swappiness": "10",
        "io.katacontainers.configuration": "x",
        "": "",
    }
    assert annotated(others, "").config == defaults()
    assert annotated(others, "").warnings == ()


@given(st.dictionaries(st.sampled_from([*BY_ANNOTATION, *(lone.name for lone in LONE)]) | st.text(), st.text()))
def test_any_annotations_raise_only_invalid_argument(annotations):
    try:
        loaded = annotated(annotations)
    except InvalidArgument as error:
        assert "annotation io.katacontainers." in str(error) or "hypervisor.qemu." in str(error)
    else:
        assert loaded.config.hypervisor.default_memory_mib >= 256
