"""A clone is a machine like any other: CPUs and memory that are plugged into it after it was made become the guest's."""

import asyncio
import gc
import re
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from integration.template.conftest import GUEST
from integration.vm.site import BUDGETS, LAUNCHER, SPEC, Site
from integration.vm.test_life import DEADLINES
from kata_shimd.agent.client import AgentClient
from kata_shimd.api import agent as pb
from kata_shimd.api.services import agent as rpcs
from kata_shimd.templates import Site as TemplateSite
from kata_shimd.templates import Templates
from kata_shimd.vm import machine
from kata_shimd.vm.machine import Machine
from kata_shimd.vm.spec import VmSpec

pytestmark = pytest.mark.vm

MORE_MIB = 256


@pytest.fixture(scope="module", autouse=True)
def module_leaves_nothing() -> None:
    """In place of the one that looks at containerd; the site looks for itself."""


@pytest.fixture(autouse=True)
def leaves_nothing() -> None:
    """The same."""


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.close()


@pytest.fixture
def path() -> Iterator[Path]:
    made = Path("/dev/shm", f"kt-{secrets.token_hex(4)}")
    yield made
    shutil.rmtree(made)


def spec() -> VmSpec:
    files = {
        name: GUEST / file for name, file in (("kernel", "vmlinuz"), ("initrd", "initrd.img"), ("image", "rootfs.img"))
    }
    return replace(SPEC, **files)


async def cloned(site: Site, path: Path, group: asyncio.TaskGroup) -> Machine:
    where = TemplateSite(path=path, run_dir=site.run, launcher=LAUNCHER, budgets=BUDGETS, deadlines=DEADLINES)
    ground = await machine.prepare(spec(), site.pod_dir, site.ledger, site.journal, BUDGETS)
    templates = Templates(where, group, site.journal.write)
    await templates.make(spec())
    vm = await templates.clone(spec(), ground, site.ledger, site.journal, site.gate, None)
    assert vm is not None, site.events("template-failed") + site.events("clone-failed")
    return vm


async def plug(vm: Machine) -> None:
    free = next(cpu for cpu in await vm.monitor.execute("query-hotpluggable-cpus") if "qom-path" not in cpu)
    await vm.monitor.execute("device_add", {"driver": free["type"], "id": "cpu1", **free["props"]})
    backend = {"qom-type": "memory-backend-memfd", "id": "more", "size": MORE_MIB << 20, "share": True}
    await vm.monitor.execute("object-add", backend)
    await vm.monitor.execute("device_add", {"driver": "pc-dimm", "id": "dimm", "memdev": "more"})


async def guest(agent: AgentClient) -> tuple[int, int]:
    """CPUs that have run, and MiB of memory."""
    text = (await agent._call(rpcs.GET_METRICS, pb.GetMetricsRequest(), DEADLINES.usual)).metrics
    cpus = set(re.findall(r'kata_guest_cpu_time\{cpu="(cpu\d+|\d+)"', text))
    total = re.search(r'kata_guest_meminfo\{item="mem_?total"\} (\d+)', text, re.IGNORECASE)
    assert total is not None, text[:2000]
    return len(cpus), int(total[1]) // 1024


def test_cpus_and_memory_are_plugged_into_a_clone(site: Site, path: Path) -> None:
    async def body() -> Any:
        async with asyncio.TaskGroup() as group:
            vm = await cloned(site, path, group)
            agent = AgentClient(await vm.dial(), DEADLINES)
            before = await guest(agent)
            await plug(vm)
            request = pb.OnlineCpuMemRequest(wait=True, nb_cpus=1)
            await agent._call(rpcs.ONLINE_CPU_MEM, request, DEADLINES.usual)
            after = await guest(agent)
            agent.close()
            vm.kill()
        return before, after

    gc.collect()  # of what other tests have left, some holds a descriptor
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    (cpus, memory), (more_cpus, more_memory) = asyncio.run(body())
    assert (more_cpus - cpus, more_memory - memory) == (1, MORE_MIB)
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors
