"""A daemon in miniature that boots a VM, reaches its agent, and kills itself."""

import asyncio
import os
import signal
from pathlib import Path

from integration.vm.site import Site


def main(run: str) -> None:
    asyncio.run(_boot_and_die(Site(Path(run))))


async def _boot_and_die(site: Site) -> None:
    async with site.booted() as vm:
        await vm.dial()
        os.kill(os.getpid(), signal.SIGKILL)
