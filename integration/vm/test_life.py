"""A real VM: what it may do, how it is reached, and every way it can end."""

import asyncio
import os
import signal
import stat
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from integration.harness.scale import SCALE
from integration.harness.waiting import eventually
from integration.vm.site import BUDGETS, SPEC
from kata_shimd.agent.client import AgentClient, Deadlines
from kata_shimd.vm import user
from kata_shimd.vm.spec import ExtraMonitor

DEADLINES = Deadlines(check=30 * SCALE, create_sandbox=60 * SCALE, create_container=60 * SCALE, usual=60 * SCALE)


def status(pid):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def pids(site):
    """What the ledger says of QEMU and virtiofsd."""
    return {r.fields["what"]: r.fields["pid"] for r in site.ledger.state.live.values() if r.kind == "process"}


def gone(pid):
    return not Path(f"/proc/{pid}").exists() or "State:\tZ" in Path(f"/proc/{pid}/status").read_text()


def test_an_unprivileged_vm_whose_agent_answers(site, run):
    async def body():
        async with site.booted() as vm:
            assert await vm.monitor.status() == "running"
            assert vm.pid == pids(site)["qemu"]
            confined(vm.pid, pids(site)["virtiofsd"])
            agent = AgentClient(await vm.dial(), DEADLINES)
            await agent.check()
            agent.close()
            await vm.stop()
            return await vm.wait()

    end = run(body())
    assert end.cause == "QEMU was asked to quit"
    assert end.detail["reason"] == "host-qmp-quit"
    assert [event["phase"] for event in site.events("boot-phase")] == ["check", "share", "spawn", "qmp", "dial"]


def confined(qemu, virtiofsd):
    """QEMU is nobody in a sandbox; virtiofsd cannot gain what it gave up."""
    now = status(qemu)
    (uid,) = set(now["Uid"].split())
    assert user.FIRST <= int(uid) <= user.LAST
    assert set(now["Gid"].split()) == {uid}
    assert now["Groups"] == ""
    assert {now[name] for name in ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb")} == {"0" * 16}
    assert (now["NoNewPrivs"], now["Seccomp"]) == ("1", "2")
    assert status(virtiofsd)["NoNewPrivs"] == "1"
    held = {str(fd.readlink()) for fd in Path(f"/proc/{qemu}/fd").iterdir()}
    assert not any(path.endswith(("/ledger", ".jsonl", "/console.log")) for path in held), held


def test_the_console_is_logged_from_its_first_byte(site, run):
    async def body():
        async with site.booted(replace(SPEC, debug=True)) as vm:
            (await vm.dial()).close()
            return vm.console.tail(1 << 20)

    shown = run(body())
    log = site.pod_dir / "console.log"
    assert "Linux version" in log.read_text()[:200]
    assert shown in log.read_text()
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_the_agent_is_reached_again_and_again(site, run):
    """A later connection is a new session, whatever was left of the one before."""

    async def body():
        async with site.booted() as vm:
            for _ in range(3):
                connected = await vm.dial()
                connected.send(b"\x00\x00\x10\x00half a frame")
                connected.close()
            agent = AgentClient(await vm.dial(), DEADLINES)
            await agent.check()
            agent.close()

    run(body())


def test_qemu_killed_is_told_at_once_and_takes_virtiofsd_along(site, run):
    async def body():
        async with site.booted() as vm:
            os.kill(vm.pid, signal.SIGKILL)
            async with asyncio.timeout(1):
                end = await vm.wait()
            eventually("virtiofsd ends", lambda: gone(pids(site)["virtiofsd"]), within=2)
            return end

    end = run(body())
    assert end.cause == "QEMU was killed by SIGKILL"
    assert end.detail["status"] == "-9"


def test_virtiofsd_killed_ends_the_vm_and_is_blamed(site, run):
    async def body():
        async with site.booted() as vm:
            os.kill(pids(site)["virtiofsd"], signal.SIGKILL)
            async with asyncio.timeout(5):
                return await vm.wait()

    assert run(body()).cause.startswith("virtiofsd ended with status -9")


def test_a_stopped_qemu_is_killed_within_the_budget(site, run):
    """It answers neither QMP nor SIGTERM (`kata.md` §4.6: Kata's StopVM gives up here)."""

    async def body():
        async with site.booted(budgets=replace(BUDGETS, quit=0.3, term=0.3)) as vm:
            os.kill(vm.pid, signal.SIGSTOP)
            async with asyncio.timeout(5):
                await vm.stop()
            return await vm.wait()

    assert run(body()).cause == "QEMU was killed by SIGKILL"
    assert [event["after"] for event in site.events("vm-stop-escalates")] == ["quit", "SIGTERM"]


def test_stopping_twice_at_once(site, run):
    async def body():
        async with site.booted() as vm:
            async with asyncio.TaskGroup() as group:
                group.create_task(vm.stop())
                group.create_task(vm.stop())
            await vm.stop()
            return await vm.wait()

    assert run(body()).cause == "QEMU was asked to quit"


def test_it_runs_in_the_pods_network_namespace(site, run):
    name = f"ks{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:

        async def body():
            async with site.booted(netns=Path("/run/netns") / name) as vm:
                return [Path(f"/proc/{pid}/ns/net").stat().st_ino for pid in (vm.pid, pids(site)["virtiofsd"])]

        qemu, virtiofsd = run(body())
        assert qemu == (Path("/run/netns") / name).stat().st_ino
        assert virtiofsd != qemu
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


def test_the_debug_monitors_are_for_others(site, run):
    async def body():
        async with site.booted(replace(SPEC, extra_monitor=ExtraMonitor.HMP)):
            for name in ("qmp-debug.sock", "extra-monitor.sock"):
                reader, writer = await asyncio.open_unix_connection(site.pod_dir / name)
                async with asyncio.timeout(5 * SCALE):
                    greeting = await reader.read(10)
                writer.close()
                await writer.wait_closed()
                assert greeting
                assert stat.S_IMODE((site.pod_dir / name).stat().st_mode) == 0o600

    run(body())


def test_undo_ends_a_vm_that_nobody_stops(site, run):
    """`delete` with no daemon: the ledger alone is enough."""

    async def body():
        async with site.booted() as vm:
            complaint = await asyncio.to_thread(site.undo)
            async with asyncio.timeout(5):
                end = await vm.wait()
            return complaint, end

    complaint, end = run(body())
    assert complaint == ""
    assert end.cause == "QEMU was killed by SIGKILL"
    assert not site.pod_dir.exists()


@pytest.mark.parametrize("ports", [0, 16])
def test_any_number_of_root_ports_boots(site, run, ports):
    async def body():
        async with site.booted(replace(SPEC, root_ports=ports)) as vm:
            (await vm.dial()).close()

    run(body())
