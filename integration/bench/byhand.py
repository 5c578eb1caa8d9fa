"""crun by hand, inside the guest of a pod: the guest's own program, from the guest's own image, with the agent's flags.

The agent gives every container a mount, PID and control-group namespace of its own, so nobody gets to its root from
outside. What is done instead: a container that may do everything mounts the guest's disk a second time, which for the
kernel is the same file system, with the pages that the agent's runs of crun have in memory; goes there (chroot);
mounts control groups, the container's own being their root; and waits for commands on its stdin.

A command's time is from the host's write to the container's stdin until the first byte of the new process is on the
container's stdout. So it has in it: the way of the command into the guest and of the byte out of it, which `nothing`
measures alone; busybox' shell reading a line and forking; `crun run` or `crun exec`. It has not: a root file system
to be shared with the guest first (that of the container by hand is there already, and was used in the round before),
any RPC, or anybody who remembers the container.
"""

import json
import os
import re
import time
from collections.abc import Sequence
from typing import Final, Self

from integration.bench.guest import FIRST, KEPT, Guest, Output, config, process_spec
from integration.harness.image import write_rootfs
from kata_shimd.api.services import task_v2

TOOL: Final = "tool"
#: What `FIRST` prints.
FIGURES: Final = r"[\d.]+ [\d.]+\n"
PATH: Final = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

#: Into the guest's root, as the container's first process.
ENTER: Final = f"""exec 2>&1
set -e
mount --make-rprivate /
for word in $(cat /proc/cmdline); do
    case $word in root=/dev/*) disk=${{word#root=/dev/}};; rootfstype=*) type=${{word#rootfstype=}};; esac
done
mkdir /guest
mknod /dev/guest b $(tr : ' ' < /sys/class/block/$disk/dev)
mount -t $type -o ro /dev/guest /guest
for it in dev proc sys; do mount --rbind /$it /guest/$it; done
mount -t cgroup2 cgroup2 /guest/sys/fs/cgroup
for it in run tmp; do mount -t tmpfs tmpfs /guest/$it; done
mount --bind / /guest/mnt
cd /guest/sys/fs/cgroup
mkdir by-hand
echo $$ > by-hand/cgroup.procs
for it in $(cat cgroup.controllers); do echo +$it > cgroup.subtree_control; done
cd /
exec env -i {PATH} chroot /guest /usr/bin/busybox sh /mnt/serve
"""

#: One command a line, with the name of a container. What was started may write before or after crun has ended.
SERVE: Final = """set -f
crun() { /usr/bin/crun --root /run/crun --log /run/log --cgroup-manager cgroupfs "$@" < /dev/null; }
while read -r what name; do
    case $what in
        nothing) echo here;;
        keep) crun run --detach --bundle /mnt/kept --pid-file /run/pid -- "$name" > /dev/null 2>&1;;
        run) crun run --detach --bundle /mnt/first --pid-file /run/pid -- "$name";;
        fresh) crun run --detach --bundle "/mnt/$name" --pid-file /run/pid -- "$name";;
        exec) crun exec --detach --process /mnt/process.json --pid-file /run/pid -- "$name";;
        remove) crun delete --force "$name";;
    esac || while read -r word; do echo "$word"; done < /run/log
done
"""


class ByHand:
    """The container and its two FIFOs. Use as ``async with``. A container of crun's own is kept for execs."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._rootfs = guest.root / "tool"
        self._stdin = guest.root / "tool.in"
        self._output = Output(guest.root / "tool.out")

    async def __aenter__(self) -> Self:
        self._write()
        self._output.__enter__()
        os.mkfifo(self._stdin, 0o600)
        self._guest.bundle(TOOL, config(("sh", "/enter"), everything=True))
        stdio = {"stdin": str(self._stdin), "stdout": str(self._output.path)}
        await self._guest.create(TOOL, rootfs=self._rootfs, **stdio, stderr="")
        self._commands = os.open(self._stdin, os.O_RDWR)  # does not wait for the other end
        await self._guest.call(task_v2.START, TOOL)
        os.write(self._commands, b"keep kept\n")
        await self.nothing()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._guest.remove(TOOL)
        os.close(self._commands)
        self._output.__exit__()

    async def run(self, name: str) -> float:
        return await self._run("run", name)

    async def fresh(self, name: str) -> float:
        """As `run`, with a root file system that the guest has not seen before, which has to be fetched from the host."""
        self._bundle(name, FIRST)
        return await self._run("fresh", name)

    async def _run(self, what: str, name: str) -> float:
        took = await self._measured(f"{what} {name}", FIGURES)
        os.write(self._commands, f"remove {name}\n".encode())
        await self.nothing()
        return took

    async def exec(self) -> float:
        return await self._measured("exec kept", FIGURES)

    async def nothing(self) -> float:
        """There and back, and no crun."""
        return await self._measured("nothing", "here\n")

    def _write(self) -> None:
        """The container's root, with two bundles for crun."""
        self._rootfs.mkdir()
        write_rootfs(self._rootfs)
        (self._rootfs / "enter").write_text(ENTER)
        (self._rootfs / "serve").write_text(SERVE)
        (self._rootfs / "process.json").write_text(json.dumps(process_spec(FIRST)))
        self._bundle("first", FIRST)
        self._bundle("kept", KEPT)

    def _bundle(self, name: str, args: Sequence[str]) -> None:
        (bundle := self._rootfs / name / "rootfs").mkdir(parents=True)
        write_rootfs(bundle)
        spec = config(args, member=False)
        spec["linux"]["namespaces"].remove({"type": "network"})  # nor has ours one of its own
        spec["linux"] |= {"cgroupsPath": f"/{name}"}
        (bundle.parent / "config.json").write_text(json.dumps(spec))

    async def _measured(self, command: str, wanted: str) -> float:
        begin = time.perf_counter()
        os.write(self._commands, f"{command}\n".encode())
        said = (await self._output.first()).decode()
        took = time.perf_counter() - begin
        if not re.fullmatch(wanted, said):
            raise RuntimeError(f"crun by hand: {command}: {said}")
        return took
