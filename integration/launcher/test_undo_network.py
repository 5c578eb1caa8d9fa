"""`undo` of network namespaces and links, for real."""

import json
import subprocess
from pathlib import Path

import pytest

from integration.launcher.conftest import LAUNCHER, TIMEOUT, Pod


class TestNetwork:
    def link(self, netns: Path, name: str) -> int:
        """A tap in that namespace; its index."""
        inside = ["nsenter", f"--net={netns}", "ip"]
        subprocess.run([*inside, "tuntap", "add", name, "mode", "tap"], check=True)
        shown = subprocess.run([*inside, "-j", "link", "show", name], check=True, capture_output=True)
        return int(json.loads(shown.stdout)[0]["ifindex"])

    def names(self, netns: Path) -> set[str]:
        shown = subprocess.run(["nsenter", f"--net={netns}", "ip", "-j", "link"], check=True, capture_output=True)
        return {link["ifname"] for link in json.loads(shown.stdout)}

    def test_a_namespace(self, pod: Pod, netns: Path):
        pod.plan(1, "netns", path=str(netns))
        pod.undo_all()
        assert not netns.exists()

    def test_a_link(self, pod: Pod, netns: Path):
        index = self.link(netns, "tap-a")
        pod.plan(1, "link", netns=str(netns), name="tap-a")
        pod.made(1, ifindex=index)
        pod.undo_all()
        assert "tap-a" not in self.names(netns)

    def test_a_link_planned_and_not_known_to_be_made(self, pod: Pod, netns: Path):
        self.link(netns, "tap-a")
        pod.plan(1, "link", netns=str(netns), name="tap-a")
        pod.undo_all()
        assert "tap-a" not in self.names(netns)

    def test_another_link_of_that_name_or_index(self, pod: Pod, netns: Path):
        first, second = self.link(netns, "tap-a"), self.link(netns, "tap-b")
        pod.plan(1, "link", netns=str(netns), name="tap-a")
        pod.made(1, ifindex=second)
        pod.plan(2, "link", netns=str(netns), name="tap-c")
        pod.made(2, ifindex=first)
        pod.plan(3, "link", netns=str(netns), name="tap-d")
        pod.made(3, ifindex=9999)
        pod.undo_all()
        assert {"tap-a", "tap-b"} <= self.names(netns)

    def redirect(self, netns: Path, link: str) -> None:
        """An ingress queueing discipline with a filter, as a pod's network has it."""
        for words in (
            ["qdisc", "add", "dev", link, "ingress"],
            ["filter", "add", "dev", link, "parent", "ffff:", "protocol", "all", "u32", "match", "u8", "0", "0",
             "action", "mirred", "egress", "redirect", "dev", "lo"],
        ):  # fmt: skip
            subprocess.run(["nsenter", f"--net={netns}", "tc", *words], check=True)

    def ingress(self, netns: Path, link: str) -> bool:
        words = ["nsenter", f"--net={netns}", "tc", "qdisc", "show", "dev", link]
        return b"ingress" in subprocess.run(words, check=True, capture_output=True).stdout

    def test_what_redirects_frames_of_a_link_that_is_not_ours(self, pod: Pod, netns: Path):
        index = self.link(netns, "eth0")
        self.redirect(netns, "eth0")
        pod.plan(1, "qdisc", netns=str(netns), name="eth0", ifindex=index)
        pod.undo_all()
        assert "eth0" in self.names(netns)
        assert not self.ingress(netns, "eth0")

    def test_a_redirection_that_was_planned_and_never_made_or_whose_link_is_gone(self, pod: Pod, netns: Path):
        index = self.link(netns, "eth0")
        pod.plan(1, "qdisc", netns=str(netns), name="eth0", ifindex=index)
        pod.plan(2, "qdisc", netns=str(netns), name="eth1", ifindex=9999)
        pod.undo_all()
        assert "eth0" in self.names(netns)

    def test_a_redirection_of_another_link_of_that_index(self, pod: Pod, netns: Path):
        index = self.link(netns, "eth1")
        self.redirect(netns, "eth1")
        pod.plan(1, "qdisc", netns=str(netns), name="eth0", ifindex=index)
        pod.undo_all()
        assert self.ingress(netns, "eth1")

    def test_in_the_namespace_we_are_in(self, pod: Pod, netns: Path):
        index = self.link(netns, "tap-a")
        pod.plan(1, "link", netns=None, name="tap-a")
        pod.made(1, ifindex=index)
        subprocess.run(["nsenter", f"--net={netns}", LAUNCHER, "undo", pod.path], check=True, timeout=TIMEOUT)
        assert "tap-a" not in self.names(netns)

    @pytest.mark.parametrize("there", [True, False])
    def test_the_namespace_is_gone(self, pod: Pod, tmp_path: Path, there: bool):
        """A plain file is what is left of a namespace whose mount has gone with its mount namespace."""
        if there:
            (tmp_path / "ns").touch()
        pod.plan(1, "link", netns=str(tmp_path / "ns"), name="tap-a")
        pod.undo_all()
