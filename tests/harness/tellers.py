"""Tellers move money from account to account of a real cluster, by transactions: none is lost or made."""

import random
import threading
import time
from types import TracebackType
from typing import Any, Self

from paxoskv import Client, ClientError, NotDoneError
from paxoskv import transactions as t
from tests.harness.linearizability import Changes, Operation, check
from tests.harness.processes import RealCluster

ACCOUNTS = [f"account/{number}" for number in range(4)]
MONEY = 1000
CLIENTS = 3


class Teller(threading.Thread):
    """Moves money from account to account, by transactions, and writes down what it saw."""

    def __init__(self, cluster: RealCluster, number: int, until: threading.Event) -> None:
        super().__init__()
        self.cluster = cluster
        self.number = number
        self.until = until
        self.source = random.Random(number)
        self.history: list[Operation] = []
        self.error: Exception | None = None
        self.moved = 0

    def run(self) -> None:
        try:
            with self.cluster.client(timeout=3, first=self.number) as client:
                while not self.until.is_set():
                    self._act(client)
        except Exception as error:
            self.error = error

    def _act(self, client: Client) -> None:
        call = time.monotonic_ns()
        if self.source.random() < 0.3:
            self._read(client, call)
            return
        payer, payee = self.source.sample(ACCOUNTS, 2)
        amount = self.source.randint(1, 200)
        done: Any = None
        outcome = "failed"
        try:
            done = client.transaction(
                [t.greater(payer, amount - 1)],
                [t.increment(payer, -amount), t.increment(payee, amount)],
                [t.get(payer), t.get(payee)],
            )
            outcome = "ok" if done.held else "mismatch"
            self.moved += done.held
        except NotDoneError:
            pass
        except ClientError:
            outcome = "unknown"
        changes = Changes(
            ((payer, "greater", str(amount - 1)),),
            (("incr", payer, str(-amount)), ("incr", payee, str(amount))),
            (("get", payer, None), ("get", payee, None)),
        )
        self.history.append(
            Operation(
                client=self.number, kind="transaction", key="", outcome=outcome, call=call, changes=changes,
                return_=None if outcome == "unknown" else time.monotonic_ns(),
                answers=tuple(answer.value for answer in done.answers) if done else (),
            )
        )  # fmt: skip

    def _read(self, client: Client, call: int) -> None:
        key = self.source.choice(ACCOUNTS)
        try:
            value = client.get(key)
        except ClientError:
            return
        self.history.append(
            Operation(client=self.number, kind="get", key=key, outcome="ok", answer=value, call=call,
                      return_=time.monotonic_ns())
        )  # fmt: skip


class Tellers:
    """Some of them, while the block runs. The accounts exist before it."""

    def __init__(self, cluster: RealCluster, client: Client) -> None:
        began = time.monotonic_ns()
        opened = client.transaction([], [t.put(account, str(MONEY)) for account in ACCOUNTS])
        changes = Changes((), tuple(("put", account, str(MONEY)) for account in ACCOUNTS), ())
        self.opening = Operation(
            client=0, kind="transaction", key="", outcome="ok", call=began, return_=time.monotonic_ns(),
            changes=changes, answers=tuple(answer.value for answer in opened.answers),
        )  # fmt: skip
        self.over = threading.Event()
        self.tellers = [Teller(cluster, number, self.over) for number in range(1, CLIENTS + 1)]

    def __enter__(self) -> Self:
        for teller in self.tellers:
            teller.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.over.set()
        for teller in self.tellers:
            teller.join()

    @property
    def count(self) -> int:
        """Transactions and reads so far."""
        return sum(len(teller.history) for teller in self.tellers)

    def judge(self, store: dict[str, str]) -> None:
        """Fail unless what they saw, and what the store holds in the end, is of one order."""
        for teller in self.tellers:
            assert teller.error is None, repr(teller.error)
        assert sum(int(store[account]) for account in ACCOUNTS) == MONEY * len(ACCOUNTS)
        assert all(int(store[account]) >= 0 for account in ACCOUNTS)
        history = [self.opening, *(operation for teller in self.tellers for operation in teller.history)]
        now = time.monotonic_ns()
        for key in ACCOUNTS:
            seen = {"key": key, "outcome": "ok", "answer": store[key], "call": now, "return_": now}
            history.append(Operation(client=0, kind="get", **seen))
        violation = check(history)
        assert violation is None, str(violation)
        assert sum(teller.moved for teller in self.tellers) > 50
