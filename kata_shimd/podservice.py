"""`kata_shimd.v1.Pod` as the command for people asks it: what this daemon is, and that another go on in its place.

A composition root beside `assembly`: here the domain meets what outlives the daemon.
"""

import asyncio
import os
import sys
from typing import TYPE_CHECKING, Final

from kata_shimd import __version__
from kata_shimd.api import pod as pb
from kata_shimd.durable.successor import Successor
from kata_shimd.errors import FailedPrecondition
from kata_shimd.host import process
from kata_shimd.journal import Journal
from kata_shimd.pod.pod import Pod
from kata_shimd.survive import BOOTSTRAP, Survival

if TYPE_CHECKING:
    from kata_shimd.daemon import Arguments

#: For a daemon's command to import all it has, and say what it can read.
CHECK_SECONDS: Final = 60.0
_LAST_WORDS: Final = 16 << 10


class PodService:
    """``survival`` is None for a pod without a keeper."""

    def __init__(self, arguments: "Arguments", pod: Pod, journal: Journal, survival: Survival | None) -> None:
        self._arguments, self._pod, self._survival = arguments, pod, survival
        self._successor = None
        if survival is not None:
            stops = pod.stopping.is_set
            self._successor = Successor(arguments, survival.keeper, survival.store, self._ask, journal.write, stops)

    def describe(self, _request: pb.DescribeRequest) -> pb.DescribeResponse:
        """From memory."""
        states = {name: container.init.life.state for name, container in self._pod.containers.items()}
        return pb.DescribeResponse(
            pid=os.getpid(),
            version=__version__,
            python=sys.executable,
            launcher=str(self._arguments.launcher),
            kept=self._successor is not None,
            settled=self._settled(),
            containers=[pb.ContainerState(id=name, status=state.name) for name, state in states.items()],
        )

    async def upgrade(self, request: pb.UpgradeRequest) -> pb.UpgradeResponse:
        """:raises FailedPrecondition, InvalidArgument, VmFailed: nothing has happened"""
        if self._successor is None:
            hint = 'set shimd.keeper = "launcher" for the pods to come; this one has to be made anew'
            raise FailedPrecondition("upgrade", self._arguments.sandbox_id, "the pod has no keeper", hint=hint)
        # A daemon that was killed over this very request is followed by one that has yet to take its pod over.
        await self._pod.booted()
        if self._pod.stopping.is_set():
            raise FailedPrecondition("upgrade", self._arguments.sandbox_id, "the pod is being stopped")
        version = await self._successor.go_on(request.python, request.launcher, request.patience)
        return pb.UpgradeResponse(version=version)

    def _settled(self) -> bool:
        return self._pod.vm_pid != 0 and self._pod.vm_exit is None

    async def _ask(self, argv: list[str]) -> tuple[int, str]:
        """As `successor.Ask`; the bytes that containerd gave at the pod's start go along."""
        assert self._survival is not None
        bootstrap = self._survival.keeper.held(BOOTSTRAP)
        if bootstrap is None:
            return 1, "the keeper has no bootstrap"
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                words = [*argv, "--check", str(bootstrap)]
                return await process.run(words, what="check", limit=_LAST_WORDS, pass_fds=(bootstrap,))
        except TimeoutError:
            return 1, f"no answer in {CHECK_SECONDS:g} s"
