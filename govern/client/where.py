"""Where the registry is: what a caller hands to `connect`, as a list of addresses.

This is the one place of the client that looks at the process's environment variables.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final, Protocol

from ..environment import Environment
from ..errors import Invalid
from ..model import split_address

VARIABLE: Final = "GOVERN_CONNECT"
PORT_DEFAULT: Final = 7400
ADDRESS_DEFAULT: Final = f"127.0.0.1:{PORT_DEFAULT}"

Address = tuple[str, int]


class NodeLike(Protocol):
    """A running node of this process, as far as a client needs to know it."""

    @property
    def address(self) -> Address:
        """Where it listens for clients."""

    @property
    def environment(self) -> Environment:
        """Its doors: a client of a simulated node must go through them."""


Where = NodeLike | str | Sequence[str] | None


def find_addresses(where: Where) -> tuple[list[Address], Environment | None]:
    """The addresses to try, in the given order and each once, and the doors of a node of this process. Raises `Invalid`."""
    if where is None:
        where = os.environ.get(VARIABLE, "").strip() or ADDRESS_DEFAULT
    if isinstance(where, str):
        return _read(where.split(",")), None
    if isinstance(where, Sequence):
        return _read(where), None
    return [where.address], where.environment


def _read(texts: Sequence[str]) -> list[Address]:
    addresses: dict[Address, None] = {}
    for text in texts:
        if not isinstance(text, str):
            raise Invalid(f"address {text!r} is not valid: use text such as {ADDRESS_DEFAULT}")
        if text.strip():
            address = split_address(text, port_default=PORT_DEFAULT)
            if address[1] == 0:
                raise Invalid(f"address {text.strip()} is not valid: port 0 cannot be connected to")
            addresses[address] = None
    if not addresses:
        raise Invalid(f"no address was given: use HOST:PORT, for example {ADDRESS_DEFAULT}")
    return list(addresses)
