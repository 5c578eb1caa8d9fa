"""Which configured values the program reads: a key that is called supported must be read somewhere.

Owns the look through the sources, for tests. It goes by names, so it can be fooled, but not by a key nobody reads: a value counts
as read where its attribute is taken from something that is called as its section is.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from kata_shimd.config.keys import supported

#: What the sections of the tree are called where they are read, by the table of the file.
SECTIONS: Final = {
    "hypervisor.qemu": "hypervisor",
    "agent.kata": "agent",
    "runtime": "runtime",
    "factory": "factory",
    "shimd": "shimd",
    "shimd.timeouts": "timeouts",
}

#: A section's name and an attribute of it.
Read = tuple[str, str]


def attributes_read(package: Path) -> frozenset[Read]:
    """Every attribute read in the package's own code: not in this package, in generated code, nor in tests."""
    return frozenset(read for path in _sources(package) for read in _attributes(path))


def unread(package: Path) -> tuple[str, ...]:
    """The dotted names of supported keys whose value nothing outside configuration reads."""
    read = attributes_read(package)
    return tuple(key.dotted for key in supported() if not key.inside and (SECTIONS[key.table], key.field) not in read)


def _sources(package: Path) -> Iterator[Path]:
    skipped = {package / "config", package / "api"}
    for path in sorted(package.rglob("*.py")):
        if not path.name.startswith("test_") and not skipped & set(path.parents):
            yield path


def _attributes(path: Path) -> Iterator[Read]:
    for node in ast.walk(ast.parse(path.read_bytes(), str(path))):
        match node:
            case ast.Attribute(value=ast.Name(id=section), attr=name, ctx=ast.Load()):
                yield section, name
            case ast.Attribute(value=ast.Attribute(attr=section), attr=name, ctx=ast.Load()):
                yield section, name
