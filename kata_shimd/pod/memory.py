"""A container as JSON, for a daemon that comes after this one; and back. What the guest knows is not in it."""

from collections.abc import Mapping
from dataclasses import astuple
from pathlib import Path
from typing import Any

from kata_shimd.pod.container import Container
from kata_shimd.pod.lifecycle import State
from kata_shimd.pod.process import Process
from kata_shimd.pod.values import Exit, Stdio


def of_container(container: Container) -> dict[str, Any]:
    return {
        "bundle": str(container.bundle),
        "init": _of_process(container.init),
        "execs": {name: _of_process(process) for name, process in container.execs.items()},
        "specs": dict(container.exec_specs),
        "unified": dict(container.unified),
    }


def _of_process(process: Process) -> dict[str, Any]:
    return {
        "state": process.life.state.name,
        "pid": process.pid,
        "began": process.began,
        "stdio": list(astuple(process.stdio)),
        "exit": list(astuple(process.exit)) if process.exit else None,
        "stdin_ended": process.stdin_ended,
        "killed": process.killed,
    }


def bundle(memory: Mapping[str, Any]) -> Path:
    return Path(memory["bundle"])


def stdio(process: Mapping[str, Any]) -> Stdio:
    return Stdio(*process["stdio"])


def recall(container: Container, memory: Mapping[str, Any]) -> None:
    """Give a new container the past of the one that was remembered."""
    container.unified = memory.get("unified", {})
    _recall(container.init, memory["init"])
    for name, process in memory["execs"].items():
        _recall(container.recall_exec(name, stdio(process), memory["specs"].get(name, {})), process)


def _recall(process: Process, memory: Mapping[str, Any]) -> None:
    exit_ = Exit(*memory["exit"]) if memory["exit"] else None
    process.killed = memory.get("killed", False)
    process.began = memory.get("began", process.began)
    process.recall(State[memory["state"]], memory["pid"], exit_, stdin_ended=memory["stdin_ended"])
