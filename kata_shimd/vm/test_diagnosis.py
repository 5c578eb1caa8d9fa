"""The sentence about a VM in trouble (`users.md` §1, 3): alive or dead, stderr, console, times."""

from kata_shimd.vm.diagnosis import Diagnosis

ALIVE = Diagnosis(True, "", "running", "", "line 1\nline 2", {"spawn": 0.01, "qmp": 1.234})


def test_a_vm_that_lives():
    expected = (
        "QEMU lives, status running; its stderr: silent; the console: line 1 | line 2; boot: spawn 0.01 s, qmp 1.23 s"
    )
    assert str(ALIVE) == expected


def test_a_vm_that_is_dead():
    dead = Diagnosis(False, "QEMU was killed by SIGKILL", "", "warning", "", {})
    assert str(dead).startswith("QEMU is dead: QEMU was killed by SIGKILL; its stderr: warning; the console: silent")


def test_only_the_end_of_a_long_console_and_the_panic_before_its_trace():
    trace = [f"trace {number}" for number in range(50)]
    console = "\n".join(["booting", "Kernel panic - not syncing: no init", *trace])
    shown = str(Diagnosis(True, "", "running", "", console, {})).partition("the console: ")[2].partition(";")[0]
    assert shown == " | ".join(["Kernel panic - not syncing: no init", *trace[-6:]])


def test_a_panic_among_the_last_lines_is_shown_once():
    assert str(Diagnosis(True, "", "", "", "Kernel panic", {})).count("Kernel panic") == 1
