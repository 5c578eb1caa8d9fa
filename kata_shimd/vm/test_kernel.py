"""The kernel command line (`kata.md` §4.3)."""

from dataclasses import replace

from kata_shimd.vm.kernel import command_line
from kata_shimd.vm.test_argv import KVM, TCG


def test_the_users_words_come_last_and_so_win():
    words = command_line(replace(TCG, kernel_params=("panic=0", "quiet"))).split()
    assert words[-2:] == ["panic=0", "quiet"]
    assert words.index("panic=1") < words.index("panic=0")


def test_a_bug_of_the_kernel_ends_the_machine():
    """It would leave a process that never ends, which the soak has seen."""
    words = command_line(TCG).split()
    assert {"oops=panic", "panic=1"} <= set(words)


def test_the_default_image_is_a_file_system_and_katas_has_partitions():
    assert "root=/dev/vda ro rootfstype=squashfs" in command_line(TCG)
    assert "root=/dev/vda1 rootflags=data=ordered,errors=remount-ro ro rootfstype=ext4" in command_line(KVM)


def test_only_an_image_that_boots_by_systemd_is_told_its_unit():
    assert "systemd.unit=kata-containers.target" in command_line(KVM)
    assert "systemd.unit" not in command_line(TCG)


def test_quiet_is_said_before_the_early_console_speaks():
    words = command_line(TCG).split()
    assert words.index("quiet") < words.index("earlycon=uart8250,io,0x3f8,115200") < words.index("console=hvc0")


def test_debug_is_not_quiet():
    words = command_line(replace(TCG, debug=True)).split()
    assert "debug" in words
    assert "quiet" not in words
