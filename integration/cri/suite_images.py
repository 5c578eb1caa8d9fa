"""The images that critest asks of public registries, made here: the same names, and what the suite relies on in each.

Web servers are busybox's ``httpd``, told apart from it by what the suite looks for: the process is called nginx, writes its pid
where nginx does, and has "master process" among its words. An image by a digest of upstream's cannot be made.
"""

import functools
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from integration.harness import image, package
from integration.harness.image import CONFIG, IMAGE_PATH, Packed

_E2E: Final = "e2e-test-images/"
_STAGING: Final = "k8s-staging-cri-tools/"
_USERS: Final = b"www-data:x:33:33:www-data:/var/www:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n"

_WEB: Final = b"""#!/bin/sh
# usage: nginx "master process" PORT
mkdir -p /var/run /var/www
echo "It works!" > /var/www/index.html
echo $$ > /var/run/nginx.pid
trap 'kill $server; exit 0' TERM QUIT
httpd -f -p "$2" -h /var/www &
server=$!
wait
"""
_HTTPD: Final = b"""#!/bin/sh
mkdir -p /var/www
echo "It works!" > /var/www/index.html
echo "httpd serves"
exec httpd -f -p 80 -h /var/www
"""
#: Debian's busybox-static has no such applets.
_PGREP: Final = b"""#!/bin/sh
# usage: pgrep NAME
for dir in /proc/[0-9]*; do
    read -r name 2>/dev/null < "$dir/comm" && [ "$name" = "$1" ] && found="$found ${dir#/proc/}"
done
[ -n "$found" ] && printf "%s\\n" $found
"""
_IPCS: Final = b"""#!/bin/sh
# usage: ipcs -m
exec cat /proc/sysvipc/shm
"""
_APPLETS: Final = (("usr/bin/pgrep", _PGREP), ("usr/bin/ipcs", _IPCS))
#: Prints its effective uid: a setuid program, for no-new-privileges to stop or not.
_EFFECTIVE: Final = """package main

import (
	"fmt"
	"os"
)

func main() { fmt.Println("Effective uid:", os.Geteuid()) }
"""


@functools.cache
def images(cache: Path) -> dict[str, Packed]:
    """``repository:tag`` → image, made once a process. Packages are unpacked below ``cache``."""
    made = {
        f"{_E2E}busybox:1.29-2": _plain_busybox(package.unpacked("busybox", cache, "bin/busybox")),
        f"{_E2E}nginx:1.14-2": _web(80),
        f"{_STAGING}hostnet-nginx-amd64:latest": _web(12003),
        f"{_E2E}httpd:2.4.39-4": _busybox([("usr/sbin/serve", _HTTPD)], Entrypoint=["/usr/sbin/serve"]),
        f"{_E2E}nonewprivs:1.3": _setuid(),
        # Not our own pause under another name: one of the specs counts the names of an image.
        "pause:3.9": _busybox([("pause", b"upstream's")]),
    }
    made |= {f"{_STAGING}{name}": made_image for name, made_image in _staging().items()}
    return made


def _staging() -> dict[str, Packed]:
    """The suite's own: one image under several tags, several images, and users of every kind."""
    one = _busybox([("tag", b"tags")])
    different = {f"test-image-{n}:latest": _busybox([("tag", str(n).encode())]) for n in (1, 2, 3)}
    return {
        "test-image-latest:latest": _busybox([("tag", b"latest")]),
        "test-image-tag:test": _busybox([("tag", b"test")]),
        "test-image-tag:all": _busybox([("tag", b"all")]),
        **{f"test-image-tags:{n}": one for n in (1, 2, 3)},
        **different,
        "test-image-user-uid:latest": _busybox(User="1002"),
        "test-image-user-username:latest": _busybox(User="www-data"),
        "test-image-user-uid-group:latest": _busybox(User="1003:users"),
        "test-image-user-username-group:latest": _busybox(User="www-data:www-data"),
        "test-image-predefined-group:latest": _busybox(
            passwd=b"default-user:x:1000:1000::/home/default-user:/bin/sh\n",
            group=b"default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n",
            User="1000",
        ),
    }


def _busybox(
    extra: list[tuple[str, bytes]] | None = None, *, passwd: bytes = _USERS, group: bytes = b"", **config: Any
) -> Packed:
    return image.pack(image.tree([*_APPLETS, *(extra or ())], files=_files(passwd, group)), _config(config))


def _files(passwd: bytes = _USERS, group: bytes = b"") -> dict[str, bytes]:
    return {
        "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\n" + passwd,
        "etc/group": b"root:x:0:\nwww-data:x:33:\nusers:x:100:\n" + group,
    }


def _plain_busybox(program: Path) -> Packed:
    """What most containers of the suite are: of the package whose shell executes the files of its applets, as upstream's does.

    The static one's shell runs them by itself, so it does not miss one whose file is masked.
    """
    extra = [*_APPLETS, *image.libraries(program)]
    return image.pack(image.tree(extra, files=_files(), busybox=program), _config({}))


def _config(more: Mapping[str, Any]) -> dict[str, Any]:
    base = {"Env": [IMAGE_PATH], "Cmd": ["sh"]}
    if "Entrypoint" in more:
        del base["Cmd"]
    return {**CONFIG, "config": base | dict(more)}


def _web(port: int) -> Packed:
    return _busybox([("usr/sbin/nginx", _WEB)], Entrypoint=["/usr/sbin/nginx", "master process", str(port)])


def _setuid() -> Packed:
    with tempfile.TemporaryDirectory() as home:
        source, program = Path(home, "effective.go"), Path(home, "effective")
        source.write_text(_EFFECTIVE)
        subprocess.run(["go", "build", "-ldflags=-s -w", "-o", program, source], check=True, cwd=home)
        content = program.read_bytes()
    entries = [*image.tree(), image.entry("nnp", content, mode=0o4755)]
    return image.pack(entries, _config({"Entrypoint": ["/nnp"]}))
