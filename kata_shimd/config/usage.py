"""Which configured values the program reads: a key that is called supported must be read somewhere.

Owns the look through the sources, for tests. It goes by attribute names, so it can be fooled, but not by a key nobody reads.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

from kata_shimd.config.keys import supported


def attributes_read(package: Path) -> frozenset[str]:
    """Every attribute name read in the package's own code: not in this package, in generated code, nor in tests."""
    return frozenset(name for path in _sources(package) for name in _attributes(path))


def unread(package: Path) -> tuple[str, ...]:
    """The dotted names of supported keys whose value nothing outside configuration reads."""
    read = attributes_read(package)
    return tuple(key.dotted for key in supported() if not key.inside and key.field not in read)


def _sources(package: Path) -> Iterator[Path]:
    skipped = {package / "config", package / "api"}
    for path in sorted(package.rglob("*.py")):
        if not path.name.startswith("test_") and not skipped & set(path.parents):
            yield path


def _attributes(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_bytes(), str(path))):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            yield node.attr
