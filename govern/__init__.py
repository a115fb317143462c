"""govern: a service registry that is a Python library.

    async with govern.open_node() as node:                      a node inside this process
        async with govern.connect(node) as registry:            a client; also connect("10.0.0.1:7400,10.0.0.2:7400")
            async with registry.register("orders", port=8080):  durable and visible inside the block
                await registry.lookup("orders")
            async with registry.subscribe("orders") as orders:
                orders.choose()                                 an instance to send a request to
                async for change in orders: ...

Everything runs under trio. `python -m govern` is the same node standalone.
"""

from ._version import VERSION as __version__
from .actors.node import Node, open_node
from .client import Drained, Explanation, LiveView, Registration, Registry, connect
from .config import Config
from .errors import (
    ConfigError,
    DiskFull,
    Evicted,
    Gone,
    GovernError,
    Indeterminate,
    Invalid,
    NoController,
    NodeFailed,
    Overloaded,
    ProtocolError,
    Rejected,
    Stopped,
    StorageError,
    Superseded,
    Unassigned,
    Unreachable,
)
from .model import Change, Instance, Lsn, ServiceInfo, ServiceKey, Status

__all__ = [
    "Change",
    "Config",
    "ConfigError",
    "DiskFull",
    "Drained",
    "Evicted",
    "Explanation",
    "Gone",
    "GovernError",
    "Indeterminate",
    "Instance",
    "Invalid",
    "LiveView",
    "Lsn",
    "NoController",
    "Node",
    "NodeFailed",
    "Overloaded",
    "ProtocolError",
    "Registration",
    "Registry",
    "Rejected",
    "ServiceInfo",
    "ServiceKey",
    "Status",
    "Stopped",
    "StorageError",
    "Superseded",
    "Unassigned",
    "Unreachable",
    "__version__",
    "connect",
    "open_node",
]
