"""What stands beside the package is true: the Dockerfile, versions that are said in several places, links between pages."""

import json
import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from integration.harness.install import POD_PACKAGES, WHEEL_SOURCES

REPOSITORY = Path(__file__).parent.parent
PAGES = sorted(
    path for path in (REPOSITORY / "README.md", *REPOSITORY.glob("docs/**/*.md"), *REPOSITORY.glob("guest/**/*.md"))
)
CRATES = ("launcher", "guest/agent", "guest/init")


def instructions():
    """The Dockerfile's instructions: (name, rest), continued lines joined."""
    text = re.sub(r"\\\n\s*", "", (REPOSITORY / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [tuple(line.split(maxsplit=1)) for line in lines]


def rest_of(name):
    return [rest for instruction, rest in instructions() if instruction == name]


# --- the Dockerfile --------------------------------------------------------------------------------------------------


def test_the_image_is_built_of_what_the_wheel_is_made_of():
    copied = [source for rest in rest_of("COPY") for source in rest.split()[:-1]]
    assert sorted(copied) == sorted(WHEEL_SOURCES)
    assert all((REPOSITORY / source).exists() for source in copied)


def test_the_image_has_the_packages_that_setup_installs():
    (installed,) = (rest for rest in rest_of("RUN") if POD_PACKAGES[0] in rest)
    words = installed.partition("--no-install-recommends")[2].partition("&&")[0].split()
    assert tuple(words) == POD_PACKAGES


@pytest.fixture
def node(tmp_path):
    """The image's command, run on directories in place of an image and of a node: a function of nothing; its outcome."""
    prefix, guest, root, tools = (tmp_path / name for name in ("opt/it", "guest", "node", "tools"))
    for directory in (prefix / "bin", guest / "abc", root / "etc", tools):
        directory.mkdir(parents=True)
    for program in ("kata-shimd", "containerd-shim-kata-v2"):
        (prefix / "bin" / program).write_text("program\n")
    (guest / "current").symlink_to("abc")
    (tools / "chroot").write_text('#!/bin/sh\necho "in $*"\n')
    (tools / "chroot").chmod(0o755)
    *words, script = json.loads(rest_of("CMD")[0])
    script = script.replace("/var/lib/kata-shimd/.", f"{guest}/.").replace("/node", str(root))
    env = {"PATH": f"{tools}:{os.environ['PATH']}", "PREFIX": str(prefix)}

    def run():
        return subprocess.run([*words, script], env=env, capture_output=True, text=True, timeout=30, check=False)

    return root, prefix, run


def test_the_image_installs_itself_onto_a_node(node):
    root, prefix, run = node
    done = run()
    assert (done.returncode, done.stdout, done.stderr) == (0, f"in {root} kata-shimd check\n", "")
    for program in ("kata-shimd", "containerd-shim-kata-v2"):
        assert (root / "usr/local/bin" / program).readlink() == prefix / "bin" / program
        assert (root / str(prefix / "bin" / program).lstrip("/")).read_text() == "program\n"
    assert (root / "var/lib/kata-shimd/current").readlink() == Path("abc")


def test_an_installation_that_pods_may_run_from_is_left_alone(node):
    _, prefix, run = node
    run()
    done = run()
    assert (done.returncode, done.stderr.startswith(f"install: {prefix}: is there already; ")) == (1, True)


def test_without_a_node_it_says_how_to_be_run(node):
    root, _, run = node
    (root / "etc").rmdir()
    done = run()
    assert done.returncode == 1
    assert done.stderr == f"install: {root}: not a root file system; run with --volume /:{root}\n"


# --- said in several places ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place", ["README.md", "integration/harness/install.py", "launcher/hatch_build.py", "Dockerfile"]
)
def test_rust_is_asked_for_in_the_version_that_every_crate_takes(place):
    manifests = (tomllib.loads((REPOSITORY / crate / "Cargo.toml").read_text()) for crate in CRATES)
    needed = max(tuple(map(int, manifest["package"]["rust-version"].split("."))) for manifest in manifests)
    said = re.findall(r"(?i)rust[: (]+(\d+)\.(\d+)\b", (REPOSITORY / place).read_text())
    assert said
    assert {tuple(map(int, version)) for version in said} == {needed}


# --- pages -----------------------------------------------------------------------------------------------------------


def links(page):
    """The files and directories that a page points to."""
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    return [page.parent / target for target in targets if "://" not in target]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_somewhere(page):
    assert [target for target in links(page) if not target.exists()] == []


def test_every_page_can_be_found_from_the_first():
    """A directory that is pointed to is read as a list."""
    found, left = set(), [REPOSITORY / "README.md"]
    while left:
        page = left.pop().resolve()
        if page in found:
            continue
        found.add(page)
        left += page.glob("*.md") if page.is_dir() else links(page) if page.suffix == ".md" else []
    assert [str(page) for page in PAGES if page not in found and page.is_relative_to(REPOSITORY / "docs")] == []


def test_no_two_decisions_have_one_number():
    numbers = [path.name[:4] for path in (REPOSITORY / "docs/decisions").glob("*.md")]
    assert len(numbers) == len(set(numbers))
