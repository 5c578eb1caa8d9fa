"""A real pod does what its configuration says: the file that containerd names, its drop-ins, annotations, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from integration.harness.ctr import Ctr, Done
from integration.harness.pods import BOOTED, Pod, pod_hash

pytestmark = pytest.mark.vm

HYPERVISOR: Final = "io.katacontainers.config.hypervisor."
#: What the container says of the machine that it is in: CPUs, MiB of memory, and the kernel's command line.
LOOK: Final = "nproc; awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo; cat /proc/cmdline"
#: Of a machine's memory, the guest's kernel keeps so many MiB for itself at most.
KERNELS: Final = 96

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes configuration.toml, or a drop-in of it when named."""

    def write(text: str, drop_in: str = "") -> Path:
        main = tmp_path / "configuration.toml"
        path = tmp_path / "config.d" / drop_in if drop_in else main
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return main

    return write


def looked(done: Done) -> tuple[int, int, str]:
    cpus, memory, cmdline = done.ok().out.splitlines()
    return int(cpus), int(memory), cmdline


def journal(ctr: Ctr, name: str) -> str:
    """Every event of the pod's journal, as text."""
    run_dir = ctr.containerd.host.run_dir
    return str(Pod(run_dir, pod_hash(str(ctr.containerd.address), ctr.namespace, name)).journal())


def test_the_file_that_containerd_names(ctr: Ctr, name: str, write: Write) -> None:
    config = write(
        '[hypervisor.qemu]\ndefault_vcpus = 2\ndefault_memory = 512\nkernel_params = "ks.word=file"\n' + BOOTED
    )
    cpus, memory, cmdline = looked(ctr.run(name, "sh", "-c", LOOK, config=config))
    assert cpus == 2
    assert 512 - KERNELS < memory <= 512
    assert "ks.word=file" in cmdline.split()


def test_a_drop_in_lies_over_the_file_and_an_annotation_over_both(ctr: Ctr, name: str, write: Write) -> None:
    write('[hypervisor.qemu]\ndefault_memory = 640\nkernel_params = "ks.drop=in"\n', "50-more.toml")
    enabled = 'enable_annotations = ["default_vcpus", "kernel_params"]'
    config = write(f"[hypervisor.qemu]\ndefault_memory = 512\ndefault_vcpus = 1\n{enabled}\n{BOOTED}")
    notes = {f"{HYPERVISOR}default_vcpus": "2", f"{HYPERVISOR}kernel_params": "ks.pod=says"}
    cpus, memory, cmdline = looked(ctr.run(name, "sh", "-c", LOOK, config=config, annotations=notes))
    assert cpus == 2, "the annotation's"
    assert 640 - KERNELS < memory <= 640, "the drop-in's"
    assert {"ks.drop=in", "ks.pod=says"} <= set(cmdline.split()), "both"


#: Name → configuration, annotations of the hypervisor, words of the refusal.
REFUSED: Final = {
    "not-enabled": ("", {"default_memory": "512"}, ("default_memory", "is not enabled", "enable_annotations")),
    "a-pattern-must-match-the-whole-name": (
        '[hypervisor.qemu]\nenable_annotations = ["memory", "default"]\n',
        {"default_memory": "512"},
        ("default_memory", "is not enabled"),
    ),
    "a-program-that-is-not-allowed": (
        '[hypervisor.qemu]\nenable_annotations = ["path"]\n',
        {"path": "/bin/sh"},
        ("/bin/sh", "is not allowed by valid_hypervisor_paths"),
    ),
    "not-supported": ("[hypervisor.qemu]\nenable_hugepages = true\n", {}, ("enable_hugepages", "not supported here")),
    "strict": (
        "[hypervisor.qemu]\ndefault_vcpu = 2\n[shimd]\nstrict = true\n",
        {},
        ("default_vcpu", "did you mean default_vcpus"),
    ),
    "no-toml": ("[hypervisor.qemu\n", {}, ("is not valid TOML", "see `kata-shimd config check /")),
}


@pytest.mark.parametrize(("text", "notes", "said"), REFUSED.values(), ids=REFUSED)
def test_what_is_wrong_stops_the_pod_and_is_named(
    ctr: Ctr, name: str, write: Write, text: str, notes: dict[str, str], said: tuple[str, ...]
) -> None:
    annotations = {HYPERVISOR + key: value for key, value in notes.items()}
    done = ctr.run(name, "true", config=write(text), annotations=annotations)
    assert done.code != 0
    assert [words for words in said if words not in done.err] == [], done
    assert "Traceback" not in done.err


def test_a_misspelling_is_a_warning_unless_strict(ctr: Ctr, name: str, write: Write) -> None:
    assert ctr.run(name, "echo", "runs", config=write("[hypervisor.qemu]\ndefault_vcpu = 2\n")).ok().out == "runs"
    assert "did you mean default_vcpus" in journal(ctr, name)


def test_a_file_that_is_not_there(ctr: Ctr, name: str, tmp_path: Path) -> None:
    done = ctr.run(name, "true", config=tmp_path / "none.toml")
    assert done.code != 0
    assert f"{tmp_path}/none.toml" in done.err and "No such file" in done.err
