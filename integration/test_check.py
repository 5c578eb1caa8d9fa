"""``kata-shimd check`` on the host of the tests, as an administrator runs it: this host is good, and what is broken is named."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from integration.conftest import PREFIX


def check(*words: str | Path) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(
        [PREFIX / "bin/kata-shimd", "check", "-o", "json", *words], capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)


def rows(answer: dict[str, Any], verdict: str) -> dict[str, dict[str, str]]:
    return {row["name"]: row for row in answer["checks"] if row["verdict"] == verdict}


def test_this_host_can_run_pods(tmp_path: Path) -> None:
    """Whoever installs needs every row; what is not used on a host is skipped, and says why."""
    code, answer = check("--run-dir", tmp_path)
    assert (code, answer["ok"], rows(answer, "fail")) == (0, True, {})
    wanted = {"privileges", "accelerator", "qemu", "virtiofsd", "guest-kernel", "guest-image", "containerd", "cgroups"}
    wanted |= {"mounts"}
    assert wanted <= rows(answer, "pass").keys()
    assert all(row["why"] for row in answer["checks"])


def test_mounts_that_are_forbidden(tmp_path: Path) -> None:
    """To root without the right to mount, here."""
    argv = [
        "setpriv",
        "--bounding-set=-sys_admin",
        PREFIX / "bin/kata-shimd",
        "check",
        "-o",
        "json",
        "--run-dir",
        tmp_path,
    ]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    failed = rows(json.loads(done.stdout), "fail")
    assert {"privileges", "mounts"} <= failed.keys(), done
    assert "not permitted" in failed["mounts"]["why"]


@pytest.mark.parametrize(
    ("broken", "row", "says"),
    [
        (
            '[hypervisor.qemu]\npath = "/nowhere/qemu"\nvalid_hypervisor_paths = ["/nowhere/qemu"]\n',
            "qemu",
            "/nowhere/qemu",
        ),
        (
            '[hypervisor.qemu]\nkernel = "/nowhere/vmlinuz"\nimage = "/nowhere/image"\n',
            "guest-kernel",
            "/nowhere/vmlinuz",
        ),
        ('[hypervisor.qemu]\ndefault_vcpus = "two"\n', "configuration", "default_vcpus"),
        ("[hypervisor.qemu]\ndefault_memory = 1000000000\n", "memory", "1000000000 MiB wanted"),
        ('[shimd]\nkeeper = "systemd"\n', "systemd", 'keeper = "systemd", and'),
    ],
    ids=["qemu", "kernel", "wrong-type", "memory", "keeper"],
)
def test_what_is_broken_is_named_with_what_to_do(tmp_path: Path, broken: str, row: str, says: str) -> None:
    config = tmp_path / "configuration.toml"
    config.write_text(broken)
    code, answer = check("--run-dir", tmp_path, "--config", config)
    assert (code, answer["ok"]) == (1, False)
    failed = rows(answer, "fail")
    assert says in failed[row]["why"] + failed[row]["fix"], failed
    assert failed[row]["fix"]
