"""OCI specs for what ``ctr run`` has no flag for: user, hostname, read-only root."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from integration.harness.ctr import Ctr, Done
from integration.harness.image import IMAGE_PATH


@dataclass(frozen=True, slots=True)
class Spec:
    """containerd's default spec, changed by path: ``spec.set("process.cwd", "/tmp")``."""

    content: dict[str, Any]

    @classmethod
    def default(cls, ctr: Ctr, rootfs: Path, *argv: str) -> "Spec":
        spec = cls(json.loads(ctr("oci", "spec").ok().stdout))
        return spec.set("root.path", str(rootfs)).set("process.args", list(argv)).set("process.env", [IMAGE_PATH])

    def set(self, path: str, value: object) -> "Spec":
        """Set one value, making the tables on the way; returns the spec itself."""
        *tables, key = path.split(".")
        here = self.content
        for table in tables:
            here = here.setdefault(table, {})
        here[key] = value
        return self

    def write(self, file: Path) -> Path:
        file.write_text(json.dumps(self.content, indent=1))
        return file

    def run(self, ctr: Ctr, container_id: str, directory: Path) -> Done:
        """``ctr run --rm --config``: nothing but this spec decides what runs."""
        file = self.write(directory / f"{container_id}.json")
        config = ["--runtime-config-path", str(ctr.config)] if ctr.config else []
        return ctr("run", "--rm", "--runtime", ctr.runtime, *config, "--config", file, container_id)
