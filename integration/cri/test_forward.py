"""`kubectl port-forward`: what listens on the loopback of a pod, which is the guest's, is reached through containerd."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import pytest

from integration.cri.conftest import Pods
from integration.harness import cri, process
from integration.harness import pods as on_disk
from integration.harness.cri import CriContainerd
from integration.harness.crictl import Crictl
from integration.harness.ctr import PATIENCE
from integration.harness.host import Host
from integration.harness.pods import Pod
from integration.harness.waiting import eventually

pytestmark = pytest.mark.vm

#: A port of the pod's, and the one of the node's that stands for it.
PORT, OURS = 8080, 18080
#: Sends what it is given, and prints all that comes back. It does not say that it sends no more: containerd gives the other
#: direction one second then.
CLIENT = """
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1])), 60) as server:
    server.sendall(sys.stdin.buffer.read())
    while data := server.recv(65536):
        sys.stdout.buffer.write(data)
"""
#: A file that is not all the same, and long enough for many parts.
SIZE = 3 << 20
SERVER = f"seq 1 1000000 | head -c {SIZE} > /tmp/long; echo found > /tmp/index.html; exec httpd -f -p 127.0.0.1:{PORT} -h /tmp"

#: Connects, says so, and waits to be told or left.
HOLDER = """
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1])), 60) as server:
    print("connected", flush=True)
    try:
        print(server.recv(1), flush=True)
    except ConnectionResetError:
        print(b"", flush=True)
"""
#: Greets, and says what it was told.
GREETER = f"""
printf '#!/bin/sh\\necho greeting\\nread line\\necho "heard $line"\\n' > /tmp/greet; chmod +x /tmp/greet
exec nc -ll -p {PORT} -e /tmp/greet
"""
#: Prints the greeting, and what comes when it has said something, which it does when it is told to.
GREETED = """
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1])), 60) as server:
    print(server.recv(100), flush=True)
    sys.stdin.readline()
    server.sendall(b"hello\\n")
    print(server.recv(100), flush=True)
"""
#: Less than busybox' httpd gives a client that says nothing.
SOON = 40.0

Ask = Callable[[str], bytes]


@pytest.fixture
def handler() -> str:
    return "kata"


@pytest.fixture
def pods(crictl: Crictl, handler: str, name: str, tmp_path: Path) -> Iterator[Pods]:
    made = Pods(dataclasses.replace(crictl, handler=handler), name, tmp_path)
    yield made
    for pod_id in made.configs:
        made.remove(pod_id)


@pytest.fixture
def pod_id(pods: Pods) -> str:
    return pods.run()


@pytest.fixture
def serve(crictl: Crictl, pods: Pods, pod_id: str) -> Callable[[], str]:
    """Starts a server in the pod, at its loopback alone; the container's id."""

    def serve() -> str:
        container_id = pods.start(pod_id, "sh", "-c", SERVER)
        look = ("wget", "-qO-", f"http://127.0.0.1:{PORT}/")
        eventually("the server", lambda: crictl.exec(container_id, *look).out == "found", within=PATIENCE)
        return container_id

    return serve


@pytest.fixture
def forwarded(host: Host, crictl: Crictl, pod_id: str) -> Callable[[], AbstractContextManager[Ask]]:
    """A forwarded port: GETs a path of the pod's server; what it answers, empty if nobody does."""

    def ask(path: str) -> bytes:
        request = f"GET {path} HTTP/1.0\r\n\r\n".encode()
        return host.run([sys.executable, "-c", CLIENT, str(OURS)], input=request, within=PATIENCE).stdout

    @contextmanager
    def forwarded() -> Iterator[Ask]:
        client = crictl.spawn("port-forward", pod_id, f"{OURS}:{PORT}")
        try:
            assert client.stdout is not None
            assert b"Forwarding from" in client.stdout.readline()
            yield ask
        finally:
            process.finish(client)

    return forwarded


def test_a_server_on_the_pods_loopback(forwarded, serve) -> None:
    serve()
    expected = subprocess.run(["sh", "-c", f"seq 1 1000000 | head -c {SIZE}"], capture_output=True, check=True).stdout
    with forwarded() as ask, ThreadPoolExecutor(4) as pool:
        assert ask("/").endswith(b"found\n")
        for answer in pool.map(ask, ["/long"] * 4):
            assert answer.partition(b"\r\n\r\n")[2] == expected


def test_a_server_that_speaks_first(forwarded, crictl: Crictl, host: Host, pods: Pods, pod_id: str) -> None:
    """And then waits: meanwhile nobody else does."""
    container_id = pods.start(pod_id, "sh", "-c", GREETER)
    eventually(
        "the server", lambda: b":8080 " in crictl.exec(container_id, "netstat", "-tln").out.encode(), within=PATIENCE
    )
    with forwarded():
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        client = host.spawn([sys.executable, "-c", GREETED, str(OURS)], **pipes)
        assert client.stdin is not None and client.stdout is not None
        with closing(client.stdin), closing(client.stdout):
            try:
                assert client.stdout.readline() == b"b'greeting\\n'\n"
                assert crictl.exec(container_id, "echo", "free").ok().out == "free"
                client.stdin.write(b"\n")
                client.stdin.flush()
                assert client.stdout.readline() == b"b'heard hello\\n'\n"
            finally:
                process.finish(client)


def test_a_port_at_which_nobody_listens(forwarded, serve) -> None:
    """Is told of, which ends crictl's forwarding; the next one finds who listens by then."""
    with forwarded() as ask:
        assert ask("/") == b""
    serve()
    with forwarded() as ask:
        assert ask("/").endswith(b"found\n")


@pytest.mark.parametrize("handler", [cri.KEPT])
def test_a_daemon_that_is_killed(
    forwarded, serve, crictl: Crictl, host: Host, containerd: CriContainerd, pod_id: str
) -> None:
    """Its connections end with it, and in the guest as well; the next daemon takes new ones."""
    container_id = serve()
    pod = Pod(host.run_dir, on_disk.pod_hash(str(containerd.address), cri.NAMESPACE, pod_id))
    first = pod.process("daemon")

    def held() -> int:
        found = crictl.exec(container_id, "netstat", "-tn").ok().out.splitlines()
        return sum("ESTABLISHED" in line and f":{PORT} " in line for line in found)

    with forwarded() as ask:
        assert ask("/").endswith(b"found\n")
        holder = host.spawn([sys.executable, "-c", HOLDER, str(OURS)], stdout=subprocess.PIPE)
        assert holder.stdout is not None
        with closing(holder.stdout):
            try:
                assert holder.stdout.readline() == b"connected\n"
                eventually("its connection in the guest", lambda: held() > 0, within=PATIENCE)
                first.kill()
                assert holder.stdout.readline() == b"b''\n"
            finally:
                process.finish(holder)
    eventually("its end in the guest", lambda: held() == 0, within=SOON)
    with forwarded() as ask:
        assert ask("/").endswith(b"found\n")
        assert len(ask("/long")) > SIZE
    assert pod.process("daemon") != first
