"""Fuzz of OCI specs, the whole way: parse, kind, plan of the storage, rewriting for the guest, the agent's mirror, its bytes.

    python -m integration.fuzz.oci_specs [--count 1000000] [--seed 1]

Inputs are real specs with places of their trees changed, and now and then their bytes. Permitted: `InvalidArgument` and
`Unimplemented`, which tell the client what is wrong with its spec.
"""

import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final

from integration.fuzz import mutate
from integration.fuzz.engine import Target, corpus, main
from kata_shimd import wire
from kata_shimd.agent import oci
from kata_shimd.api import agent as pb
from kata_shimd.errors import InvalidArgument, Unimplemented
from kata_shimd.pod import spec, storage
from kata_shimd.pod.values import Mount

_BUNDLE: Final = Path("/nonexistent/bundle")
_ROOTFS: Final = (Mount("bind", "/", ("rbind",)),)


@cache
def _kept() -> list[bytes]:
    return corpus("oci")


@cache
def _trees() -> list[Any]:
    return [json.loads(data) for data in _kept()]


def make(rng: random.Random) -> bytes:
    if rng.random() < 0.1:
        return mutate.data(rng, rng.choice(_kept()))
    return json.dumps(mutate.tree(rng, rng.choice(_trees()))).encode()


def check(data: bytes) -> None:
    """As `Pod.create` does it, in its order."""
    parsed = spec.parse(data, "fuzz")
    spec.kind(parsed)
    spec.dns(parsed)
    spec.shares_pod_pid_namespace(parsed)
    plan = storage.plan("c1", _BUNDLE, parsed, _ROOTFS if len(data) % 7 else ())
    guest = spec.for_guest(parsed, "c1", plan, seccomp=bool(len(data) % 3))
    wire.encode(pb.CreateContainerRequest(container_id="c1", oci=oci.spec(guest)))


@contextmanager
def opened() -> Iterator[Callable[[Any], None]]:
    yield check


TARGET: Final = Target("oci_specs", (InvalidArgument, Unimplemented), make, opened)

if __name__ == "__main__":
    main(TARGET)
