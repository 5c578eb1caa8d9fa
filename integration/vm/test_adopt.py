"""A daemon that is killed loses nothing: another finds QEMU, its monitor, its console and its agent by the ledger."""

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

from integration.vm.site import BUDGETS
from integration.vm.test_life import DEADLINES, gone, pids
from kata_shimd.agent.client import AgentClient
from kata_shimd.vm.adopt import adopt

ROOT = Path(__file__).parents[2]


def first_daemon(site):
    """Boot in a process that is killed once its agent is reached."""
    done = subprocess.run(
        [sys.executable, "-c", "import sys, integration.vm.doomed as d; d.main(sys.argv[1])", str(site.run)],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    site.ledger.refresh()


async def adopted(site, group):
    return await adopt(site.ledger, site.journal, group, BUDGETS)


def test_a_later_daemon_takes_over(site, run):
    first_daemon(site)

    async def body():
        async with asyncio.TaskGroup() as group:
            vm = await adopted(site, group)
            assert vm.pid == pids(site)["qemu"]
            assert await vm.monitor.status() == "running"
            agent = AgentClient(await vm.dial(), DEADLINES)
            await agent.check()
            agent.close()
            await vm.stop()
            return await vm.wait()

    assert run(body()).cause == "QEMU was asked to quit"


def test_the_end_of_an_adopted_vm_is_seen(site, run):
    first_daemon(site)

    async def body():
        async with asyncio.TaskGroup() as group:
            vm = await adopted(site, group)
            vm.kill()
            async with asyncio.timeout(5):
                return await vm.wait()

    assert run(body()).cause == "QEMU ended"


def test_a_vm_that_has_ended_is_not_adopted(site, run):
    first_daemon(site)
    subprocess.run(["kill", "-9", str(pids(site)["qemu"])], check=True)

    async def body():
        async with asyncio.TaskGroup() as group:
            return await adopted(site, group)

    assert run(body()) is None


def test_the_ledger_of_a_killed_daemon_is_enough_to_undo(site):
    first_daemon(site)
    processes = pids(site)
    assert site.undo() == ""
    assert all(gone(pid) for pid in processes.values())
