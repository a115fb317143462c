"""Methods of real classes, replaced on purpose for the length of a run and put back."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any


@contextmanager
def patched(*patches: tuple[type, str, Any]) -> Generator[None]:
    """Put each `(class, name, method)` in its place."""
    originals = [vars(kind)[name] for kind, name, _ in patches]
    _set(patches)
    try:
        yield
    finally:
        _set([(kind, name, original) for (kind, name, _), original in zip(patches, originals, strict=True)])


def _set(patches: Sequence[tuple[type, str, Any]]) -> None:
    for kind, name, method in patches:
        setattr(kind, name, method)
