"""A pod's VM from a template: its own copy of the memory, the device state, and what is plugged in before it runs on."""

import asyncio
import os
from collections.abc import Awaitable, Callable

from kata_shimd.errors import DeadlineExceeded, VmFailed
from kata_shimd.host.process import Gate
from kata_shimd.journal import Journal
from kata_shimd.ledger import Ledger
from kata_shimd.vm import machine, share
from kata_shimd.vm.machine import Ground, Machine
from kata_shimd.vm.race import Ended, while_lives
from kata_shimd.vm.spec import Budgets, VmSpec
from kata_shimd.vm.template import key, memory, migration
from kata_shimd.vm.template.store import Refused, Template

Step = Callable[[Machine], Awaitable[None]]


async def start(
    spec: VmSpec,
    template: Template,
    ground: Ground,
    ledger: Ledger,
    journal: Journal,
    gate: Gate,
    group: asyncio.TaskGroup,
    budgets: Budgets,
    plug: Step,
) -> Machine:
    """A clone that runs, with its shared directory and what ``plug`` gives it. What is its own it has not been told yet, so it is
    provisional, and half a clone on record.

    :raises Refused: the template's memory is not what was written
    :raises ShimError: it failed; in either case nothing of it is left but the ground it stood on
    """
    own = key.clone(spec)
    ledger.set(machine.HALF, True)
    ram = memory.new(template.size)
    copying = asyncio.get_running_loop().run_in_executor(None, _copy, template, ram)
    try:
        vm = await machine.spawn(own, ground, ledger, journal, gate, group, budgets, memory=ram)
        vm.provisional = True
        try:
            with ground.phases("qmp"):
                await machine.reach(vm, own)
            with ground.phases("memory"):
                await copying
            with ground.phases("load"):
                await _load(vm, own, template, budgets, plug)
        except BaseException:
            await vm.retire(ledger)
            raise
    finally:
        await asyncio.wait([copying])
        os.close(ram)
    return vm


def _copy(template: Template, ram: int) -> None:
    """Blocks."""
    memory.copy(template.memory, ram)
    if memory.checksum(ram) != template.checksum:
        raise Refused("read template", template.key, "its memory is not what was written")


async def _load(vm: Machine, spec: VmSpec, template: Template, budgets: Budgets, plug: Step) -> None:
    """State, devices, run: a device that is there when the guest wakes is one of the first things it sees."""
    try:
        async with while_lives(vm.end):
            await migration.load(vm.monitor, template.state, timeout=budgets.qmp)
            await share.plug(vm.monitor, spec)
            await plug(vm)
            await vm.monitor.execute("cont")
    except Ended:
        raise await vm.failure("clone VM", template.key) from None
    except (TimeoutError, DeadlineExceeded) as error:
        raise await vm.failure("clone VM", template.key, str(error) or f"no end in {budgets.qmp:g} s") from error
    except VmFailed as error:
        await vm.settle()
        raise await vm.failure("clone VM", template.key, error.cause) from error
