"""From the configuration to the VM that it asks for. Part of the composition: config knows no VM, and the VM no configuration."""

import os
import uuid
from collections.abc import Mapping
from typing import Any, Final

from kata_shimd.config.model import AgentTransport, Config, HypervisorConfig, Timeouts
from kata_shimd.net.network import Settings as NetworkSettings
from kata_shimd.net.plan import Model
from kata_shimd.pod import spec as oci
from kata_shimd.pod.pump import CHUNK
from kata_shimd.vm import accel
from kata_shimd.vm.spec import ROOT_PORTS, SANDBOX, Budgets, CacheMode, ExtraMonitor, ShareSpec, Transport, VmSpec

#: Kata's default arguments that virtiofsd gets from us anyway, in the words of its own dialect.
_ALWAYS: Final = frozenset({"--announce-submounts"})


#: For the agent of the guest built here; what is configured comes later, and counts. A read of the pump's is answered with what is
#: in the pipe: one that holds what the pump asks for saves three of four round trips, which cost more than the bytes. A clone finds
#: its devices while it is spoken to already: the agent's three seconds were not enough on a busy host, and the pod's end.
OWN_PARAMS: Final = (f"agent.container_pipe_size={CHUNK}", "agent.hotplug_timeout=20")


def vm_spec(sandbox_id: str, config: Config, choice: accel.Choice) -> VmSpec:
    """The pod's VM. An image without an initrd boots by itself, as Kata's do, from its first partition."""
    hypervisor, cpus = config.hypervisor, os.cpu_count() or 1
    own_guest = hypervisor.initrd is not None
    return VmSpec(
        name=f"sandbox-{sandbox_id}",
        uuid=str(uuid.uuid4()),
        qemu=hypervisor.path,
        accelerator=choice.accelerator,
        kernel=hypervisor.kernel,
        image=hypervisor.image,
        initrd=hypervisor.initrd,
        image_fstype=hypervisor.rootfs_type.value,
        image_partition=0 if hypervisor.initrd else 1,
        kernel_params=(*(OWN_PARAMS if own_guest else ()), *hypervisor.kernel_params, *_agent_params(config)),
        vcpus=hypervisor.boot_vcpus(cpus),
        max_vcpus=hypervisor.max_vcpus(cpus),
        memory_mib=hypervisor.default_memory_mib,
        max_memory_mib=hypervisor.max_memory_mib(_host_memory_mib()),
        memory_slots=hypervisor.memory_slots,
        machine_options=hypervisor.machine_accelerators,
        cpu_features=hypervisor.cpu_features,
        sandbox=hypervisor.seccompsandbox or SANDBOX,
        root_ports=ROOT_PORTS + hypervisor.pcie_root_port,
        transport=transport(config.shimd.agent_transport, own_guest=own_guest),
        entropy=hypervisor.entropy_source,
        extra_monitor=ExtraMonitor(hypervisor.extra_monitor_socket.value),
        debug=hypervisor.enable_debug,
        console_log_bytes=config.shimd.console_log_size_kib << 10,
        share=_share(hypervisor),
    )


def _share(hypervisor: HypervisorConfig) -> ShareSpec:
    return ShareSpec(
        programs=hypervisor.virtio_fs_daemon,
        cache=CacheMode(hypervisor.virtio_fs_cache.value),
        queue_size=hypervisor.virtio_fs_queue_size,
        extra_args=tuple(arg for arg in hypervisor.virtio_fs_extra_args if arg not in _ALWAYS),
    )


def _agent_params(config: Config) -> tuple[str, ...]:
    """What the agent reads from the kernel's command line (`kata.md` §3.6)."""
    params = ["agent.log=debug"] if config.agent.enable_debug else []
    if config.agent.launch_process_timeout_s is not None:
        params.append(f"agent.launch_process_timeout={config.agent.launch_process_timeout_s}")
    return tuple(params)


def transport(setting: AgentTransport, *, own_guest: bool) -> Transport:
    """`auto` is virtio-serial for the guest built here, and vsock for Kata's, whose agent listens nowhere else."""
    if setting is not AgentTransport.AUTO:
        return Transport(setting.value)
    return Transport.VIRTIO_SERIAL if own_guest else Transport.VSOCK


def network_settings(spec: Mapping[str, Any], config: Config) -> NetworkSettings:
    """The pod's network. A CRI sandbox's is complete before its VM begins; others get theirs when they like."""
    hypervisor, runtime = config.hypervisor, config.runtime
    return NetworkSettings(
        path=oci.namespaces(spec).get("network"),
        model=Model(runtime.internetworking_model.value),
        new_namespace=not runtime.disable_new_netns,
        queues=hypervisor.boot_vcpus(os.cpu_count() or 1),
        vhost=not hypervisor.disable_vhost_net,
        needs_address=oci.kind(spec) is oci.Kind.SANDBOX,
    )


def vm_budgets(timeouts: Timeouts) -> Budgets:
    """The VM's share of the deadlines."""
    return Budgets(
        qmp=timeouts.qmp,
        dial=timeouts.dial_agent,
        hello_interval=timeouts.hello_interval,
        hotplug=timeouts.hotplug,
        quit=timeouts.stop_quit,
        term=timeouts.stop_term,
        killed=timeouts.stop_kill,
        last_words=timeouts.last_words,
        virtiofsd=timeouts.virtiofsd,
        clone=timeouts.clone,
    )


def _host_memory_mib() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
