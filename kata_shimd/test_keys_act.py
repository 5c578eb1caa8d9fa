"""Every supported key does something: to what QEMU, virtiofsd or the agent are given, to a deadline, or as a test says elsewhere.

The table is complete by a test of its own, so a key cannot become supported without a line here.
"""

import asyncio
import re
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest

from kata_shimd import assembly
from kata_shimd.config import load
from kata_shimd.config.keys import supported
from kata_shimd.config.model import Accelerator as ConfiguredAccelerator
from kata_shimd.survive import keeper_argv
from kata_shimd.vm import accel, virtiofsd
from kata_shimd.vm.argv import argv
from kata_shimd.vm.spec import Wires
from kata_shimd.vmspec import network_settings, vm_budgets, vm_spec

CHOICE = accel.Choice(accel.Accelerator.TCG, "test")
WIRES = Wires(monitor=3, debug_monitor=4, console=5, share=6, agent=7, extra_monitor=8)
HERE = Path(__file__).parent


def configured(text, notes=()):
    return load(None, text.encode(), None, dict(notes), search=()).config


def qemu(config):
    return " ".join(argv(vm_spec("s", config, CHOICE), WIRES))


def share(config):
    spec = vm_spec("s", config, CHOICE).share
    rust = virtiofsd.argv(spec.programs[0], virtiofsd.Dialect.RUST, spec, Path("/d"), 3, debug=False)
    return " ".join([*rust, *map(str, spec.programs)])


def sandbox(config):
    """What the agent is told of the pod."""
    arguments = SimpleNamespace(bundle=HERE / "nowhere", sandbox_id="s")
    parts = SimpleNamespace(loaded=SimpleNamespace(config=config), survival=None)

    async def told():
        booter = assembly.Booter(arguments, parts, CHOICE, config.deadlines(ConfiguredAccelerator.KVM))
        return " ".join(booter._sandbox({}).kernel_modules)

    return asyncio.run(told())


def network(config):
    return str(network_settings({"linux": {"namespaces": [{"type": "network"}]}}, config))


def deadlines(config):
    timeouts = config.deadlines(ConfiguredAccelerator.KVM)
    arguments, parts = (
        SimpleNamespace(launcher=HERE, namespace="n"),
        SimpleNamespace(ledger=None, environ={}, survival=None),
    )
    loggers = assembly._loggers(arguments, parts, timeouts)
    publisher = assembly._publisher(arguments, parts, timeouts)
    shares = assembly.budgets(timeouts), vm_budgets(timeouts), assembly.agent_deadlines(timeouts)
    return f"{shares} logger={loggers._ready} logger_end={loggers._end} event={publisher._attempt}"


def keeper(config):
    """How the keeper is begun."""
    argv = keeper_argv(config.shimd, 7, 3, Path("/l"), Path("/p"), ["/python3"])
    return " ".join(argv)


def console(config):
    return str(vm_spec("s", config, CHOICE).console_log_bytes)


Q, A, S, T = "[hypervisor.qemu]\n", "[agent.kata]\n", "[shimd]\n", "[shimd.timeouts]\n"
#: The timeouts, and what they are called where they are used.
SHARES = {
    "hello_interval": "hello_interval", "health": "check", "health_interval": "health_interval", "agent_rpc": "usual",
    "kill": "kill", "qmp": "qmp", "hotplug": "logger", "stop_agent": "stop", "stop_quit": "quit", "stop_term": "term",
    "drain": "drain", "output_stall": "no_progress", "execs_end": "execs_end", "create_wait": "create_wait",
    "create_sandbox": "create_sandbox", "virtiofsd": "virtiofsd", "stop_kill": "killed", "last_words": "last_words",
    "reader_stall": "reader_stall", "abandoned_wait": "abandoned_wait", "teardown_step": "logger_end", "publish_event": "event",
    "clone": "clone",
}  # fmt: skip
#: Key → (what looks, a configuration with the key, what is then seen and is not by default).
ACTS = {
    "hypervisor.qemu.path": (qemu, Q + 'path = "/opt/q"', "/opt/q -name"),
    "hypervisor.qemu.machine_accelerators": (qemu, Q + 'machine_accelerators = "usb=off"', "usb=off"),
    "hypervisor.qemu.cpu_features": (qemu, Q + 'cpu_features = "-vmx"', "-vmx"),
    "hypervisor.qemu.seccompsandbox": (qemu, Q + 'seccompsandbox = "on,spawn=deny"', "-sandbox on,spawn=deny "),
    "hypervisor.qemu.entropy_source": (qemu, Q + 'entropy_source = "/dev/random"', "filename=/dev/random"),
    "hypervisor.qemu.enable_debug": (qemu, Q + "enable_debug = true", "systemd.log_level=debug"),
    "hypervisor.qemu.extra_monitor_socket": (
        qemu, Q + 'enable_debug = true\nextra_monitor_socket = "hmp"', "mode=readline",
    ),
    "hypervisor.qemu.kernel": (qemu, Q + 'kernel = "/k"\nimage = "/i"', "-kernel /k "),
    "hypervisor.qemu.image": (qemu, Q + 'kernel = "/k"\nimage = "/i"', "filename=/i"),
    "hypervisor.qemu.rootfs_type": (qemu, Q + 'kernel = "/k"\nimage = "/i"\nrootfs_type = "xfs"', "rootfstype=xfs"),
    "hypervisor.qemu.kernel_params": (qemu, Q + 'kernel_params = "a.b=c"', " a.b=c"),
    "hypervisor.qemu.default_memory": (qemu, Q + "default_memory = 777", "777M"),
    "hypervisor.qemu.default_maxmemory": (qemu, Q + "default_maxmemory = 2816", "maxmem=2816M"),
    "hypervisor.qemu.memory_slots": (qemu, Q + "memory_slots = 3", "slots=3"),
    "hypervisor.qemu.virtio_fs_daemon": (share, Q + 'virtio_fs_daemon = "/opt/v"', "/opt/v --fd"),
    "hypervisor.qemu.virtio_fs_cache": (share, Q + 'virtio_fs_cache = "always"', "--cache=always"),
    "hypervisor.qemu.virtio_fs_queue_size": (qemu, Q + "virtio_fs_queue_size = 512", "queue-size=512"),
    "hypervisor.qemu.virtio_fs_extra_args": (share, Q + 'virtio_fs_extra_args = ["--x"]', "--x"),
    "hypervisor.qemu.pcie_root_port": (qemu, Q + "pcie_root_port = 2", "rp5"),
    "agent.kata.enable_debug": (qemu, A + "enable_debug = true", "agent.log=debug"),
    "agent.kata.kernel_modules": (sandbox, A + 'kernel_modules = ["dummy numdummies=2"]', "dummy numdummies=2"),
    "agent.kata.dial_timeout": (deadlines, A + "dial_timeout = 77", "dial=77.0"),
    "agent.kata.launch_process_timeout": (qemu, A + "launch_process_timeout = 9", "agent.launch_process_timeout=9"),
    "runtime.create_container_timeout": (deadlines, "[runtime]\ncreate_container_timeout = 77", "create_container=77.0"),
    "hypervisor.qemu.disable_vhost_net": (network, Q + "disable_vhost_net = true", "vhost=False"),
    "runtime.internetworking_model": (network, '[runtime]\ninternetworking_model = "macvtap"', "Model.MACVTAP"),
    "runtime.disable_new_netns": (network, "[runtime]\ndisable_new_netns = true", "new_namespace=False"),
    "shimd.keeper_spare": (keeper, S + "keeper_spare = true", "--spare"),
    "shimd.keeper_deaths": (keeper, S + "keeper_deaths = 77", "--deaths 77"),
    "shimd.keeper_seconds": (keeper, S + "keeper_seconds = 77", "--within 77"),
    "shimd.guest_dir": (qemu, S + 'guest_dir = "/g"', "-kernel /g/vmlinuz"),
    "shimd.agent_transport": (lambda config: vm_spec("s", config, CHOICE).transport, S + 'agent_transport = "vsock"', "vsock"),
    "shimd.time_scale": (deadlines, S + "time_scale = 7", "kill=35.0"),
    "shimd.console_log_size_kib": (console, S + "console_log_size_kib = 16", "16384"),
    **{f"shimd.timeouts.{key}": (deadlines, T + f"{key} = 0.77", f"{field}=0.77") for key, field in SHARES.items()},
}  # fmt: skip
#: Of the host's CPUs, of annotations, of a daemon that runs, or of a key with one value only: where it is shown.
ELSEWHERE = {
    "runtime.sandbox_cgroup_only": "../integration/cri/test_cgroup.py::test_everything_of_a_pod_is_in_its_group",
    "hypervisor.qemu.machine_type": "config/test_load.py::test_load_reports_everything_that_is_wrong_at_once",
    "hypervisor.qemu.shared_fs": "config/test_load.py::test_load_refuses_a_held_key_off_its_default",
    "hypervisor.qemu.valid_hypervisor_paths": "config/test_annotations.py::test_path_outside_its_allow_list_is_refused",
    "hypervisor.qemu.valid_entropy_sources": "config/test_annotations.py::test_path_outside_its_allow_list_is_refused",
    "hypervisor.qemu.valid_virtio_fs_daemon_paths": "config/test_annotations.py::test_path_outside_its_allow_list_is_refused",
    "hypervisor.qemu.enable_annotations": "config/test_annotations.py::test_pattern_that_matches_the_whole_name_enables_it",
    "hypervisor.qemu.default_vcpus": "config/test_model.py::test_boot_vcpus",
    "hypervisor.qemu.default_maxvcpus": "config/test_model.py::test_max_vcpus_is_within_the_host_and_never_below_boot",
    "runtime.enable_debug": "test_event_loop.py::test_debug_of_the_runtime_is_the_daemons_level",
    "runtime.disable_guest_seccomp": "pod/test_spec.py::test_seccomp_only_where_it_is_wanted",
    "shimd.keeper": "../integration/keeper/test_control.py::test_a_container_is_listed_and_awaited_through_five_deaths",
    "shimd.attach": "../integration/test_attach.py::test_a_configuration_that_allows_none",
    "factory.enable_template": "../integration/template/test_identity.py::test_ready_is_sooner_than_a_boot_of_the_same",
    "factory.template_path": "../integration/template/test_faults.py::test_a_tmpfs_that_is_full",
    "shimd.strict": "config/test_load.py::test_load_warns_of_an_unknown_key_with_the_nearest_and_refuses_it_when_strict",
    "shimd.accelerator": "vm/test_accel.py::test_an_explicit_setting_wins_unasked",
    "shimd.event_loop": "test_event_loop.py::test_uvloop_is_taken_where_it_is_there",
    "shimd.journal_size_kib": "test_journal.py::test_it_is_bounded_and_keeps_the_newest",
    "shimd.journal_keep": "test_journal.py::test_prune_keeps_the_newest_dead_and_all_living",
    "shimd.timeouts.stop": "config/test_load.py::test_load_refuses_values_that_contradict_each_other",
}


@pytest.fixture(autouse=True)
def bundle(monkeypatch):
    monkeypatch.setattr(assembly.oci, "load", lambda _bundle: {})


@pytest.mark.parametrize("key", ACTS)
def test_a_supported_key_acts(key):
    look, text, seen = ACTS[key]
    assert seen not in look(configured("")), "by default as well"
    assert seen in look(configured(text))


def test_every_supported_key_has_a_line():
    assert {key.dotted for key in supported()} == {*ACTS, *ELSEWHERE}


@pytest.mark.parametrize(
    "share", [assembly.budgets, vm_budgets, assembly.agent_deadlines], ids=lambda share: share.__name__
)
def test_no_deadline_stays_out_of_the_time_scale(share):
    """One that the composition forgets would have its own default, whatever the accelerator."""
    timeouts = configured("").timeouts
    once, thrice = asdict(share(timeouts)), asdict(share(timeouts.times(3)))
    assert thrice == {name: 3 * seconds for name, seconds in once.items()}


@pytest.mark.parametrize("where", sorted(set(ELSEWHERE.values())))
def test_what_is_shown_elsewhere_is_there(where):
    file, _, name = where.partition("::")
    assert re.search(rf"^(async )?def {name}\b", (HERE / file).read_text(), re.MULTILINE), where
