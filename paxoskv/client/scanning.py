"""A scan on its way: page by page, on demand, over either client."""

import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from paxoskv.client.operations import PAGE_ITEMS, Calls, Operation
from paxoskv.wire.structs import Item, Page, Position, Range


class Scan:
    """The items of a range, in order: to iterate over once, by `for` or `async for`.

    Each page is fetched when it is needed, and is of one state. `positions` says of which, for each page so
    far (None: its node does not say it, being older). The whole is a snapshot only if all are the same.
    """

    def __init__(
        self, run: Callable[[Operation[Page]], Any], calls: Calls, wanted: Range, read: str, node: int | None
    ) -> None:
        """`run` carries out an operation. The range's limit is that of all pages; None: there is none."""
        self.positions: list[Position | None] = []
        self._run = run
        self._calls = calls
        self._wanted = wanted
        self._read = read
        self._node = node
        self._left: int = sys.maxsize if wanted.limit is None else wanted.limit

    @property
    def of_one_state(self) -> bool:
        """Whether all that came so far was there at one moment."""
        return len(self.positions) <= 1 or (len(set(self.positions)) == 1 and self.positions[0] is not None)

    def __iter__(self) -> Iterator[Item]:
        while self._left > 0:
            yield from self._take(self._run(self._next()))

    async def __aiter__(self) -> AsyncIterator[Item]:
        while self._left > 0:
            for item in self._take(await self._run(self._next())):
                yield item

    def _next(self) -> Operation[Page]:
        wanted = self._wanted._replace(limit=min(self._left, PAGE_ITEMS))
        return self._calls.page(wanted, self._read, self._node)

    def _take(self, page: Page) -> list[Item]:
        self.positions.append(page.position)
        self._left = self._left - len(page.items) if page.more and page.items else 0
        if page.items:
            self._wanted = self._wanted._replace(after=page.items[-1].key)
        return page.items
