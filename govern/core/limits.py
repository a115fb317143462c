"""The bounds of a node, in one place: nothing in a node grows without one of these.

Each is a configuration key of the same name; `config.py` says what raising it costs.
"""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class Limits:
    """Counts, bytes and seconds. The defaults suit one node with a few thousand clients; tests make them tiny."""

    connections_max: int = 20_000
    handshakes_max: int = 256  # connections that have not said Hello: the oldest is closed for a new one
    handshakes_per_host_max: int = 64
    handshake_seconds_max: float = 5.0
    partial_frame_seconds_max: float = 10.0
    idle_seconds_max: float = 15.0
    send_stall_seconds_max: float = 60.0
    unsent_bytes_max: int = 256 * 1024  # above it a connection is not read any more until it took some
    writes_pending_max: int = 10_000
    requests_parked_max: int = 10_000  # while the node is loading
    instances_max: int = 2_000_000
    instances_per_service_max: int = 10_000
    instances_per_session_max: int = 10_000
    sessions_max: int = 100_000
    subscriptions_per_connection_max: int = 1_000
    history_ops_max: int = 65_536  # recent operations kept in memory for resuming subscribers
    delta_ops_max: int = 512  # a reader that is further behind gets the whole view
    push_interval_seconds: float = 0.02
