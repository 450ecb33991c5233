"""Locks: one holder at a time, tokens that grow, and what becomes of a holder whose time is over."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from paxoskv import AsyncClient, Client, LockLost, NotDoneError
from paxoskv.client import locks
from paxoskv.client import transactions as t
from paxoskv.node.expiry import expire
from paxoskv.wire.structs import Command, Transaction, Verb
from tests.harness.fake_node import DO_AND_CLOSE, FakeCluster
from tests.harness.processes import RealCluster, eventually

KEY = "locks/report"


@pytest.fixture
def fakes(tmp_path: Path) -> Iterator[FakeCluster]:
    cluster = FakeCluster(tmp_path)
    yield cluster
    cluster.close()


@pytest.fixture
def client(fakes: FakeCluster) -> Iterator[Client]:
    with Client(fakes.cluster, timeout=5) as client:
        yield client


def end_its_time(fakes: FakeCluster) -> None:
    """Do what the nodes do when the time of the lock is over."""
    fakes._apply_all([expire(KEY, fakes.store.leases[KEY].place)])


def test_a_lock_has_one_holder_and_each_one_has_a_larger_token(client: Client, fakes: FakeCluster) -> None:
    tokens = []
    for _ in range(3):
        with client.lock(KEY, ttl=5) as lock, Client(fakes.cluster) as other:
            assert lock.held and fakes.store.leases[KEY].ttl_ms == 5000
            tokens.append(lock.token)
            with pytest.raises(NotDoneError, match="another one holds it"):
                other.lock(KEY, wait=0).acquire()
        assert not lock.held and fakes.content == {}
    assert tokens == sorted(set(tokens))


def test_who_waits_gets_it_when_it_is_given_back_or_its_time_is_over(
    client: Client, fakes: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = client.lock(KEY)
    first.acquire()
    pauses = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            end_its_time(fakes)

    monkeypatch.setattr(locks.time, "sleep", pause)
    with Client(fakes.cluster) as other, other.lock(KEY) as second:
        assert second.token > first.token and len(pauses) == 2
        first.release()
        assert KEY in fakes.content, "who has lost the lock does not give back another one's"
        with pytest.raises(LockLost):
            first.renew()
        assert not first.held


def test_a_renewal_begins_the_time_anew_and_keeps_the_token(client: Client, fakes: FakeCluster) -> None:
    with client.lock(KEY) as lock:
        token, until, position = lock.token, lock._until, fakes.store.leases[KEY].place
        lock.renew()
        assert lock.token == token and lock._until > until
        assert fakes.store.leases[KEY].place > position
        with pytest.raises(RuntimeError):
            lock.acquire()
    assert fakes.content == {}


def test_a_holder_knows_when_its_time_may_be_over(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    now = locks.now()
    with client.lock(KEY, ttl=10) as lock:
        assert lock.held
        monkeypatch.setattr(locks, "now", lambda: now + 9)
        assert lock.held
        monkeypatch.setattr(locks, "now", lambda: now + 9.9)
        assert not lock.held, "the nodes' clocks may be faster"


def test_a_lock_that_was_taken_although_the_answer_was_lost_is_taken(
    client: Client, fakes: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = iter(["mine", "mine"])
    monkeypatch.setattr(locks, "token_hex", lambda _: next(names))
    with client.lock(KEY) as earlier:  # an attempt of its own, whose outcome it does not know
        lock = client.lock(KEY, wait=0)
        lock.acquire()
        assert lock.held and lock.token > earlier.token
    monkeypatch.undo()
    for node in fakes.nodes:
        node.script.append(DO_AND_CLOSE)
    with client.lock(f"{KEY}/2", wait=0) as other:  # exactly once, as any write
        assert other.held


def test_a_renewal_whose_outcome_is_unknown_loses_nothing(client: Client, fakes: FakeCluster) -> None:
    lock = client.lock(KEY)
    lock.acquire()
    token, name = lock.token, lock._name
    client.transaction([t.equals(KEY, name or "")], [t.put(KEY, name or "", 30)])  # it was done all the same
    lock.renew()
    assert lock.held and lock.token == token
    lock.release()
    assert fakes.content == {}


def test_tokens_differ_and_grow_within_one_entry(client: Client, fakes: FakeCluster) -> None:
    first, second = client.lock(KEY), client.lock(KEY)
    take = [Command(Verb.TRANSACTION, transaction=Transaction([t.absent(KEY)], [t.put(KEY, name, 30)], []))
            for name in "ab"]  # fmt: skip
    one, _, two = fakes._apply_all([take[0], Command(Verb.DELETE, KEY), take[1]])
    first._name, second._name = "a", "b"
    assert two.transacted.place > one.transacted.place
    with pytest.raises(LockLost):
        first.renew()
    second.renew()


def test_a_key_that_somebody_writes_is_no_lock_any_more(client: Client) -> None:
    lock = client.lock(KEY)
    lock.acquire()
    client.put(KEY, "mine")
    with pytest.raises(LockLost):
        lock.renew()
    assert client.get(KEY) == "mine"


def test_asyncio_has_the_same(fakes: FakeCluster) -> None:
    async def scenario() -> list[int]:
        async with AsyncClient(fakes.cluster) as client:
            tokens = []

            async def holder() -> None:
                async with client.lock(KEY, ttl=60) as lock:
                    assert lock.held
                    await client.increment("inside")
                    assert await client.get("inside") == "1"
                    await lock.renew()
                    tokens.append(lock.token)
                    await client.increment("inside", -1)

            await asyncio.gather(*(holder() for _ in range(3)))
            return tokens

    tokens = asyncio.run(scenario())
    assert tokens == sorted(set(tokens)) and len(tokens) == 3


def test_real_nodes_remove_keys_whose_time_is_over_though_some_of_them_die(tmp_path: Path) -> None:
    with RealCluster(tmp_path, nodes=3) as cluster, cluster.client() as client:
        client.put("stays", "1", ttl=600)
        began = time.monotonic()
        client.put("goes", "1", ttl=0.3)
        eventually(lambda: client.get("goes") is None, "the key is gone")
        assert time.monotonic() - began >= 0.3
        lock = client.lock(KEY, ttl=1.5)
        lock.acquire()
        cluster.kill(1)
        second = client.lock(KEY, wait=None)
        second.acquire()
        assert second.token > lock.token and not lock.held
        cluster.kill(2)
        cluster.restart(2)
        client.transaction([], [t.put("after", "1", ttl=0.2), t.get("stays")])
        eventually(lambda: client.get("after") is None, "the key is gone after a restart")
        assert client.get("stays") == "1" and second.held
        second.release()
        client.delete("stays")
        assert client.count() == 0
