"""Creation that is repeated, late or refused; owners and drivers. Without a server."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Any

import pytest
from helpers.fake_mlflow import FakeServer, Store
from hypothesis import given, settings
from hypothesis import strategies as st

from multistill.tracking.delivery import Delivery
from multistill.tracking.journal import Journal, Record
from multistill.tracking.owner import Owner
from multistill.tracking.replay import Replay
from multistill.tracking.runs import LEASE_SECONDS, SETTLE_SECONDS, Runs
from multistill.tracking.server import (
    DUPLICATE_TAG,
    ForbiddenError,
    ServerUnavailableError,
)

ANN, BEN = Owner("ann", "ann"), Owner("ben", "ben")


class Driver:
    """A driver without its thread: writes a journal and delivers it when told to."""

    def __init__(
        self,
        store: Store,
        spool: Path,
        owner: Owner = ANN,
        key: str = "k",
        host: str = "here",
    ) -> None:
        self.server, self.spool, self.owner, self.key = (
            FakeServer(store, owner.name),
            spool,
            owner,
            key,
        )
        self.now = 1000.0
        header = {"target": "t", "owner": owner.as_json(), "experiment": "e", "host": host}
        self.journal = Journal.create(spool, header)
        self.runs = Runs(self.server, owner, self.journal, lambda: self.now)  # type: ignore[arg-type]
        self.delivery = Delivery(self.server, self.runs)  # type: ignore[arg-type]
        self.offset = 0
        self.messages: list[str] = []
        self._replay = Replay(
            self.server,  # type: ignore[arg-type]
            self.runs,
            spool,
            "t",
            owner,
            self.messages.append,
        )
        self.open("job", None, key)

    def open(self, name: str, parent: str | None, node: str) -> None:
        key = node.rsplit("/", 1)[-1]
        record: Record = {
            "parent": parent,
            "name": name,
            "key": key,
            "kind": "model",
            "t": 5,
            "tags": {},
        }
        self.append("open", node, **record)

    def append(self, operation: str, node: str, **fields: Any) -> None:
        self.journal.append({"op": operation, "node": node, **fields})

    def metric(self, node: str, step: int) -> None:
        self.append("metrics", node, t=step, step=step, values={"loss": 0.5})

    def close(self, status: str = "FINISHED") -> None:
        self.append("close", self.key, status=status, t=9)

    def deliver(self) -> None:
        records, offset = self.journal.read(self.offset, 1000)
        self.delivery.apply("e", records, self.journal, live=True)
        self.journal.mark_sent(offset)
        self.offset = offset

    def deliver_until_done(self) -> None:
        for _ in range(50):
            try:
                self.deliver()
                return
            except ServerUnavailableError:
                continue
        raise AssertionError("the server never answered")

    def replay(self) -> int:
        protected = self.delivery.run_id("e", self.key) or ""
        return self._replay.send_abandoned(protected=protected)

    def settle(self) -> None:
        self.runs.settle(now=True)

    def kill(self) -> None:
        self.journal.release()


@pytest.fixture
def store() -> Store:
    return Store()


def visible(store: Store) -> list[Any]:
    return [run for run in store.runs.values() if DUPLICATE_TAG not in run.data.tags]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.booleans(), max_size=8), st.sets(st.integers(0, 8)), st.booleans())
def test_however_creations_are_answered_each_run_is_there_once(
    answers: list[bool], catches_up: set[int], killed: bool
) -> None:
    store = Store()
    store.answers = list(answers)
    with tempfile.TemporaryDirectory() as folder:
        driver = Driver(store, Path(folder))
        for child in ("a", "b"):
            driver.open(child, "k", f"k/{child}")
            driver.metric(f"k/{child}", 1)
        for attempt in itertools.count():
            try:
                driver.deliver()
                break
            except ServerUnavailableError:
                if attempt in catches_up:
                    store.catch_up()
        if killed:
            driver.kill()
            driver = Driver(store, Path(folder), key="another job")
            driver.deliver_until_done()
            driver.replay()
        else:
            driver.close()
            driver.deliver()
        store.catch_up()
        driver.settle()
        runs = [run for run in visible(store) if run.info.run_name != "job" or not killed]
        names = sorted(run.info.run_name for run in runs)
        assert names == (["a", "b"] if killed else ["a", "b", "job"])
        for run in store.runs.values():
            other = run.data.tags["multistill.key"] == "another job"
            live = killed and other and DUPLICATE_TAG not in run.data.tags
            assert (run.info.status == "RUNNING") is live, run
            if run in runs and run.info.run_name in "ab":
                assert [point[3] for point in run.data.points] == [1]


def test_a_request_that_is_carried_out_after_the_end_is_removed_by_the_next_run(
    store: Store, tmp_path: Path
) -> None:
    store.answers = [False, True]
    first = Driver(store, tmp_path)
    first.deliver_until_done()
    first.close()
    first.deliver()
    first.settle()
    assert first.runs.in_doubt
    first.kill()
    store.catch_up()  # only now is the first request carried out
    assert [run.info.status for run in store.runs.values()] == ["FINISHED", "RUNNING"]
    second = Driver(store, tmp_path, key="another job")
    second.deliver()
    second.replay()
    second.settle()
    assert [run.info.status for run in store.named("job")][:2] == ["FINISHED", "KILLED"]
    assert store.runs["run1"].data.tags[DUPLICATE_TAG] == "run0"
    second.now += SETTLE_SECONDS + 1
    second.settle()
    assert not second.runs.in_doubt
    assert second.journal.doubts == {}


def test_a_run_that_was_given_up_while_the_server_hung_leaves_no_run(
    store: Store, tmp_path: Path
) -> None:
    store.hung = True
    first = Driver(store, tmp_path)
    with pytest.raises(ServerUnavailableError), first.runs.requesting("run", "e", "asked") as asked:
        assert asked.kept is None
        raise ServerUnavailableError("timed out")
    store.late.append(
        lambda: store.create("e", "late", 5, {"multistill.request": "asked", "multistill.key": "k"})
    )
    assert first.runs.give_up()
    first.journal.write_nothing_to_send()
    first.kill()
    store.catch_up()
    second = Driver(store, tmp_path, key="another job")
    second.deliver()
    second.replay()
    second.settle()
    assert [run.info.status for run in store.named("late")] == ["KILLED"]


def test_after_giving_up_nothing_is_created(store: Store, tmp_path: Path) -> None:
    driver = Driver(store, tmp_path)
    assert not driver.runs.give_up()
    with pytest.raises(ServerUnavailableError):
        driver.deliver()
    assert not store.runs


@pytest.mark.parametrize(
    ("mine", "other", "own"),
    [
        (ANN, ANN, True),
        (ANN, Owner("ann"), True),  # written before the server asked for a login
        (ANN, BEN, False),
        (ANN, Owner("ann", "ben"), False),  # a shared account, another login
        (ANN, Owner("ben", "ann"), False),
        (Owner("ann"), ANN, False),
        (ANN, Owner(""), False),
    ],
)
def test_records_are_sent_by_their_owner_only(
    store: Store, tmp_path: Path, mine: Owner, other: Owner, own: bool
) -> None:
    dead = Driver(store, tmp_path, other, key="dead")
    dead.metric("dead", 1)
    dead.kill()
    me = Driver(store, tmp_path, mine, key="mine")
    me.deliver()
    me.replay()
    me.replay()
    assert dead.journal.folder.exists() is not own
    assert len(store.runs) == (2 if own else 1)
    assert len(me.messages) == 1, "said, and only once"
    assert ("sent 2 records" if own else "records of") in me.messages[0]


def test_every_run_names_the_machine_that_recorded_it_also_when_another_sends_it(
    store: Store, tmp_path: Path
) -> None:
    dead = Driver(store, tmp_path, key="dead", host="node1")
    dead.open("model", "dead", "dead/model")
    dead.kill()
    me = Driver(store, tmp_path, key="mine", host="node2")
    me.deliver()
    me.replay()
    hosts = {run.data.tags["multistill.key"]: run.data.tags for run in store.runs.values()}
    assert {key: tags["multistill.host"] for key, tags in hosts.items()} == {
        "mine": "node2",
        "dead": "node1",
        "model": "node1",
    }


def test_the_journal_of_a_live_colleague_is_not_mentioned(store: Store, tmp_path: Path) -> None:
    his = Driver(store, tmp_path, BEN, key="his")
    me = Driver(store, tmp_path)
    me.deliver()
    assert me.replay() == 0
    assert me.messages == []
    his.kill()


def test_refused_records_stay_and_are_said_until_permission_is_granted(
    store: Store, tmp_path: Path
) -> None:
    dead = Driver(store, tmp_path, key="dead")
    for step in (1, 2):
        dead.metric("dead", step)
    dead.kill()
    alive = []
    for number in range(2):
        me = Driver(store, tmp_path, key=f"mine{number}")
        alive.append(me)
        me.deliver()
        store.readers = {"ann"}
        for _ in range(2):
            assert me.replay() == 0
        assert len(me.messages) == 1, "said once per run"
        assert "refuses them to ann" in me.messages[0]
        assert str(dead.journal.folder) in me.messages[0]
        assert dead.journal.count_from(0) == 3
        store.readers = set()
    me = Driver(store, tmp_path, key="last")
    me.deliver()
    me.replay()
    assert [point[3] for point in store.named("job")[-1].data.points] == [1, 2]
    assert not dead.journal.folder.exists()


def test_one_by_one_a_refused_record_is_kept_too(store: Store, tmp_path: Path) -> None:
    driver = Driver(store, tmp_path)
    driver.deliver()
    store.readers = {"ann"}
    driver.metric("k", 1)
    records, _ = driver.journal.read(driver.offset, 10)
    with pytest.raises(ForbiddenError):
        driver.delivery.apply_each("e", records, driver.journal, live=True)
    assert driver.delivery.rejected == []


@pytest.mark.parametrize("damage", [b"", b"\x00\xff\n", b'{"op": "metrics", "node": "dead"}\n'])
def test_a_damaged_journal_does_not_keep_a_run_from_starting(
    store: Store, tmp_path: Path, damage: bytes
) -> None:
    dead = Driver(store, tmp_path, key="dead")
    dead.kill()
    with (dead.journal.folder / "records.jsonl").open("ab") as stream:
        stream.write(damage)
    (tmp_path / "stray").mkdir()
    me = Driver(store, tmp_path, key="mine")
    me.deliver()
    me.replay()
    assert me.messages
    if b"metrics" in damage:
        assert "not sent" in me.messages[0] and dead.journal.folder.exists()


def test_a_journal_that_cannot_be_read_is_left_alone(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = Driver(store, tmp_path, BEN, key="dead")
    dead.kill()
    real_open = Path.open

    def refuse(path: Path, *args: Any, **kwargs: Any) -> Any:
        if dead.journal.folder in path.parents:
            raise PermissionError(13, "Permission denied", str(path))
        return real_open(path, *args, **kwargs)

    me = Driver(store, tmp_path, key="mine")
    me.deliver()
    monkeypatch.setattr(Path, "open", refuse)
    assert me.replay() == 0
    assert dead.journal.folder.exists()


def statuses(store: Store, driver: Driver) -> dict[str, str]:
    top = driver.delivery.run_id("e", driver.key)
    below = [r for r in store.runs.values() if r.data.tags.get("mlflow.parentRunId") == top]
    return {run.info.run_name: run.info.status for run in (store.runs[str(top)], *below)}


@pytest.mark.parametrize("shared_workspace", [True, False])
@pytest.mark.parametrize("second_owner", [ANN, BEN])
def test_two_live_drivers_of_the_same_job_have_runs_of_their_own(
    store: Store, tmp_path: Path, shared_workspace: bool, second_owner: Owner
) -> None:
    first = Driver(store, tmp_path / "a")
    first.open("model", "k", "k/m")
    first.metric("k/m", 1)
    first.deliver()
    second = Driver(store, tmp_path / ("a" if shared_workspace else "b"), second_owner)
    second.open("model", "k", "k/m")
    second.deliver()
    second.replay()
    top = second.delivery.run_id("e", "k")
    assert top is not None and top != first.delivery.run_id("e", "k")
    second.delivery.mark_orphans("e", top, 9)
    second.close()
    second.deliver()
    assert statuses(store, first) == {"job": "RUNNING", "model": "RUNNING"}
    assert statuses(store, second) == {"job #2": "FINISHED", "model": "FINISHED"}
    assert store.runs[top].data.tags["multistill.same_job_as"] == first.delivery.run_id("e", "k")
    first.metric("k/m", 2)
    first.close()
    first.deliver()
    assert statuses(store, first) == {"job": "FINISHED", "model": "FINISHED"}


def test_a_dead_driver_s_run_is_continued_by_its_owner(store: Store, tmp_path: Path) -> None:
    first = Driver(store, tmp_path)
    first.deliver()
    first.kill()
    second = Driver(store, tmp_path)
    second.deliver()
    assert second.delivery.run_id("e", "k") == first.delivery.run_id("e", "k")
    other = Driver(store, tmp_path, BEN)
    other.deliver()
    assert other.delivery.run_id("e", "k") != first.delivery.run_id("e", "k")


def test_without_its_journal_a_driver_is_dead_once_its_heartbeat_is_old(
    store: Store, tmp_path: Path
) -> None:
    first = Driver(store, tmp_path / "a")
    first.deliver()
    early, late = Driver(store, tmp_path / "b"), Driver(store, tmp_path / "c")
    early.now = first.now + LEASE_SECONDS - 1
    late.now = first.now + LEASE_SECONDS + 1
    early.deliver()
    assert early.delivery.run_id("e", "k") != first.delivery.run_id("e", "k")
    first.now = late.now
    first.runs.renew_lease(str(first.delivery.run_id("e", "k")))
    early.now = late.now
    early.runs.renew_lease(str(early.delivery.run_id("e", "k")))
    late.deliver()
    assert store.runs[str(late.delivery.run_id("e", "k"))].info.run_name == "job #3"
    last = Driver(store, tmp_path / "d")
    last.now = late.now + LEASE_SECONDS + 1
    last.deliver()
    assert len(store.runs) == 3, "one of the three is continued"


def test_an_old_journal_does_not_end_the_run_that_a_live_driver_continues(
    store: Store, tmp_path: Path
) -> None:
    dead = Driver(store, tmp_path)
    dead.deliver()
    dead.metric("k", 1)
    dead.kill()
    live = Driver(store, tmp_path)
    live.deliver()  # continues the run, and has not replayed yet
    other = Driver(store, tmp_path, key="another job")
    other.deliver()
    other.replay()
    assert statuses(store, live) == {"job": "RUNNING"}
    assert dead.journal.folder.exists()
    live.replay()
    assert [point[3] for point in store.runs["run0"].data.points] == [1]
    assert not dead.journal.folder.exists()


def test_a_journal_names_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from multistill.tracking.owner import current_owner

    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret99")
    assert current_owner("https://mlflow.lab").login == "ann"
    assert current_owner("https://ben:secret99@mlflow.lab").login == "ben"
    assert current_owner("sqlite:///file.db").login == ""
    record: Record = current_owner("https://ben:secret99@mlflow.lab").as_json()
    assert "secret99" not in str(record)
