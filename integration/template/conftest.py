"""A place for templates of each test's own, and what a pod's journal says of how it came to be."""

import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from integration.conftest import PREFIX
from integration.harness import leaks
from integration.harness.ctr import Ctr, Done
from integration.harness.pods import Pod, make_template, making_templates, pod_hash
from integration.harness.scale import SCALE
from integration.harness.waiting import eventually
from kata_shimd.templates import stage_name
from kata_shimd.vm.template.store import HEADER, MEMORY, STATE, Store

GUEST = Path(os.environ.get("KATA_SHIMD_GUEST", "/var/lib/kata-shimd/guest/current"))
FILES = (HEADER, MEMORY, STATE)


#: The events of a pod's that misses one, and orders it.
MISSED = ["template-passed-over", "template-ordered"]


@dataclass(frozen=True, slots=True)
class Templates:
    """Templates below ``path``, as it is seen from here, used by pods with ``config``."""

    ctr: Ctr
    path: Path
    config: Path

    @classmethod
    def at(cls, ctr: Ctr, path: Path, directory: Path) -> "Templates":
        """At ``path`` of the private host; ``directory`` is for the configuration."""
        config = directory / f"{path.name}.toml"
        factory = f'[factory]\nenable_template = true\ntemplate_path = "{path}"\n'
        config.write_text(f'[shimd]\nguest_dir = "{GUEST}"\n{factory}[hypervisor.qemu]\ndefault_memory = 512\n')
        return cls(ctr, ctr.containerd.host.inside / path.relative_to("/"), config)

    def run(self, name: str, *argv: str, **how: Any) -> Done:
        return self.ctr.run(name, *argv, config=self.config, **how)

    def order(self, name: str) -> None:
        """One more pod, which misses its template; it has been made, or has failed, when this returns."""
        self.run(name, "true").ok()
        assert self.told(name) == MISSED, self.journal(name)
        self.await_maker()

    def await_maker(self) -> None:
        eventually("no template being made", lambda: not making_templates(), within=90 * SCALE)

    def maker_told(self) -> list[dict[str, Any]]:
        """What makers of the only template have said, in order."""
        (key,) = {path.name.partition(".")[0] for path in self.path.iterdir()}
        journal = Pod(self.ctr.containerd.host.run_dir, stage_name(key)).journal()
        return [event for event in journal if event["event"].startswith("template-")]

    def told(self, name: str) -> list[str]:
        """The names of the events of a pod's that are about templates and clones, in order."""
        return [event for event in self.events(name) if event.startswith(("template-", "clone"))]

    def events(self, name: str) -> list[str]:
        return [event["event"] for event in self.journal(name)]

    def journal(self, name: str) -> list[dict[str, Any]]:
        containerd = self.ctr.containerd
        hashed = pod_hash(str(containerd.address), self.ctr.namespace, name)
        return Pod(containerd.host.run_dir, hashed).journal()

    def is_cloned(self, name: str) -> bool:
        return "cloned" in self.events(name)

    def keys(self) -> list[str]:
        return sorted(path.name for path in self.path.iterdir() if path.is_dir())

    @property
    def directory(self) -> Path:
        """The only template."""
        (key,) = self.keys()
        return self.path / key


@pytest.fixture
def templates(ctr: Ctr, tmp_path: Path) -> Iterator[Templates]:
    """None yet. What is left at the end are templates that are whole, and nothing that somebody was at."""
    made = Templates.at(ctr, Path("/dev/shm", f"kt-{secrets.token_hex(4)}"), tmp_path)
    path = made.path
    yield made
    made.await_maker()
    left = sorted(entry.name for entry in path.iterdir()) if path.exists() else []
    contents = {key: sorted(file.name for file in (path / key).iterdir()) for key in left if "." not in key}
    shutil.rmtree(path, ignore_errors=True)
    assert [name for name in left if ".new-" in name or ".old-" in name] == []
    assert all(files == sorted(FILES) for files in contents.values()), contents


@pytest.fixture
def template(templates: Templates, scene: leaks.Scene) -> Templates:
    """One that was made ahead."""
    make_template(templates.ctr.containerd.host, PREFIX / "bin/kata-shimd", templates.config)
    assert len(templates.keys()) == 1
    return templates


@pytest.fixture(scope="module")
def lasting(ctr: Ctr, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Templates]:
    """Of a module's tests that leave one behind as whole as they found it."""
    made = Templates.at(ctr, Path("/run", f"kt-{secrets.token_hex(4)}"), tmp_path_factory.mktemp("lasting"))
    yield made
    made.await_maker()
    shutil.rmtree(made.path, ignore_errors=True)


@pytest.fixture
def standing(lasting: Templates) -> Templates:
    """One that stands there; made when there is none, or a test has failed over it."""
    if [each.problem for each in Store(lasting.path).list()] != [""]:
        shutil.rmtree(lasting.path, ignore_errors=True)
        make_template(lasting.ctr.containerd.host, PREFIX / "bin/kata-shimd", lasting.config)
    return lasting
