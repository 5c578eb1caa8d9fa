"""Layers and their order, origins, what is refused and what is only warned of."""

import os
import string
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kata_shimd.config import defaults, load
from kata_shimd.config.build import stored_fields
from kata_shimd.config.key import ABSENT, Status
from kata_shimd.config.keys import KEYS, TABLES
from kata_shimd.config.keys_shimd import FROM_KATA
from kata_shimd.config.layers import MAX_FILE
from kata_shimd.config.load import examine
from kata_shimd.config.model import RootfsType, Timeouts
from kata_shimd.config.origin import Severity
from kata_shimd.config.show import toml
from kata_shimd.errors import InvalidArgument

KATA = Path(__file__).parent / "testdata" / "kata-qemu.toml"
MEMORY = "hypervisor.qemu.default_memory"


def body(text, annotations=None):
    """Loads one body of options and nothing else."""
    return load(None, text.encode(), None, annotations or {}, search=())


def refusal(text, annotations=None):
    with pytest.raises(InvalidArgument) as caught:
        body(text, annotations)
    return str(caught.value)


def memory(mib):
    return f"[hypervisor.qemu]\ndefault_memory = {mib}\n"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "configuration.toml"
    path.write_text(memory(300))
    return path


# Order of the layers.


def test_load_without_a_file_gives_built_in_defaults_and_says_so():
    loaded = load(None, b"", None, {}, search=(Path("/nonexistent/configuration.toml"),))
    assert loaded.files == ()
    assert loaded.config == defaults()
    assert str(loaded.origin[MEMORY]) == "default"
    assert loaded.warnings == ()


def test_load_takes_the_first_file_that_exists(file, tmp_path):
    loaded = load(None, b"", None, {}, search=(tmp_path / "absent.toml", file))
    assert loaded.config.hypervisor.default_memory_mib == 300
    assert loaded.files == (file,)
    assert str(loaded.origin[MEMORY]) == f"{file}:2"


def test_load_prefers_options_to_environment_to_search(file, tmp_path):
    options, environment = tmp_path / "options.toml", tmp_path / "environment.toml"
    options.write_text(memory(400))
    environment.write_text(memory(500))
    assert load(options, b"", environment, {}, search=(file,)).config.hypervisor.default_memory_mib == 400
    assert load(None, b"", environment, {}, search=(file,)).config.hypervisor.default_memory_mib == 500


def test_load_with_every_layer_lets_the_annotation_win(file, tmp_path):
    """`kata.md` §1.6, §8.1, §9: file, drop-ins in lexical order, body of the options, annotations."""
    folder = tmp_path / "config.d"
    folder.mkdir()
    allow = 'enable_annotations = ["default_memory"]\n'
    (folder / "20-b.toml").write_text(memory(500) + "memory_slots = 5\n")
    (folder / "10-a.toml").write_text(memory(400) + "memory_slots = 4\n" + allow)
    name = "io.katacontainers.config.hypervisor.default_memory"

    without = load(file, b"", None, {})
    assert without.config.hypervisor.default_memory_mib == 500
    assert str(without.origin[MEMORY]) == f"drop-in {folder / '20-b.toml'}:2"
    assert without.files == (file, folder / "10-a.toml", folder / "20-b.toml")

    with_body = load(file, memory(600).encode(), None, {})
    assert with_body.config.hypervisor.default_memory_mib == 600
    assert with_body.config.hypervisor.memory_slots == 5
    assert str(with_body.origin[MEMORY]) == "option config_body:2"

    annotated = load(file, memory(600).encode(), None, {name: "700"})
    assert annotated.config.hypervisor.default_memory_mib == 700
    assert str(annotated.origin[MEMORY]) == f"annotation {name}"


def test_load_reads_drop_ins_beside_the_target_of_a_link(tmp_path):
    real, link = tmp_path / "real", tmp_path / "link"
    for folder, mib in ((real, 400), (link, 500)):
        (folder / "config.d").mkdir(parents=True)
        (folder / "config.d" / "x.toml").write_text(memory(mib))
    (real / "configuration-qemu.toml").write_text("")
    (link / "configuration.toml").symlink_to(real / "configuration-qemu.toml")
    assert load(link / "configuration.toml", b"", None, {}).config.hypervisor.default_memory_mib == 400


def test_load_replaces_arrays_and_merges_tables(file, tmp_path):
    file.write_text('[agent.kata]\nkernel_modules = ["a", "b"]\nenable_debug = true\n')
    (tmp_path / "config.d").mkdir()
    (tmp_path / "config.d" / "x").write_text('[agent.kata]\nkernel_modules = ["c"]\n')
    agent = load(file, b"", None, {}).config.agent
    assert (agent.kernel_modules, agent.enable_debug) == (("c",), True)


# Files that cannot be used.


def test_load_refuses_a_named_file_that_is_absent(tmp_path):
    with pytest.raises(InvalidArgument, match=r"absent\.toml: cannot be read: No such file"):
        load(tmp_path / "absent.toml", b"", None, {})


@pytest.mark.parametrize("kind", ["fifo", "device", "directory", "nul"])
def test_load_refuses_what_is_no_regular_file_without_waiting(tmp_path, kind):
    path = {"device": Path("/dev/zero"), "directory": tmp_path, "nul": Path("/a\0b")}.get(kind, tmp_path / "fifo")
    if kind == "fifo":
        os.mkfifo(path)
    with pytest.raises(InvalidArgument, match="cannot be read"):
        load(path, b"", None, {})


def test_load_refuses_a_relative_path():
    with pytest.raises(InvalidArgument, match="must be an absolute path"):
        load(Path("configuration.toml"), b"", None, {})


def test_load_refuses_a_loop_of_links(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(InvalidArgument, match="cannot be read"):
        load(tmp_path / "a", b"", None, {})


def test_load_refuses_a_directory_among_drop_ins(file, tmp_path):
    (tmp_path / "config.d" / "sub").mkdir(parents=True)
    with pytest.raises(InvalidArgument, match=r"drop-in .*/sub: cannot be read: "):
        load(file, b"", None, {})


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"[", "not valid TOML"),
        (b"\xff", "byte 0 is not UTF-8"),
        (b"#" * (MAX_FILE + 1), "larger than"),
        (b"a = " + b"[" * 100_000, "nested too deeply"),
        (b"a = " + b"9" * 10_000, "not valid TOML"),
    ],
    ids=["syntax", "encoding", "size", "depth", "digits"],
)
def test_load_refuses_what_is_no_toml(data, why):
    with pytest.raises(InvalidArgument, match=why):
        load(None, data, None, {}, search=())


# Wrong values: all of them, each with its place.


def test_load_reports_everything_that_is_wrong_at_once():
    text = refusal('[hypervisor.qemu]\ndefault_memory = 255\nmachine_type = "virt"\n[runtime]\nenable_debug = 1\n')
    assert "option config_body:2: hypervisor.qemu.default_memory: 255 is not between 256 and" in text
    assert 'config_body:3: hypervisor.qemu.machine_type: "virt" is not supported here, only "q35"' in text
    assert "config_body:5: runtime.enable_debug: must be true or false, not an integer" in text


def test_load_counts_what_it_does_not_show():
    held = [key for key in KEYS if key.status is Status.ACCEPTED_AT_DEFAULT and key.table == "hypervisor.qemu"]
    text = refusal("[hypervisor.qemu]\n" + "".join(f"{key.name} = 1979-05-27\n" for key in held))
    assert f"and {len(held) - 16} more" in text


HELD = [key for key in KEYS if key.status is Status.ACCEPTED_AT_DEFAULT]


def off_default(key):
    """A TOML value of the right type that Kata does not have as a default; None when every value is one."""
    candidates = {
        bool: ("true", "false"),
        int: (str(key.default + 3) if isinstance(key.default, int) else "",),
        str: ('"/somewhere/else"',),
        list: ('[{name = "x"}]' if key.name == "guest_extension_images" else '["/something"]',),
    }[type(key.default)]
    if key.name == "internetworking_model":
        candidates = ('"none"',)
    accepted = [toml(value) for value in key.accepted]
    return next((text for text in candidates if text not in accepted), None)


@pytest.mark.parametrize("key", HELD, ids=lambda key: key.dotted)
def test_load_takes_a_held_key_at_each_default(key):
    for value in key.accepted:
        assert body(f"[{key.table}]\n{key.name} = {toml(value)}\n").warnings == ()


@pytest.mark.parametrize("key", [key for key in HELD if off_default(key)], ids=lambda key: key.dotted)
def test_load_refuses_a_held_key_off_its_default(key):
    text = refusal(f"[{key.table}]\n{key.name} = {off_default(key)}\n")
    assert f"config_body:2: {key.dotted}: is not supported here; only its default" in text


def test_only_three_held_keys_mean_the_same_at_every_value():
    always = {key.name for key in HELD if not off_default(key)}
    assert always == {"disable_image_nvdimm", "disable_block_device_use", "disable_guest_empty_dir"}


@pytest.mark.parametrize("name", ["clh", "firecracker", "stratovirt", "remote"])
def test_load_refuses_another_hypervisor(name):
    assert "this hypervisor is not supported; use [hypervisor.qemu]" in refusal(f"[hypervisor.{name}]\n")
    assert "this hypervisor is not supported" in refusal(f"[hypervisor.qemu]\n[hypervisor.{name}]\npath = '/x'\n")


@pytest.mark.parametrize(
    "text", ["hypervisor = 3", "[hypervisor]\nqemu = 'x'", "[[hypervisor.qemu]]\npath = '/x'", "runtime = []"]
)
def test_load_refuses_a_value_where_a_table_must_be(text):
    assert "must be a table" in refusal(text)


@pytest.mark.parametrize("given", ["kernel", "image"])
def test_load_refuses_kernel_without_image_and_the_reverse(given):
    assert "is set without" in refusal(f'[hypervisor.qemu]\n{given} = "/x"\n')


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[hypervisor.qemu]\ndefault_memory = 2048\ndefault_maxmemory = 1024\n", "less than default_memory"),
        ("[hypervisor.qemu]\ndefault_vcpus = 4\ndefault_maxvcpus = 2\n", "less than default_vcpus"),
        ("[shimd.timeouts]\nstop = 1\n", "less than stop_agent"),
    ],
)
def test_load_refuses_values_that_contradict_each_other(text, why):
    assert why in refusal(text)


@pytest.mark.parametrize(
    "text", ['[hypervisor.qemu]\nextra_monitor_socket = "hmp"\n', '[hypervisor.qemu]\nseccompsandbox = "off"\n']
)
def test_load_warns_of_what_is_allowed_but_doubtful(text):
    assert len(body(text).warnings) == 1


# Names nobody knows.


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("[hypervisor.qemu]\ndefault_memry = 1\n", "did you mean default_memory?"),
        ("[runtim]\n", "did you mean runtime?"),
        ("[runtime]\ndefault_memory = 1\n", "did you mean hypervisor.qemu.default_memory?"),
        ('[hypervisor.qemu]\nseccomp_sandbox = "on"\n', "runtime-rs's name; here it is hypervisor.qemu.seccompsandbox"),
        ("[agent.kata]\ndial_timeout_ms = 1\n", "here it is agent.kata.dial_timeout"),
        ("[shimd.timeouts]\nstopp = 1\n", "did you mean stop?"),
    ],
)
def test_load_warns_of_an_unknown_key_with_the_nearest_and_refuses_it_when_strict(text, hint):
    (warning,) = body(text).warnings
    assert hint in warning
    with pytest.raises(InvalidArgument, match="nobody knows this key"):
        body(text + "[shimd]\nstrict = true\n")


def test_load_does_not_guess_when_nothing_is_near():
    (warning,) = body("[runtime]\nxyzzy = 1\n").warnings
    assert warning.endswith("nobody knows this key")


def test_load_tells_a_quoted_key_with_dots_from_a_table():
    loaded = body('"hypervisor.qemu.path" = "/x"\n')
    assert len(loaded.warnings) == 1
    assert loaded.config == defaults()


# What values mean.


def test_defaults_are_those_of_a_fresh_machine():
    config = defaults()
    assert config.hypervisor.path == Path("/usr/bin/qemu-system-x86_64")
    assert Path("/usr/lib/qemu/virtiofsd") in config.hypervisor.virtio_fs_daemon
    assert config.hypervisor.seccompsandbox == "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
    assert (config.hypervisor.default_memory_mib, config.hypervisor.default_vcpus) == (2048, 1)


def test_guest_dir_gives_kernel_initrd_and_image():
    loaded = body('[shimd]\nguest_dir = "/g"\n')
    hypervisor = loaded.config.hypervisor
    assert (hypervisor.kernel, hypervisor.initrd, hypervisor.image) == (
        Path("/g/vmlinuz"),
        Path("/g/initrd.img"),
        Path("/g/rootfs.img"),
    )
    assert hypervisor.rootfs_type is RootfsType.SQUASHFS
    assert str(loaded.origin["hypervisor.qemu.kernel"]) == "default of shimd.guest_dir"


def test_configured_guest_has_no_initrd_and_kata_file_system():
    hypervisor = body('[hypervisor.qemu]\nkernel = "/k"\nimage = "/i"\n').config.hypervisor
    assert (hypervisor.kernel, hypervisor.initrd, hypervisor.image) == (Path("/k"), None, Path("/i"))
    assert hypervisor.rootfs_type is RootfsType.EXT4


def test_rootfs_type_of_the_built_guest_cannot_be_configured():
    loaded = body('[hypervisor.qemu]\nrootfs_type = "ext4"\n')
    assert loaded.config.hypervisor.rootfs_type is RootfsType.SQUASHFS
    assert "does not apply to the guest of shimd.guest_dir" in loaded.warnings[0]
    given = body('[hypervisor.qemu]\nrootfs_type = "erofs"\nkernel = "/k"\nimage = "/i"\n')
    assert (given.config.hypervisor.rootfs_type, given.warnings) == (RootfsType.EROFS, ())


def test_empty_seccompsandbox_keeps_ours_because_kata_ships_it():
    loaded = body('[hypervisor.qemu]\nseccompsandbox = ""\n')
    assert loaded.config.hypervisor.seccompsandbox == defaults().hypervisor.seccompsandbox
    assert str(loaded.origin["hypervisor.qemu.seccompsandbox"]) == "default"


def test_kata_deadlines_are_among_ours():
    timeouts = body("[agent.kata]\ndial_timeout = 7\n[runtime]\ncreate_container_timeout = 8\n").config.timeouts
    assert (timeouts.dial_agent, timeouts.create_container) == (7, 8)


def test_kata_default_model_is_tcfilter():
    assert body('[runtime]\ninternetworking_model = "default"\n').config.runtime.internetworking_model == "tcfilter"


# The tables against the model, and against Kata's file.


def test_tables_fill_every_field_of_the_model():
    named = {table: {key.field for key in KEYS if key.table == table and key.field} for table in TABLES}
    named["hypervisor.qemu"].add("initrd")  # worked out, not configured
    named["shimd.timeouts"] |= set(FROM_KATA)
    assert list(named.values()) == list(stored_fields().values())


def test_every_supported_key_is_stored():
    assert [key.dotted for key in KEYS if key.status is Status.SUPPORTED and not key.field] == []


def test_kata_default_file_loads_without_a_complaint():
    found = examine(KATA, b"", None, {})
    assert found.problems == ()
    assert found.config is not None


def test_tables_have_the_values_that_kata_ships():
    """The file and the tables are two transcriptions of `kata.md` §8; they must agree."""
    shipped = tomllib.loads(KATA.read_text())
    for key in KEYS:
        tree = shipped
        for part in key.path[:-1]:
            tree = tree.get(part, {})
        assert tree.get(key.name, ABSENT) == key.kata, key.dotted


# Anything at all.

NAMES = st.sampled_from([key.name for key in KEYS]) | st.text(
    string.ascii_lowercase + "._\"'\\", min_size=1, max_size=6
)
SCALARS = st.booleans() | st.integers(-(2**70), 2**70) | st.text(max_size=8)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3), max_leaves=4)
SECTIONS = st.dictionaries(
    st.sampled_from([*TABLES, "hypervisor", "agent", "hypervisor.clh", "x"]), st.dictionaries(NAMES, VALUES, max_size=6)
)


@settings(deadline=None)  # what is asked is which errors there are; a busy machine is not one
@given(SECTIONS, st.dictionaries(NAMES, st.text(max_size=8), max_size=4))
def test_load_raises_only_invalid_argument_for_any_tree(sections, annotations):
    lines = []
    for table, values in sections.items():
        lines.append(f"[{table}]")
        lines += [f"{toml(name)} = {toml(value)}" for name, value in values.items()]
    named = {f"io.katacontainers.config.hypervisor.{name}": text for name, text in annotations.items()}
    try:
        loaded = load(None, "\n".join(lines).encode("utf-8", "replace"), None, named, search=())
    except InvalidArgument as error:
        assert error.cause
    else:
        assert isinstance(loaded.config.timeouts, Timeouts)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_load_raises_only_invalid_argument_for_any_bytes(data):
    found = examine(None, data, None, {}, search=())
    assert found.config is not None or any(problem.severity is Severity.ERROR for problem in found.problems)
