"""One hierarchy of errors; each class carries the status code that containerd sees.

    ShimError                    never raised itself
    ├── InvalidArgument          the caller's request or the bundle is wrong
    ├── NotFound                 no such container, exec, file
    ├── AlreadyExists
    ├── FailedPrecondition       the life-cycle table has no such step
    ├── DeadlineExceeded
    ├── ResourceExhausted        too large, too many, no space
    ├── PermissionDenied
    ├── Unimplemented            we do not do this, and say so
    ├── Unavailable              a peer is gone: the agent, the VM, containerd
    ├── HostFailed               a step on the host failed (mount, process, file)
    ├── VmFailed                 QEMU or the guest failed; carries what they said last
    └── AgentRefused             the guest answered with a status of its own

An error says step, object, cause and hint: ``step: object: cause; hint``. It is mapped to a status at one boundary
(``kata_shimd.task.boundary``) and never told apart by its text. Codes are google.rpc's (`containerd.md` §6.1).
"""

from enum import IntEnum


class Code(IntEnum):
    """google.rpc.Code, the numbers on the wire."""

    OK = 0
    CANCELED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class ShimError(Exception):
    """A failure that someone foresaw.

    ``step`` is what was being done ("mount rootfs"), ``obj`` the thing it was done to, ``cause`` what went wrong, ``hint`` what
    to do about it. All but the step may be empty.
    """

    code = Code.UNKNOWN

    def __init__(self, step: str, obj: str = "", cause: str = "", *, hint: str = "") -> None:
        self.step, self.obj, self.cause, self.hint = step, obj, cause, hint
        super().__init__(step, obj, cause, hint)

    def __str__(self) -> str:
        text = ": ".join(part for part in (self.step, self.obj, self.cause) if part)
        return f"{text}; {self.hint}" if self.hint else text


class InvalidArgument(ShimError):
    code = Code.INVALID_ARGUMENT


class NotFound(ShimError):
    code = Code.NOT_FOUND


class AlreadyExists(ShimError):
    code = Code.ALREADY_EXISTS


class FailedPrecondition(ShimError):
    code = Code.FAILED_PRECONDITION


class DeadlineExceeded(ShimError):
    code = Code.DEADLINE_EXCEEDED


class ResourceExhausted(ShimError):
    code = Code.RESOURCE_EXHAUSTED


class PermissionDenied(ShimError):
    code = Code.PERMISSION_DENIED


class Unimplemented(ShimError):
    code = Code.UNIMPLEMENTED


class Unavailable(ShimError):
    code = Code.UNAVAILABLE


class HostFailed(ShimError):
    code = Code.INTERNAL


class VmFailed(ShimError):
    code = Code.UNAVAILABLE


class AgentRefused(ShimError):
    """The guest agent answered an RPC with a status; ``code`` is the guest's own."""

    def __init__(self, rpc: str, obj: str, code: int, message: str) -> None:
        super().__init__(f"agent {rpc}", obj, message)
        self.code = Code(code) if code in Code._value2member_map_ and code else Code.UNKNOWN
