"""Boots a guest up to its agent and makes a template of it."""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Final

from kata_shimd.errors import DeadlineExceeded, ResourceExhausted
from kata_shimd.host.process import Gate
from kata_shimd.journal import Journal
from kata_shimd.ledger import Ledger
from kata_shimd.vm import machine, qemu
from kata_shimd.vm.machine import Machine
from kata_shimd.vm.phases import Phases
from kata_shimd.vm.spec import Budgets, VmSpec
from kata_shimd.vm.template import key, memory, migration
from kata_shimd.vm.template.store import Store

#: Asks the guest's agent, reached over this socket, to be ready to be copied, and lets go of it.
Prepare = Callable[[socket.socket], Awaitable[None]]
MIB: Final = 1 << 20


async def make(
    spec: VmSpec,
    store: Store,
    stage: Ledger,
    journal: Journal,
    gate: Gate,
    group: asyncio.TaskGroup,
    budgets: Budgets,
    prepare: Prepare,
) -> int:
    """Make the template of pods with ``spec``. Whatever happens, QEMU has ended when this returns.

    :param stage: of a directory of its own, where the VM lives meanwhile
    :returns: bytes of guest RAM that a clone will copy
    :raises ShimError: it could not be booted, saved or written
    """
    origin = key.original(spec)
    qemu.check_files(origin)
    depends = key.inputs(spec)
    ram = memory.new(spec.memory_mib * MIB)
    try:
        ground = machine.Ground(Phases(journal))
        vm = await machine.start(origin, ground, stage, journal, gate, group, budgets, memory=ram)
        try:
            state = await _state(vm, budgets, prepare)
            return await asyncio.to_thread(store.publish, key.name(depends), depends, state, ram)
        finally:
            vm.kill()
            await vm.wait()
    finally:
        os.close(ram)


async def _state(vm: Machine, budgets: Budgets, prepare: Prepare) -> bytes:
    """Wait for the agent, prepare it, stop the guest for ever."""
    await prepare(await vm.dial())
    await vm.monitor.execute("stop")
    try:
        return await migration.save(vm.monitor, timeout=budgets.qmp)
    except (TimeoutError, DeadlineExceeded, ResourceExhausted) as error:
        raise await vm.failure("save VM", "", str(error) or f"no end in {budgets.qmp:g} s") from error
