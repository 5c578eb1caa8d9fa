"""Against files made here, and cut off anywhere: an error, never another answer than the whole file's."""

from pathlib import Path

import pytest

from kata_shimd.errors import HostFailed
from kata_shimd.image.elf import Linkage, is_elf, linkage, section
from kata_shimd.image.elf_testing import module, program

HERE = Path("f")
LOADER = "/lib64/ld-linux-x86-64.so.2"


def test_linkage_of_a_dynamic_program():
    data = program(LOADER, ["libc.so.6", "libcap.so.2"])
    assert is_elf(data)
    assert linkage(data, HERE) == Linkage(LOADER, ("libc.so.6", "libcap.so.2"))


def test_linkage_of_a_library_that_needs_nothing():
    assert linkage(program("", []), HERE) == Linkage("", ())


def test_section_is_found_by_name():
    data = module(b"license=GPL\0depends=a,b\0")
    assert section(data, b".modinfo", HERE) == b"license=GPL\0depends=a,b\0"
    assert section(data, b".other", HERE) == b""


@pytest.mark.parametrize("whole", [module(b"depends=a\0"), program(LOADER, ["libc.so.6"])], ids=["module", "program"])
def test_a_cut_file_is_an_error(whole):
    read = (
        (lambda data: section(data, b".modinfo", HERE)) if b".modinfo" in whole else (lambda data: linkage(data, HERE))
    )
    expected = read(whole)
    for length in range(len(whole)):
        try:
            assert read(whole[:length]) == expected
        except HostFailed as error:
            assert "not a whole 64-bit ELF file" in str(error)
