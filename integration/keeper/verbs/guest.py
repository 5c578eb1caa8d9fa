"""A guest whose processes echo what goes in, and exit with 7 at the end of input. It counts what it is asked to do."""

import socket
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from kata_shimd import wire
from kata_shimd.api import agent as pb
from kata_shimd.errors import Code
from kata_shimd.ttrpc.envelope import Request, Response, Status, decode_request, encode_response
from kata_shimd.ttrpc.frames import RESPONSE, FrameDecoder, pack

CODE: Final = 7


class Process:
    """One process: what it has put out, how it ended, and who waits for either."""

    def __init__(self) -> None:
        self.output = bytearray()
        self.status: int | None = None
        self.ended_ns = 0
        #: It has closed its outputs, and runs on.
        self.mute = False
        self.waiting: list[int] = []
        self.reading: dict[str, int] = {}


class Guest:
    """Listens at ``path``. ``acts`` counts what changes something; ``sessions`` how often somebody connected. What is ``silent`` is
    done and not answered."""

    def __init__(self, path: Path) -> None:
        self.acts: Counter[str] = Counter()
        self.sessions = 0
        self.counted = 0
        self.silent: set[str] = set()
        #: Whether it tells how long ago a process ended; Kata's agent does not.
        self.tells = True
        #: What changes nothing, and was asked while we were silent.
        self._unanswered: list[tuple[socket.socket, int]] = []
        self._socks: list[socket.socket] = []
        self._processes: dict[tuple[str, str], Process] = {}
        self._lock = threading.Lock()
        self._ooms: list[str] = []
        self._hears_of_oom: tuple[socket.socket, int] | None = None
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)

    def die(self) -> None:
        """The machine has ended: the channel breaks."""
        for sock in self._socks:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def finish(self, name: str, status: int) -> None:
        """A process ends by itself."""
        self._end(self._socks[-1], self._processes[name, name], status)

    def hush(self, name: str) -> None:
        """A process closes its outputs."""
        process = self._processes[name, name]
        process.mute = True
        self._put_out(self._socks[-1], process)

    def is_waited_for(self, name: str) -> bool:
        return bool(self._processes[name, name].waiting)

    def oom(self, name: str) -> None:
        """The kernel kills in a container for memory; whoever asks, now or later, is told once."""
        with self._lock:
            self._ooms.append(name)
            self._tell_oom()

    def _tell_oom(self) -> None:
        if self._ooms and self._hears_of_oom is not None:
            sock, stream = self._hears_of_oom
            self._hears_of_oom = None
            reply(sock, stream, wire.encode(pb.OomEvent(container_id=self._ooms.pop(0))))

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.sessions += 1
            self._socks.append(sock)
            self._threads.append(threading.Thread(target=self._serve, args=(sock,), daemon=True))
            self._threads[-1].start()

    def _serve(self, sock: socket.socket) -> None:
        decoder = FrameDecoder()
        with sock, suppress(ConnectionError):
            while data := sock.recv(1 << 16):
                for frame in decoder.feed(data):
                    self._answer(sock, frame.stream, decode_request(frame.data))

    def _answer(self, sock: socket.socket, stream: int, request: Request) -> None:
        handler = getattr(self, f"_{request.method}", None)
        if handler is None:
            if request.method in self.silent:
                self._unanswered.append((sock, stream))
            else:
                reply(sock, stream)
            return
        handler(_Deaf() if request.method in self.silent else sock, stream, request.payload)

    def speak(self) -> None:
        """Be silent no longer; what only waited for an answer gets it."""
        self.silent = set()
        while self._unanswered:
            reply(*self._unanswered.pop())

    def _act(self, *words: object) -> None:
        self.acts[" ".join(map(str, words))] += 1

    # --- the agent's methods -----------------------------------------------------------------------------------------

    def _CreateContainer(self, sock: socket.socket, stream: int, payload: bytes) -> None:
        request = wire.decode(pb.CreateContainerRequest, payload)
        self._act("create", request.container_id)
        self._processes[request.container_id, request.container_id] = Process()
        reply(sock, stream)

    def _StartContainer(self, sock: socket.socket, stream: int, payload: bytes) -> None:
        self._act("start", wire.decode(pb.StartContainerRequest, payload).container_id)
        reply(sock, stream)

    def _ExecProcess(self, sock: socket.socket, stream: int, payload: bytes) -> None:
        request = wire.decode(pb.ExecProcessRequest, payload)
        self._act("exec", request.exec_id)
        self._processes[request.container_id, request.exec_id] = Process()
        reply(sock, stream)

    def _SignalProcess(self, sock: socket.socket, stream: int, payload: bytes) -> None:
        request = wire.decode(pb.SignalProcessRequest, payload)
        name = request.exec_id or request.container_id
        self._act("signal", name, request.signal)
        if request.signal == 9:
            self._end(self._socks[-1], self._processes[request.container_id, name], 137)
        reply(sock, stream)

    def _WriteStdin(self, sock: socket.socket, stream: int, payload: bytes) -> None:
        request = wire.decode(pb.WriteStreamRequest, payload)
        process = self._processes[request.container_id, request.exec_id]
        process.output += request.data
        reply(sock, stream, wire.encode(pb.WriteStreamResponse(len=len(request.data))))
        self._put_out(sock, process)

    def _CloseStdin(self, sock: socket.socket, stream: int, payload: bytes) -> None:
        request = wire.decode(pb.CloseStdinRequest, payload)
        reply(sock, stream)
        self._end(sock, self._processes[request.container_id, request.exec_id], CODE)

    def _ReadStdout(self, sock: socket.socket, stream: int, payload: bytes) -> None:
        request = wire.decode(pb.ReadStreamRequest, payload)
        process = self._processes[request.container_id, request.exec_id]
        assert "stdout" not in process.reading, "two reads of one stream at once"
        process.reading["stdout"] = stream
        self._put_out(sock, process)

    def _ReadStderr(self, sock: socket.socket, stream: int, payload: bytes) -> None:
        request = wire.decode(pb.ReadStreamRequest, payload)
        process = self._processes[request.container_id, request.exec_id]
        process.reading["stderr"] = stream
        self._put_out(sock, process)

    def _WaitProcess(self, sock: socket.socket, stream: int, payload: bytes) -> None:
        request = wire.decode(pb.WaitProcessRequest, payload)
        process = self._processes[request.container_id, request.exec_id]
        process.waiting.append(stream)
        self._put_out(sock, process)

    def _UpdateContainer(self, sock: socket.socket, stream: int, payload: bytes) -> None:
        self._act("update", wire.decode(pb.UpdateContainerRequest, payload).container_id)
        reply(sock, stream)

    def _TtyWinResize(self, sock: socket.socket, stream: int, payload: bytes) -> None:
        request = wire.decode(pb.TtyWinResizeRequest, payload)
        self._act("resize", request.exec_id, f"{request.row}x{request.column}")
        reply(sock, stream)

    def _GetOOMEvent(self, sock: socket.socket, stream: int, _payload: bytes) -> None:
        with self._lock:
            self._hears_of_oom = sock, stream
            self._tell_oom()

    def _StatsContainer(self, sock: socket.socket, stream: int, payload: bytes) -> None:
        """As much as tells one answer from another: how often it was asked. What has been removed has no counters."""
        name = wire.decode(pb.StatsContainerRequest, payload).container_id
        if (name, name) not in self._processes:
            refuse(sock, stream, Code.NOT_FOUND)
            return
        self.counted += 1
        usage = pb.MemoryStats(usage=pb.MemoryData(usage=self.counted))
        cgroup = pb.CgroupStats(memory_stats=usage)
        reply(sock, stream, wire.encode(pb.StatsContainerResponse(cgroup_stats=cgroup)))

    def _RemoveContainer(self, sock: socket.socket, stream: int, payload: bytes) -> None:
        name = wire.decode(pb.RemoveContainerRequest, payload).container_id
        self._act("remove", name)
        self._processes = {key: process for key, process in self._processes.items() if key[0] != name}
        reply(sock, stream)

    # --- processes ---------------------------------------------------------------------------------------------------

    def _end(self, sock: socket.socket, process: Process, status: int) -> None:
        if process.status is None:
            process.status, process.ended_ns = status, time.monotonic_ns()
        self._put_out(sock, process)

    def _put_out(self, sock: socket.socket, process: Process) -> None:
        over = process.mute or process.status is not None
        if "stdout" in process.reading and (process.output or over):
            data = bytes(process.output[:1000])
            del process.output[:1000]
            reply(sock, process.reading.pop("stdout"), wire.encode(pb.ReadStreamResponse(data=data)))
        if over and "stderr" in process.reading:
            reply(sock, process.reading.pop("stderr"))
        while process.status is not None and process.waiting:
            ago = time.monotonic_ns() - process.ended_ns if self.tells else 0
            reply(sock, process.waiting.pop(), wire.encode(pb.WaitProcessResponse(status=process.status, ago=ago)))


class _Deaf:
    """A socket that nothing is sent on."""

    def sendall(self, _data: bytes) -> None:
        return None


def reply(sock: socket.socket, stream: int, payload: bytes = b"") -> None:
    sock.sendall(pack(stream, RESPONSE, 0, encode_response(Response(None, payload))))


def refuse(sock: socket.socket, stream: int, code: Code) -> None:
    status: Any = Status(code, "no", ())
    sock.sendall(pack(stream, RESPONSE, 0, encode_response(Response(status))))
