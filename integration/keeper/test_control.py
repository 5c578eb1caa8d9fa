"""The control plane: State and Wait go on through the deaths of daemons."""

from collections.abc import Callable

import pytest

from integration.harness import process
from integration.harness.ctr import PATIENCE, Ctr
from integration.harness.events import Events
from integration.harness.pods import Pod
from integration.keeper.killing import Hammer, Noticed, kill_daemon, listing

pytestmark = pytest.mark.vm


def test_a_container_is_listed_and_awaited_through_five_deaths(
    kept: Ctr, name: str, pod_of: Callable[[str], Pod], unnoticed: Noticed
) -> None:
    waiting = kept.spawn(*kept.run_words(name, "sh", "-c", "echo up; sleep 86400 & wait", options=["--rm"]))
    try:
        assert waiting.stdout is not None
        assert waiting.stdout.readline() == b"up\n", waiting.stderr and waiting.stderr.read()
        with Events(kept) as events:
            with Hammer(listing(kept, {name: "RUNNING"})) as listed:
                for _ in range(5):
                    kill_daemon(pod_of(name))
            assert listed.failures() == []
            assert waiting.poll() is None
            kept.kill(name, "SIGKILL").ok()
            assert waiting.wait(PATIENCE) == 137
            events.until(name, "/tasks/delete")
            assert events.topics(name).count("/tasks/exit") == 1
    finally:
        process.finish(waiting)
    unnoticed.deletions = 1
