"""Leases of drivers, and the lock that they share."""

from __future__ import annotations

import pytest

from multistill.search.locks import DriverLease, StudyLock, is_alive, wait_for_other_drivers


def test_a_driver_is_alive_exactly_while_it_holds_its_lease(tmp_path):
    assert not is_alive(tmp_path, "nobody")
    with DriverLease(tmp_path) as lease, StudyLock(tmp_path):
        assert is_alive(tmp_path, lease.name)
        assert is_alive(tmp_path, lease.name), "the check does not release the lease"
    assert not is_alive(tmp_path, lease.name)


def test_a_name_in_an_altered_study_leads_to_no_file_outside_the_folder(tmp_path):
    search, outside = tmp_path / "search", tmp_path / "outside"
    with DriverLease(search):
        outside.write_text("kept")
        for name in ("../../outside", str(outside), "../study.lock", ["outside"], ""):
            assert not is_alive(search, name)
    assert outside.read_text() == "kept"
    assert (search / "drivers").is_dir()


def test_results_wait_for_the_other_drivers_and_keep_new_ones_out(tmp_path, monkeypatch):
    monkeypatch.setattr("multistill.search.locks.DRIVER_EXIT_TIMEOUT_S", 0.3)
    with wait_for_other_drivers(tmp_path):
        lock = StudyLock(tmp_path)
        with pytest.raises(TimeoutError):
            lock._lock.acquire(timeout=0)
    waited = []
    monkeypatch.setattr("multistill.search.locks.time.sleep", waited.append)
    with DriverLease(tmp_path, joined=True), wait_for_other_drivers(tmp_path):
        assert waited, "it did not wait for the living driver"
