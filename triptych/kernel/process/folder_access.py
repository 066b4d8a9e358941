"""Let one user enter the folders above a file: an entry in each folder's access control list.

Only root needs this: its folders are often closed, and a program that it starts as another user has to be reachable.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from pathlib import Path

from triptych.kernel.errors import TriptychError

_ATTRIBUTE = "system.posix_acl_access"
_VERSION = struct.pack("<I", 2)
_ENTRY = struct.Struct("<HHI")
_OWNER, _USER, _GROUP_OWNER, _GROUP, _MASK, _OTHERS = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_NO_ID = 0xFFFFFFFF
_ENTER = 0b001
_GRANTED_BY_GROUP = {_USER, _GROUP_OWNER, _GROUP}


class ClosedFolderError(TriptychError):
    """A folder is closed to a user, and no entry for the user can be made."""

    def __init__(self, folder: Path, user: int, cause: OSError) -> None:
        self.folder, self.user, self.reason = folder, user, cause.strerror or str(cause)
        super().__init__(f"user {user} must not enter {folder}, and cannot be given access: {self.reason}")


Entries = dict[tuple[int, int], int]
"""Permissions (three bits) by kind of entry and id, as acl(5) and the kernel's posix_acl_xattr.h have them."""


def let_enter(path: Path, user: int) -> None:
    """Let a user pass through the folders above `path`, without reading what is in them.

    Args:
        path: The file or folder to be reached.
        user: The user's id.

    Raises:
        ClosedFolderError: a folder is closed, and its file system keeps no access control lists.
    """
    for folder in path.resolve().parents:
        if not folder.stat().st_mode & stat.S_IXOTH:
            _allow(folder, user)


def _allow(folder: Path, user: int) -> None:
    entries = _entries(folder)
    entries[_USER, user] = entries.get((_USER, user), 0) | _ENTER
    # The mask is the most that any entry but the owner's and the others' may grant.
    entries[_MASK, _NO_ID] = 0
    for (kind, _), permissions in entries.items():
        if kind in _GRANTED_BY_GROUP:
            entries[_MASK, _NO_ID] |= permissions
    packed = b"".join(_ENTRY.pack(kind, entries[kind, who], who) for kind, who in sorted(entries))
    try:
        os.setxattr(folder, _ATTRIBUTE, _VERSION + packed)
    except OSError as error:
        raise ClosedFolderError(folder, user, error) from error


def _entries(folder: Path) -> Entries:
    try:
        packed = os.getxattr(folder, _ATTRIBUTE)[len(_VERSION) :]
    except OSError as error:
        if error.errno not in {errno.ENODATA, errno.ENOTSUP}:
            raise
        mode = folder.stat().st_mode
        return {(_OWNER, _NO_ID): mode >> 6 & 7, (_GROUP_OWNER, _NO_ID): mode >> 3 & 7, (_OTHERS, _NO_ID): mode & 7}
    return {(kind, who): permissions for kind, permissions, who in _ENTRY.iter_unpack(packed)}
