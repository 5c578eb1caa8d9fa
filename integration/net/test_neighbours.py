"""Fixed entries of the namespace's neighbour table are the guest's: it reaches by them who answers no question."""

from collections.abc import Iterator

import pytest

from integration.harness import cni
from integration.harness.ctr import Ctr
from integration.harness.host import Host
from integration.harness.scale import SCALE
from integration.harness.waiting import eventually

#: The guest's address, the silent one's with an entry, and another of the silent one's without.
FAMILIES = {"4": ("10.92.0.2", "10.92.0.1", "10.92.0.3"), "6": ("fd92::2", "fd92::1", "fd92::3")}
LENGTH = {"4": "24", "6": "64"}
GUEST_MAC = "02:00:00:00:92:02"
SILENT_MAC = "02:00:00:00:92:01"
SPACE = "near"


@pytest.fixture(scope="module")
def space(host: Host) -> Iterator[cni.Namespace]:
    """A cable whose far end asks and answers neither ARP nor neighbour discovery; it knows the guest by an entry of its own."""
    with cni.namespace(host, SPACE) as made:
        far = ["link", "add", "silent0", "address", SILENT_MAC, "type", "veth"]
        cni.ip(host, *far, "peer", "name", "eth0", "address", GUEST_MAC, "netns", SPACE)
        cni.ip(host, "link", "set", "silent0", "arp", "off", "up")
        cni.ip(host, "link", "set", "eth0", "up", netns=SPACE)
        for family, (guest, known, unknown) in FAMILIES.items():
            for address in (known, unknown):
                cni.ip(
                    host, f"-{family}", "addr", "add", f"{address}/{LENGTH[family]}", "dev", "silent0", *nodad(family)
                )
            permanent(host, guest, GUEST_MAC, "silent0")
            cni.ip(host, "addr", "add", f"{guest}/{LENGTH[family]}", "dev", "eth0", *nodad(family), netns=SPACE)
            permanent(host, known, SILENT_MAC, "eth0", netns=SPACE)
        yield made
        cni.ip(host, "link", "delete", "silent0")


def nodad(family: str) -> list[str]:
    return ["nodad"] if family == "6" else []


def permanent(host: Host, address: str, mac: str, device: str, netns: str = "") -> None:
    cni.ip(host, "neigh", "add", address, "lladdr", mac, "dev", device, "nud", "permanent", netns=netns)


@pytest.fixture(scope="module")
def pod(ctr: Ctr, space: cni.Namespace) -> Iterator[str]:
    ctr.start("near", "sleep", "86400", options=cni.words([space.path]))
    yield "near"
    ctr.remove("near")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fixed_entry_is_the_guests_and_is_used(ctr: Ctr, pod: str, family: str) -> None:
    _, known, unknown = FAMILIES[family]

    def ping(address: str, number: int) -> int:
        return ctr.exec(pod, f"p{family}{number}", "ping", "-c", "1", "-W", "2", address).code

    entries = ctr.exec(pod, f"n{family}", "ip", f"-{family}", "neigh", "show", "dev", "eth0").ok().out.splitlines()
    found = {words[0]: (words[2], words[-1]) for words in map(str.split, entries)}
    assert found[known] == (SILENT_MAC, "PERMANENT")
    numbers = iter(range(1000))
    eventually("an answer", lambda: ping(known, next(numbers)) == 0, within=20 * SCALE)
    assert ping(unknown, 1000) != 0, "the far end answers questions, so the entry was not needed"
