"""Lab 10: apply a command, though it may come twice. The text is 10-retry.md."""

from paxoskv.state.store import _EXPIRED, _FORGOTTEN, _INVALID
from paxoskv.wire.structs import Command, Result
from paxoskv.wire.validation import invalid


def _apply(self, command: Command, index: int) -> Result:
    """Apply one command, at this index of the entry at self.position."""
    if invalid(command) is not None:
        return _INVALID
    return self._execute(command, index)
