"""Stands where the daemon will stand: what the launcher runs, as the launcher runs it, but with the pod left out.

Lies outside the package on purpose: it is started as a plain file and imports nothing of ours. What it does is told by the
environment variable STAND_IN; what it found is left in ``POD/found.json``.
"""

import ctypes
import json
import os
import resource
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

LISTEN, READY, BOOTSTRAP = 3, 4, 5


def found() -> dict[str, Any]:
    """What a daemon can see of how it was started."""
    here = Path("/proc/self")
    return {
        "argv": sys.argv[1:],
        "fds": _fds(),
        "environ": dict(os.environ),
        "bootstrap": os.read(BOOTSTRAP, 65536).hex(),
        "pid": os.getpid(),
        "sid": os.getsid(0),
        "cwd": str(Path.cwd()),
        "mnt": (here / "ns/mnt").readlink().name,
        "root_mount": next(line for line in (here / "mountinfo").read_text().splitlines() if line.split()[4] == "/"),
        "oom_score_adj": int((here / "oom_score_adj").read_text()),
        "nofile": resource.getrlimit(resource.RLIMIT_NOFILE),
        "umask": os.umask(0o077),
        "blocked": (here / "status").read_text().split("SigBlk:\t")[1].split()[0],
    }


def _fds() -> dict[int, str]:
    fds = {}
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208  (the fd of the listing itself must be gone when it is read)
        try:
            fds[int(name)] = str(Path(f"/proc/self/fd/{name}").readlink())
        except FileNotFoundError:
            continue
    return fds


def option(name: str) -> str:
    return sys.argv[sys.argv.index(name) + 1]


def read_exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := connection.recv(size - len(data))):
        data += more
    return data


def answer_abandon(pod: Path, listener: socket.socket) -> None:
    """Note every request on the socket, and answer it with an empty ttrpc response."""
    while True:
        connection, _ = listener.accept()
        header = read_exactly(connection, 10)
        if len(header) == 10:
            body = read_exactly(connection, int.from_bytes(header[:4]))
            with (pod / "asked").open("ab") as log:
                log.write(header + body)
            connection.sendall(bytes([0, 0, 0, 0, 0, 0, 0, 1, 2, 0]))
        connection.close()


def record(pod: Path, line: dict[str, Any]) -> None:
    with (pod / "ledger").open("a") as ledger:
        ledger.write(json.dumps(line) + "\n")


def serve(pod: Path, listener: socket.socket) -> None:
    (pod / "found.json.new").write_text(json.dumps(found()))
    (pod / "found.json.new").rename(pod / "found.json")
    os.write(READY, b"!")
    os.close(READY)
    answer_abandon(pod, listener)


def main() -> None:
    pod = Path(option("--pod-dir"))
    listener = socket.socket(fileno=LISTEN)
    match os.environ.get("STAND_IN", "serve").split(":"):
        case ["serve"]:
            serve(pod, listener)
        case ["die", code]:
            for n in range(30):
                print(f"line {n}\x1b[31m", file=sys.stderr)
            print("boot VM: /no/such/kernel: not found; install a guest image", file=sys.stderr)
            sys.exit(int(code))
        case ["killed"]:
            os.kill(os.getpid(), signal.SIGKILL)
        case ["hang"]:
            signal.pause()
        case ["mute"]:  # closes the pipe without a byte, and lives
            record(pod, {"op": "plan", "n": 9, "scope": "pod", "kind": "dir", "path": str(pod / "half-made")})
            (pod / "half-made").mkdir()
            os.close(READY)
            signal.pause()
        case ["deaf"]:  # ready, but never accepts
            os.write(READY, b"!")
            signal.pause()
        case ["leaving"]:  # serves nobody and is on its way out, but for a thread that ends when POD/leave is read
            os.mkfifo(pod / "leave")
            os.write(READY, b"!")
            os.close(READY)
            threading.Thread(target=(pod / "leave").read_bytes).start()
            listener.close()
            ctypes.CDLL(None).syscall(60, 0)  # exit of this thread alone
        case other:
            sys.exit(f"STAND_IN: {other}")


main()
