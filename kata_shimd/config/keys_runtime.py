"""The keys of [agent.kata], [runtime] and [factory] (`kata.md` §8.3 to §8.5) and their annotations. Data only."""

from typing import Final

from kata_shimd.config.key import ABSENT, AGENT, RUNTIME, Annotation, Key, Table
from kata_shimd.config.kinds import (
    BOOL,
    MODULES,
    PATH,
    READ_ONLY_PATHS,
    SECONDS,
    STR,
    STRINGS,
    UINT,
    WHOLE_SECONDS,
    choice,
    go_bool,
)
from kata_shimd.config.model import InternetworkingModel

A: Final = Table("agent.kata", AGENT)
R: Final = Table("runtime", RUNTIME)
F: Final = Table("factory")

AGENT_KEYS: Final[tuple[Key, ...]] = (
    A.acts("enable_debug", BOOL, False, "the agent logs at level debug"),
    A.acts(
        "kernel_modules",
        MODULES,
        [],
        "modules, with parameters, loaded in the guest before its first container",
        note="kernel_modules",
    ),
    A.acts("dial_timeout", SECONDS, 45, "how long the agent may take to answer after QEMU runs", unit="s", inside=True),
    A.acts(
        "launch_process_timeout",
        WHOLE_SECONDS,
        ABSENT,
        "the agent's own deadline for starting a helper process",
        unit="s",
        kata=ABSENT,
    ),
    A.held("enable_tracing", BOOL, False, "tracing inside the agent", note="enable_tracing"),
    A.held("debug_console_enabled", BOOL, False, "Kata's shell in the guest"),
    A.held("cdh_api_timeout", UINT, 50, "deadline of the confidential data hub"),
    A.held("visible_cdi_devices", BOOL, False, "CDI devices visible to every container"),
)

RUNTIME_KEYS: Final[tuple[Key, ...]] = (
    R.acts("enable_debug", BOOL, False, "the daemon logs at level debug"),
    R.acts(
        "internetworking_model",
        choice(InternetworkingModel, aliases={"default": "tcfilter"}),
        "tcfilter",
        "how the pod's interfaces reach the VM",
        note="internetworking_model",
    ),
    R.acts(
        "disable_new_netns",
        BOOL,
        False,
        'stay in the host\'s network namespace; only with the model "none"',
        note="disable_new_netns",
    ),
    R.acts(
        "disable_guest_seccomp",
        BOOL,
        True,
        "do not hand containers' seccomp profiles to the guest",
        note="disable_guest_seccomp",
    ),
    R.acts(
        "sandbox_cgroup_only",
        BOOL,
        False,
        "everything of a pod in the pod's own cgroup; else where containerd starts shims",
        note="sandbox_cgroup_only",
    ),
    R.held(
        "static_sandbox_resource_mgmt",
        BOOL,
        False,
        "size the VM once, at boot, from the sandbox's annotations",
        field="static_sandbox_resource_mgmt",
    ),
    R.held(
        "sandbox_bind_mounts",
        READ_ONLY_PATHS,
        [],
        "host paths that every pod sees read-only",
        field="sandbox_bind_mounts",
    ),
    R.acts(
        "create_container_timeout",
        SECONDS,
        60,
        "deadline of creating a container in the guest",
        unit="s",
        note="create_container_timeout",
        inside=True,
    ),
    R.held(
        "enable_vcpus_pinning",
        BOOL,
        False,
        "one host CPU for each vCPU",
        note=Annotation(name="io.katacontainers.enable_vcpus_pinning", text=go_bool),
    ),
    R.held("guest_selinux_label", STR, "", "label of processes in the guest", note="guest_selinux_label"),
    R.held("enable_tracing", BOOL, False, "trace the daemon"),
    R.held("jaeger_endpoint", STR, "", "collector of traces"),
    R.held("jaeger_user", STR, "", "its user"),
    R.held("jaeger_password", STR, "", "its password"),
    R.held("vfio_mode", STR, "guest-kernel", "who drives VFIO devices", note="vfio_mode"),
    R.held("disable_guest_empty_dir", BOOL, True, "emptyDir volumes on the host", code=False),
    R.held("emptydir_mode", STR, "shared-fs", "kind of emptyDir volumes"),
    R.held("experimental", STRINGS, [], "experimental features by name", note="experimental"),
    R.held(
        "experimental_force_guest_pull", BOOL, False, "the guest pulls images", note="experimental_force_guest_pull"
    ),
    R.held("enable_pprof", BOOL, False, "profiles of Kata's own daemon", note="enable_pprof"),
    R.held("dan_conf", STR, "/run/kata-containers/dans", "directly attached networks"),
    R.held("kubelet_root_dir", STR, "/var/lib/kubelet", "where the kubelet keeps volumes"),
    R.held("pod_resource_api_sock", STR, "", "the kubelet's socket for devices"),
)

FACTORY_KEYS: Final[tuple[Key, ...]] = (
    F.acts(
        "enable_template",
        BOOL,
        True,
        "pods are clones of a guest that was booted once, where they can be",
        kata=False,
    ),
    F.acts("template_path", PATH, "/run/vc/vm/template", "where templates lie: on a tmpfs, or there are none"),
    F.held("vm_cache_number", UINT, 0, "VMs kept ready"),
    F.held("vm_cache_endpoint", STR, "/var/run/kata-containers/cache.sock", "socket of the cache"),
)

KEYS: Final[tuple[Key, ...]] = (*AGENT_KEYS, *RUNTIME_KEYS, *FACTORY_KEYS)
