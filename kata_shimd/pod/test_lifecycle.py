"""Every pair of state and step is in the table or refused; nothing else can happen."""

from itertools import product

import pytest

from kata_shimd.errors import FailedPrecondition, NotFound
from kata_shimd.pod.lifecycle import EXEC, INIT, Do, Life, State


@pytest.mark.parametrize("table", [INIT, EXEC], ids=["init", "exec"])
@pytest.mark.parametrize(("state", "do"), list(product(State, Do)), ids=lambda value: value.name.lower())
def test_every_step_is_taken_or_refused(table, state, do):
    life = Life("c1", table)
    life.state = state
    if (state, do) in table:
        life.commit(do)
        assert life.state is table[state, do]
    else:
        refused, cause = (NotFound, "it has been") if state is State.DELETED else (FailedPrecondition, "it is")
        with pytest.raises(refused, match=f"{do.value}: c1: {cause} {state.name.lower()}"):
            life.commit(do)
        assert life.state is state


def test_nothing_leaves_deleted():
    assert not [pair for pair in INIT if pair[0] is State.DELETED]


def test_exec_knows_no_pause():
    assert State.PAUSED not in {state for pair, to in EXEC.items() for state in (pair[0], to)}


@pytest.mark.parametrize("state", [State.STOPPED, State.DELETED])
def test_permissions_end_with_the_process(state):
    life = Life("c1", INIT)
    life.check_alive("kill")
    life.state = state
    with pytest.raises(NotFound):
        life.check_alive("kill")
