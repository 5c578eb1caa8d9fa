"""From configuration to VM: what is decided between the two."""

from dataclasses import replace

import pytest

from kata_shimd.config import defaults
from kata_shimd.config.model import AgentTransport
from kata_shimd.pod.pump import CHUNK
from kata_shimd.vm.accel import Accelerator, Choice
from kata_shimd.vm.spec import Transport
from kata_shimd.vmspec import transport, vm_budgets, vm_spec

TCG = Choice(Accelerator.TCG, "test")


def test_defaults_boot_the_guest_built_here():
    spec = vm_spec("p1", defaults(), TCG)
    assert (spec.name, spec.accelerator, spec.memory_mib) == ("sandbox-p1", Accelerator.TCG, 2048)
    assert spec.initrd is not None and spec.image_partition == 0 and spec.image_fstype == "squashfs"
    assert spec.transport is Transport.VIRTIO_SERIAL
    assert spec.sandbox.startswith("on,")
    assert spec.max_memory_mib >= spec.memory_mib and spec.max_vcpus >= spec.vcpus


def test_the_guest_built_here_has_pipes_as_large_as_a_read_and_patience_unless_configured():
    hypervisor = replace(defaults().hypervisor, kernel_params=("agent.container_pipe_size=4096",))
    own = vm_spec("p1", replace(defaults(), hypervisor=hypervisor), TCG).kernel_params
    patience = "agent.hotplug_timeout=20"
    assert own[:3] == (f"agent.container_pipe_size={CHUNK}", patience, "agent.container_pipe_size=4096")
    katas = replace(hypervisor, initrd=None, kernel_params=())
    assert vm_spec("p1", replace(defaults(), hypervisor=katas), TCG).kernel_params == ()


@pytest.mark.parametrize(
    ("setting", "own_guest", "chosen"),
    [
        (AgentTransport.AUTO, True, Transport.VIRTIO_SERIAL),
        (AgentTransport.AUTO, False, Transport.VSOCK),
        (AgentTransport.VSOCK, True, Transport.VSOCK),
        (AgentTransport.VIRTIO_SERIAL, False, Transport.VIRTIO_SERIAL),
    ],
)
def test_transport(setting, own_guest, chosen):
    assert transport(setting, own_guest=own_guest) is chosen


def test_deadlines_reach_the_vm_scaled():
    timeouts = defaults().timeouts
    assert vm_budgets(timeouts.times(4)).dial == 4 * timeouts.dial_agent
