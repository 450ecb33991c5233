"""A node's data directory: who it belongs to, where recovery begins, how it is made and replaced.

    DIR/
      lock                            flock: one process at a time
      identity.json                   who the node is; made by --init, last of all
      manifest.json                   which checkpoint (see checkpoint.py) the journal stands on; absent: none
      synced                          the mark, see mark.py
      stale                           why peers refused this data as a stale copy; absent: they have not
      journal/0000000001.segment      frames, oldest first, see segments.py
      journal/0000000002.segment      the next segment, made ahead of need: a header, then zeros
      journal/0000000003.segment.new  not finished: removed by the next start

The manifest names the segment and the frame, the first one in it, from which the journal is replayed on top
of its checkpoint. Segments before that one are not looked at: they are deleted, but only when the manifest is
durable, and whatever part of them a crash leaves is deleted later.
"""

import contextlib
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from paxoskv.storage.files import Damaged, Files, JournalError, Unreadable, make_file
from paxoskv.storage.mark import SYNCED, mark_bytes
from paxoskv.storage.segments import FIRST, make_segment, segment_path
from paxoskv.wire import validation
from paxoskv.wire.codec import encode
from paxoskv.wire.structs import Identity

SEGMENT_BYTES: Final = 16 << 20  # a new segment is rare, and made in well under a second
MANIFEST: Final = "manifest.json"
STALE: Final = "stale"
# A field of identity.json that older versions refuse: the journal has commands of this format.
NEWER: Final = "needs_newer_software"
FORMAT: Final = 1  # of identity.json and manifest.json


# --------------------------------------------------------------------------------------------------- identity


def identity_json(identity: Identity) -> str:
    """The content of identity.json. Its crc32 is that of the encoded struct: so accidents are noticed."""
    content = {
        "format": FORMAT,
        "cluster": identity.cluster,
        "digest": identity.digest,
        "node": identity.node,
        "incarnation": identity.incarnation,
        **({"proposing": identity.proposing} if identity.proposing else {}),
        **({NEWER: identity.format} if identity.format else {}),
        "crc32": zlib.crc32(encode(identity)),
    }
    return json.dumps(content, indent=2) + "\n"


def mark_format(directory: Path, identity: Identity, format_: int) -> None:
    """Let no version start here that does not know the commands of this format; durable when it returns."""
    if (identity.format or 0) < format_:
        marked = identity_json(identity._replace(format=format_)).encode()
        make_file(Files(), directory / "identity.json", iter([marked]))


def read_identity(data: bytes) -> Identity:
    """The identity in the content of identity.json. ValueError, its reason in one line, if there is none."""
    try:
        content = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError("is not a JSON object")
    if content.get("format") != FORMAT:
        raise ValueError(f"format: {content.get('format')!r:.40} is not {FORMAT}, the only one known here")
    types = {"format": int, "cluster": str, "digest": str, "node": int, "incarnation": int, "crc32": int}
    if "proposing" in content:  # else as clusters always did
        types["proposing"] = str
    if NEWER in content:
        types[NEWER] = int
    if unknown := sorted(set(content) - set(types)):
        raise ValueError(f"{unknown[0]!r:.40}: unknown field")
    for name, kind in types.items():
        if type(content.get(name)) is not kind:
            raise ValueError(f"{name}: missing, or not of type {kind.__name__}")
    identity = Identity(
        content["cluster"], content["digest"], content["node"], content["incarnation"], 0,
        proposing=content.get("proposing"), format=content.get(NEWER),
    )  # fmt: skip
    try:
        check = zlib.crc32(encode(identity))
    except (OverflowError, ValueError) as error:  # a number that does not fit, half a surrogate pair
        raise ValueError(f"holds what no identity holds: {error}") from error
    if check != content["crc32"]:
        raise ValueError("crc32: does not match the other fields: the file was changed")
    if (identity.format or 0) > validation.FORMAT:
        raise ValueError(f"{NEWER}: commands of format {identity.format}, but this knows {validation.FORMAT}")
    return identity


# --------------------------------------------------------------------------------------------------- manifest


class Saved(NamedTuple):
    """A file that must be found as it was left."""

    number: int  # of the checkpoint
    size: int  # bytes
    check: int  # CRC-32 of all of them


@dataclass(frozen=True, slots=True)
class Manifest:
    """Where recovery begins: with this checkpoint, and then with this frame, the first of this segment."""

    checkpoint: Saved
    previous: Saved | None  # the one before it, kept for those who are reading it
    segment: int
    frame: int


def manifest_json(manifest: Manifest) -> str:
    """The content of manifest.json; its crc32 is that of the other lines."""
    content: dict[str, Any] = {
        "format": FORMAT,
        "checkpoint": manifest.checkpoint._asdict(),
        "previous": manifest.previous and manifest.previous._asdict(),
        "segment": manifest.segment,
        "frame": manifest.frame,
    }
    content["crc32"] = zlib.crc32(json.dumps(content).encode())
    return json.dumps(content, indent=2) + "\n"


def read_manifest(data: bytes) -> Manifest:
    """The manifest in the content of manifest.json. ValueError, its reason in one line, if there is none.

    It is compared with what manifest_json() would have written: not a space can change unnoticed.
    """
    try:
        content = json.loads(data.decode("utf-8"))
        previous = content["previous"]
        manifest = Manifest(
            Saved(**content["checkpoint"]),
            previous and Saved(**previous),
            content["segment"],
            content["frame"],
        )
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"is not what a manifest is: {type(error).__name__}: {error}") from error
    if manifest_json(manifest).encode() != data:
        raise ValueError("crc32: does not match the other fields: the file was changed")
    return manifest


def load_manifest(files: "Files", directory: Path) -> Manifest | None:
    """The manifest of a data directory; None: there is none, nothing was ever deleted. Damaged, OSError."""
    path = directory / MANIFEST
    if not files.exists(path):
        return None
    data = files.read(path)
    try:
        return read_manifest(data)
    except ValueError as error:
        if is_manifest_of_another_version(data):
            raise Unreadable(path, 0, f"is intact, but {error}") from error
        raise Damaged(path, 0, str(error)) from error


def is_manifest_of_another_version(data: bytes) -> bool:
    """Whether this, which is no manifest that is known here, is a whole one of another version.

    It is, if it is written as manifest_json() writes, and its crc32 matches.
    """
    try:
        content = json.loads(data)
        written = (json.dumps(content, indent=2) + "\n").encode() == data
        check = content.pop("crc32")
        return written and check == zlib.crc32(json.dumps(content).encode())
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        return False


# ------------------------------------------------------------------------------------ a copy that was refused


def condemn(directory: Path, reason: str, files: Files | None = None) -> None:
    """Let no start use this data any more: a peer has refused it as a stale copy.

    Durably, for those who know better may be gone at the next start. OSError if that fails.
    """
    files = files or Files()
    if not files.exists(directory / STALE):
        make_file(files, directory / STALE, iter([f"{reason}\n".encode()]))


def check_not_condemned(files: Files, directory: Path) -> None:
    """Unreadable if this data was refused before: whether it is given up is for people to decide."""
    path = directory / STALE
    if files.exists(path):
        reason = files.read(path).decode(errors="replace").strip()
        raise Unreadable(path, 0, f"peers have refused this data: {reason}")


# ----------------------------------------------------------------------------------- making and replacing one


def create(
    directory: Path,
    identity: Identity,
    segment_bytes: int = SEGMENT_BYTES,
    files: Files | None = None,
) -> None:
    """Make a data directory, durably. JournalError if it exists and is not empty.

    The identity comes last: what a crash leaves half made is no data directory, and refused until
    removed.
    """
    files = files or Files()
    if segment_bytes < FIRST:
        raise ValueError(f"segment_bytes: {segment_bytes} is less than a segment's header")
    try:
        if files.exists(directory) and (names := files.names(directory)):
            reason = "is a data directory already" if "identity.json" in names else "is not empty"
            raise JournalError(f"{directory}: {reason}: --init overwrites nothing")
        missing = [path for path in (directory, *directory.parents) if not files.exists(path)]
        for path in reversed(missing):
            # Nodes that are started together on one machine share the parent, and one of them is first.
            with contextlib.suppress(FileExistsError):
                files.make_directory(path)
            files.sync_directory(path.parent)
        files.sync_directory(directory.parent)  # also if somebody else has just made the directory
        journal = directory / "journal"
        files.make_directory(journal)  # of two processes that make one data directory, one fails here
        segment = make_segment(files, journal, 1, segment_bytes)
        make_file(files, directory / SYNCED, iter([mark_bytes(0, segment.number, segment.check)]))
        files.sync_directory(directory)  # an identity must never be there without its journal
        make_file(files, directory / "identity.json", iter([identity_json(identity).encode()]))
    except OSError as error:
        raise JournalError(f"{directory}: {error.strerror or error}") from error


def replacement_path(directory: Path) -> Path:
    """Where the data directory is made that takes the place of a damaged one."""
    return directory.with_name(directory.name + ".rejoin.new")


def replace(
    directory: Path,
    aside: Path,
    identity: Identity,
    segment_bytes: int = SEGMENT_BYTES,
    files: Files | None = None,
) -> None:
    """Put an empty data directory in the place of a damaged one, which is kept as `aside`, a new name.

    The caller holds the lock of the damaged one; the identity is of incarnation 0, so that the node rejoins.
    Steps, each durable before the next, and what a crash after it leaves:

        make the new one beside     the damaged one in its place: the next start finds the damage again
        move the damaged one        none in its place, which only this does: finish_replacement() goes on here
        move the new one            what a start with --rejoin makes

    So there is never a moment at which a start finds an empty directory that may vote. JournalError: one of
    these states, too.
    """
    files = files or Files()
    new = replacement_path(directory)
    try:
        discard_replacement(directory, files)
        try:
            create(new, identity, segment_bytes, files)
            files.rename(directory, aside)
        except (OSError, JournalError):
            if files.exists(directory):
                discard_replacement(directory, files)
            raise
        files.sync_directory(directory.parent)
        files.rename(new, directory)
        files.sync_directory(directory.parent)
    except OSError as error:
        raise JournalError(f"{error.filename or new}: {error.strerror or error}") from error


def finish_replacement(directory: Path, files: Files | None = None) -> bool:
    """Finish what a crash may have left of replace(): at each start, before the directory is opened.

    True: the damaged directory had been moved, and now the new one is in its place. JournalError if that
    fails.
    """
    files = files or Files()
    new = replacement_path(directory)
    if files.exists(directory / "identity.json") or not files.exists(new / "identity.json"):
        return False
    try:
        files.rename(new, directory)
        files.sync_directory(directory.parent)
    except OSError as error:
        raise JournalError(f"{directory}: {error.strerror or error}") from error
    return True


def discard_replacement(directory: Path, files: Files | None = None) -> None:
    """Remove a directory that replace() has made and not used.

    The caller holds the lock of the one in its place. OSError if there is anything in it that replace() does
    not make. The identity goes first, durably: without it nothing takes the rest for a data directory.
    """
    files = files or Files()
    new = replacement_path(directory)
    if not files.exists(new):
        return
    for name in ("identity.json", "identity.json.new", SYNCED, SYNCED + ".new"):
        if files.exists(new / name):
            files.remove(new / name)
    files.sync_directory(new)
    journal = new / "journal"
    if files.exists(journal):
        for name in (segment_path(journal, 1).name, segment_path(journal, 1).name + ".new"):
            if files.exists(journal / name):
                files.remove(journal / name)
        files.remove_directory(journal)
    files.remove_directory(new)
    files.sync_directory(directory.parent)
