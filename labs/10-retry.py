"""Lab 10: apply a command, though it may come twice. The text is 10-retry.md."""

from paxoskv.state.store import _EXPIRED, _FORGOTTEN, _INVALID
from paxoskv.wire.structs import Command, Result, Verb
from paxoskv.wire.validation import invalid


def _apply(self, command: Command, index: int) -> Result:
    """Apply one command, at this index of the entry at self.position."""
    if invalid(command) is not None or (command.verb > Verb.OPEN_SESSION and self._is_too_new(command)):
        return _INVALID
    return self._execute(command, index)
