"""Two sockets that are given every TCP connection to the loopback of a network namespace, whatever its port.

The kernel is told who shall have them (`BPF_PROG_TYPE_SK_LOOKUP`, since Linux 5.9): no packet filter is touched, no port is taken,
and all of it goes with its descriptors. The program is small enough to be written here; loading it takes a millisecond.
"""

import ctypes
import os
import platform
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from typing import Final

from kata_shimd.errors import HostFailed

STEP: Final = "steer connections"
_BACKLOG: Final = 128
#: bpf(2) where it has a number of its own.
_NUMBERS: Final = {"x86_64": 321, "aarch64": 280, "s390x": 351, "ppc64le": 361, "riscv64": 280}
_MAP_CREATE, _MAP_UPDATE, _PROG_LOAD, _LINK_CREATE = 0, 2, 5, 28
_SOCKMAP, _SK_LOOKUP, _ATTACH_SK_LOOKUP = 15, 30, 36
#: Opcodes: what is done, on which width.
_LOAD_WORD, _STORE_WORD, _LOAD_MAP = 0x61, 0x62, 0x18
_MOVE, _MOVE_VALUE, _ADD_VALUE = 0xBF, 0xB7, 0x07
_JUMP_NOT, _JUMP_IF, _JUMP, _CALL, _EXIT = 0x55, 0x15, 0x05, 0x85, 0x95
_LOOK_UP, _RELEASE, _ASSIGN = 1, 86, 124
#: Offsets in struct bpf_sk_lookup.
_FAMILY, _PROTOCOL, _LOCAL4, _LOCAL6 = 8, 12, 40, 44
_PASS: Final = 1
#: Marks a jump to the end, until it is known where that is.
_TO_END: Final = 0x7FFF

_Instruction = tuple[int, int, int, int, int]
_libc: Final = ctypes.CDLL(None, use_errno=True)


class Steered:
    """Listening sockets, and what holds the steering in place. ``port`` of a connection is the one that was asked for."""

    def __init__(self, listeners: Sequence[socket.socket], link: int) -> None:
        self.listeners, self._link = tuple(listeners), link

    def close(self) -> None:
        os.close(self._link)
        for listener in self.listeners:
            listener.close()


def port(connection: socket.socket) -> int:
    """The port that the other side has connected to."""
    return int(connection.getsockname()[1])


def steer(namespace: int) -> Steered:
    """Take the connections of the namespace behind the descriptor, which the calling thread is in.

    :raises HostFailed: this kernel cannot, or we may not
    """
    with ExitStack() as failed, ExitStack() as ours:
        listeners = [failed.enter_context(listener) for listener in _listen()]
        try:
            table = _call(_MAP_CREATE, struct.pack("<IIII", _SOCKMAP, 4, 8, 2))
            ours.callback(os.close, table)
            for listener in listeners:
                _put(table, listener.family == socket.AF_INET6, listener.fileno())
            program = _load(table)
            ours.callback(os.close, program)
            link = _call(_LINK_CREATE, struct.pack("<IIII", program, namespace, _ATTACH_SK_LOOKUP, 0))
        except OSError as error:
            raise HostFailed(STEP, "loopback", error.strerror or "", hint="Linux 5.9 or newer has it") from error
        failed.pop_all()
    return Steered(listeners, link)


def _listen() -> Iterator[socket.socket]:
    for family, loopback in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with suppress(OSError):  # a namespace may be without one of them
            listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            try:
                listener.bind((loopback, 0))
                listener.listen(_BACKLOG)
            except OSError:
                listener.close()
                raise
            yield listener


def _put(table: int, key: int, descriptor: int) -> None:
    keys, values = ctypes.c_uint32(key), ctypes.c_uint64(descriptor)
    places = (ctypes.addressof(keys), ctypes.addressof(values))
    _call(_MAP_UPDATE, struct.pack("<IIQQQ", table, 0, *places, 0))


def _load(table: int) -> int:
    code = b"".join(_encode(*instruction) for instruction in program(table))
    text, licence = ctypes.create_string_buffer(code), ctypes.create_string_buffer(b"Apache-2.0")
    places = (ctypes.addressof(text), ctypes.addressof(licence))
    head = struct.pack("<IIQQ", _SK_LOOKUP, len(code) // 8, *places)
    # log level, size and place; version; flags; name; interface; how it will be attached
    return _call(_PROG_LOAD, head + struct.pack("<IIQII16sII", 0, 0, 0, 0, 0, b"kata_steer", 0, _ATTACH_SK_LOOKUP))


def program(table: int) -> list[_Instruction]:
    """The program: TCP to 127.0.0.1 is for the socket at 0 in ``table``, to ::1 for the one at 1; the rest is left alone."""
    mine = socket.htonl(0x7F00_0001)
    lines: list[_Instruction] = [
        (_MOVE, 6, 1, 0, 0),
        (_LOAD_WORD, 2, 6, _PROTOCOL, 0),
        (_JUMP_NOT, 2, 0, _TO_END, socket.IPPROTO_TCP),
        (_LOAD_WORD, 2, 6, _FAMILY, 0),
        (_JUMP_IF, 2, 0, 4, socket.AF_INET6),
        (_LOAD_WORD, 2, 6, _LOCAL4, 0),
        (_JUMP_NOT, 2, 0, _TO_END, mine),
        (_STORE_WORD, 10, 0, -4, 0),
        (_JUMP, 0, 0, 9, 0),
        *(
            line
            for word in range(3)
            for line in ((_LOAD_WORD, 2, 6, _LOCAL6 + 4 * word, 0), (_JUMP_NOT, 2, 0, _TO_END, 0))
        ),
        (_LOAD_WORD, 2, 6, _LOCAL6 + 12, 0),
        (_JUMP_NOT, 2, 0, _TO_END, socket.htonl(1)),
        (_STORE_WORD, 10, 0, -4, 1),
        (_LOAD_MAP, 1, 1, 0, table),
        (0, 0, 0, 0, 0),
        (_MOVE, 2, 10, 0, 0),
        (_ADD_VALUE, 2, 0, 0, -4),
        (_CALL, 0, 0, 0, _LOOK_UP),
        (_JUMP_IF, 0, 0, _TO_END, 0),
        (_MOVE, 7, 0, 0, 0),
        (_MOVE, 1, 6, 0, 0),
        (_MOVE, 2, 7, 0, 0),
        (_MOVE_VALUE, 3, 0, 0, 0),
        (_CALL, 0, 0, 0, _ASSIGN),
        (_MOVE, 1, 7, 0, 0),
        (_CALL, 0, 0, 0, _RELEASE),
    ]
    end = len(lines)
    lines = [(c, to, of, end - n - 1 if jump == _TO_END else jump, v) for n, (c, to, of, jump, v) in enumerate(lines)]
    return [*lines, (_MOVE_VALUE, 0, 0, 0, _PASS), (_EXIT, 0, 0, 0, 0)]


def _encode(code: int, to: int, of: int, offset: int, value: int) -> bytes:
    return struct.pack("<BBhi", code, of << 4 | to, offset, value if value < 1 << 31 else value - (1 << 32))


def _call(command: int, attributes: bytes) -> int:
    number = _NUMBERS.get(platform.machine())
    if number is None:
        raise OSError(0, f"not known how on {platform.machine()}")
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    done = int(_libc.syscall(number, command, ctypes.byref(buffer), len(attributes)))
    if done < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return done
