"""Claims of users: each pod its own, whoever claims first."""

import stat

import pytest

from kata_shimd.errors import HostFailed, ResourceExhausted
from kata_shimd.vm import user


def test_a_pods_user_is_its_own_and_lasts(pod_dir, ledger, tmp_path):
    uid, record = user.claim(ledger, tmp_path / "uids", pod_dir.name)
    claim = tmp_path / "uids" / f"{uid}.{pod_dir.name}"
    assert uid == user.candidate(pod_dir.name, 0)
    assert user.FIRST <= uid <= user.LAST
    assert stat.S_IMODE(claim.stat().st_mode) == 0o600
    assert ledger.state.live[record].fields["path"] == str(claim)


def test_a_user_that_is_taken_is_left_alone(pod_dir, ledger, tmp_path):
    taken = tmp_path / "uids" / f"{user.candidate(pod_dir.name, 0)}.someone-else"
    taken.parent.mkdir()
    taken.touch()
    uid, record = user.claim(ledger, tmp_path / "uids", pod_dir.name)
    assert uid == user.candidate(pod_dir.name, 1)
    assert taken.exists()
    assert list(ledger.state.live) == [record]
    assert {path.name for path in taken.parent.iterdir()} == {taken.name, f"{uid}.{pod_dir.name}"}


def test_a_claim_is_recorded_before_it_is_made(pod_dir, ledger, tmp_path):
    (tmp_path / "uids").write_text("not a directory")
    with pytest.raises(HostFailed, match="claim user"):
        user.claim(ledger, tmp_path / "uids", pod_dir.name)
    (tmp_path / "uids").unlink()
    (tmp_path / "uids").mkdir()
    (tmp_path / "uids" / f"{user.candidate(pod_dir.name, 0)}.{pod_dir.name}").mkdir()
    with pytest.raises(HostFailed):
        user.claim(ledger, tmp_path / "uids", pod_dir.name)
    assert len(ledger.state.live) == 1


def test_all_candidates_taken(pod_dir, ledger, tmp_path):
    directory = tmp_path / "uids"
    directory.mkdir()
    for attempt in range(100):
        (directory / f"{user.candidate(pod_dir.name, attempt)}.other").touch()
    with pytest.raises(ResourceExhausted):
        user.claim(ledger, directory, pod_dir.name)
    assert not ledger.state.live


def test_candidates_stay_in_the_range_nobody_has():
    uids = {user.candidate(f"{pod:020x}", attempt) for pod in range(500) for attempt in range(4)}
    assert min(uids) >= 0x70000000
    assert max(uids) < 0x7FFE0000
    assert len(uids) == 2000
