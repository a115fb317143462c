"""A client core and a model node joined by hand: the test decides what arrives."""

from __future__ import annotations

from typing import Any

from govern.client.claims import Claim
from govern.client.core import ClientCore
from govern.messages import FRAME_BYTES_MAX_TO_CLIENT, Message, build_message, encode
from govern.model import Instance, ServiceKey
from govern.net.frames import FrameReader

from .model_node import ModelNode

ORDERS = ServiceKey("default", "orders")


def unpack(data: bytes) -> list[list[Any]]:
    """The raw frames of some bytes."""
    reader = FrameReader(FRAME_BYTES_MAX_TO_CLIENT)
    raws = reader.feed(data)
    assert reader.error is None
    assert reader.pending_bytes == 0
    return raws


class Pair:
    """A core and a node; nothing moves unless it is told to."""

    def __init__(self) -> None:
        self.now = 0.0
        self.core = ClientCore(b"s" * 16)
        self.node = ModelNode()

    def sent(self) -> list[Message]:
        """Take what the client has put out, without giving it to the node."""
        frames, _ = self.core.outbox.take()
        return [build_message(raw) for raw in unpack(b"".join(frames))]

    def to_node(self) -> list[Message]:
        """Give the node what the client has put out; returns it."""
        frames, _ = self.core.outbox.take()
        raws = unpack(b"".join(frames))
        for raw in raws:
            self.node.receive(raw)
        return [build_message(raw) for raw in raws]

    def to_client(self) -> None:
        """Give the client what the node has put out."""
        out, self.node.out = self.node.out, []
        for raw in unpack(b"".join(out)):
            self.core.receive(raw, self.now)

    def give(self, message: Message, request_id: int = 0) -> None:
        """Give the client one message that the test made up."""
        (raw,) = unpack(encode(message, request_id))
        self.core.receive(raw, self.now)

    def settle(self) -> list[Message]:
        """Let everything arrive on both sides; returns what the client said."""
        said: list[Message] = []
        while self.core.outbox.frames or self.node.out:
            said += self.to_node()
            self.to_client()
        return said

    def connect(self) -> list[Message]:
        self.core.dialled(self.now)
        return self.settle()

    def drop(self) -> None:
        self.node.disconnect()
        self.core.disconnected()
        self.core.outbox.take()

    def register(self, instance_id: str = "one", **fields: Any) -> Claim:
        """Want an instance; what is to be sent is put out, not moved."""
        values: dict[str, Any] = {"id": instance_id, "host": "h", "port": 1, **fields}
        claim = self.core.registrations.register(ORDERS, Instance(**values))
        self.core.registrations.pump()
        return claim

    def leave(self, claim: Claim) -> None:
        self.core.registrations.leave(claim)
        self.core.registrations.pump()

    def update(self, claim: Claim, **changes: Any) -> Any:
        request = self.core.registrations.update(claim, changes)
        self.core.registrations.pump()
        return request

    def heartbeat(self) -> None:
        """Let the next heartbeat become due and send it; it is not moved."""
        self.now += self.core.interval_seconds
        self.core.tick(self.now)
