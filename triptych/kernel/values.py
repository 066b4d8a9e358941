"""Immutable values, of which thousands are made in a second.

A frozen dataclass sets each field by a call, which was a twentieth of what the executor did. Of these the type
checker says that nobody changes them, and the interpreter does not look.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar, dataclass_transform

ClassT = TypeVar("ClassT")


@dataclass_transform(frozen_default=True)
def value(cls: type[ClassT]) -> type[ClassT]:
    """A dataclass with slots that is frozen for the type checker alone, and as little hashed as it is changed."""
    return dataclass(slots=True)(cls)
