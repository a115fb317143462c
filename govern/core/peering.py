"""Peering: which links this node keeps to the others. Whom to dial now, which of two links to one node stays, who is let in, who is silent.

Every pair of nodes shares one link. Either may dial: the larger id does so at once, the smaller one when it has had no link for a while,
because the larger one may not know its address. So two links may be on their way at once, each end seeing them in another order, and
both ends must keep the same one. They do not compare links; one of them chooses. Who was dialled says Hello as soon as a stream is there,
who dialled answers with its own Hello if it wants to stay. The node with the larger id chooses when it has the Hello of the other, and its
next word on that link behind its own Hello says so: a refusal, or anything else. For the larger id the link is up with its choice, for the
smaller one with that next word.

    nodes 1 and 2 dial each other; links p and q
    2 gets the Hello on q first: q is up, and a Ping tells node 1
    2 gets the Hello on p: refused, this life of node 1 has a link
    1 gets the Hellos of 2 in any order and waits; the Ping on q brings q up, the refusal ends p

P1  At most one link to a node is up, and a link is up at most once.
P2  Only the larger id chooses. It keeps what it has unless the Hello is of another life: a later boot of the disk, or another disk.
P3  The smaller id follows: what the larger one chose last replaces what was up before.
P4  A life that is not the last one of its disk is refused, and its link ends: one with a lower boot number than the metadata or a former
    link has told, and both of two lives that bear one number. A disk that was rolled back or copied is not the one that it was.
P5  A known node without a link is dialled again, for ever: after a pause with full jitter that doubles up to a second.
P6  Nobody is let in who is of another cluster, speaks no common protocol, bears this node's id, or is not the node that was dialled.
P7  Nothing that a link brings is acted on before both sides have said that they belong to one cluster. Who found its cluster after its
    Hello says so on every link that it has (B3); who turns out to be of another one has no link from then on.
P8  Silence is lived silence: a node that was stalled itself does not take that for the silence of others.
P9  A node that dialled another one and was refused because of its own life has no links any more and makes none: it is out, like one whose
    disk was lost. Who came in by itself is not believed that, for it may be anybody; all others are asked at once instead.

Known limit: two nodes that bear one id and live on two disks take the link from each other, every few seconds. The log says so.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator, Mapping
from typing import Final, Protocol

import attrs

from ..messages import Message
from ..model import NODE_ID_MAX
from ..peer_messages import LIFE_REFUSALS, PEER_PROTOCOL_VERSION_MIN, Member, PeerHello, PeerRefused

PATIENCE_SECONDS: Final = 2.0
"""The smaller id dials after so long without a link: by then a larger one that knows the address has come, unless it cannot."""
BACKOFF_SECONDS_MIN: Final = 0.1
BACKOFF_SECONDS_MAX: Final = 1.0
"""A node that comes back is found within a second; a dial a second costs nothing."""
STEADY_SECONDS: Final = 2.0
"""A link that was up for so long was a good one: the pauses start small again."""
PING_SECONDS: Final = 0.5
"""Whoever has said nothing for so long says Ping."""
TICK_SECONDS: Final = 0.2
SILENT_TICKS_MAX: Final = 10
"""Two seconds of silence, in ticks of this node: four Pings did not come, nobody is there. With less a node that stalls looks dead."""
STRANGERS_MAX: Final = 1024
"""Links to nodes that are in no table yet. Only a few join at a time, but a table may be late."""
COMPLAINT_SECONDS: Final = 60.0
COMPLAINTS_MAX: Final = 256


class Chance(Protocol):
    """The part of the door to chance that is needed here."""

    def uniform(self, a: float, b: float) -> float:
        """Uniform between the two."""


class Phase(enum.Enum):
    """How far a link has come."""

    GREETING = "waits for the Hello of the other side"
    OFFERED = "waits for the choice of the larger id"
    UP = "is the link of the two nodes"
    OVER = "was given up"


@attrs.define(eq=False)
class PeerLink:
    """One link, from the moment at which it is dialled or accepted. `node_id` is known from the start on the side that dialled."""

    node_id: int | None
    address: str
    """Where it was dialled; empty on the other side."""
    phase: Phase = Phase.GREETING
    hello: PeerHello | None = None
    """What the other side said of itself; its cluster is the newest that it spoke of."""
    up_at: float = math.inf

    def __repr__(self) -> str:
        where = f" at {self.address}" if self.address else ""
        return f"<PeerLink to node {self.node_id or 'unknown'}{where}: {self.phase.name.lower()}>"

    @property
    def dialled(self) -> bool:
        return bool(self.address)


@attrs.frozen
class Step:
    """What a message of the handshake leads to; nothing at all is also possible."""

    refusal: PeerRefused | None = None
    """Send it and close the link."""
    failure: str = ""
    """Close the link; why, for people."""
    up: bool = False
    """The link is up now."""
    replaced: PeerLink | None = None
    """It was up until now, and is to be closed."""


@attrs.define(eq=False)
class _Peer:
    """What is known of one other node."""

    address: str = ""  # one, or several separated by commas; empty: it is not dialled
    up: PeerLink | None = None
    last: PeerHello | None = None  # of the last link that was up
    is_double: bool = False  # there were two lives with the boot number of `last`
    dial: PeerLink | None = None  # under way, not yet up
    failures: int = 0  # in a row
    retry_at: float = 0.0
    alone_since: float = 0.0


class Peering:
    """The links of one node; times are seconds of any clock that does not go back."""

    def __init__(self, random: Chance) -> None:
        self.expelled = ""
        """Why this node has no part in its cluster any more, for people (P9)."""
        self._random = random
        self._peers: dict[int, _Peer] = {}
        self._boots: Mapping[Member, int] = {}

    def __repr__(self) -> str:
        return f"<Peering up={sorted(self.linked())} known={sorted(self._peers)}>"

    # --- whom to dial -------------------------------------------------------------------------------------------------------

    def set_peers(self, me: int, addresses: Mapping[int, str], now: float) -> None:
        """Keep links to these nodes; oneself and those without an address are left out. Several addresses of one node, separated by commas,
        are tried in turn. A node that is not among them is dialled no more, and a link that it has stays. One whose address is new is
        dialled there at once."""
        wanted = {node_id: address for node_id, address in addresses.items() if address and node_id != me}
        for node_id in list(self._peers):
            if node_id not in wanted:
                self._peers[node_id].address = ""
                self._forget_unknown(node_id)
        for node_id, address in wanted.items():
            peer = self._peers.get(node_id)
            if peer is None:
                peer = self._peers[node_id] = _Peer(alone_since=now)
            if peer.address != address:
                peer.address, peer.failures, peer.retry_at = address, 0, now

    def take_due(self, me: int, now: float) -> list[PeerLink]:
        """The links to dial now. Each is under way until it is up or `end`."""
        due: list[PeerLink] = []
        if self.expelled:
            return due
        for node_id, peer in self._peers.items():
            if self._due_at(me, node_id, peer) <= now:
                addresses = peer.address.split(",")
                peer.dial = PeerLink(node_id, addresses[peer.failures % len(addresses)])
                due.append(peer.dial)
        return due

    def next_due(self, me: int) -> float:
        """When there is somebody to dial, `math.inf` if never."""
        if self.expelled:
            return math.inf
        return min((self._due_at(me, node_id, peer) for node_id, peer in self._peers.items()), default=math.inf)

    @staticmethod
    def _due_at(me: int, node_id: int, peer: _Peer) -> float:
        if peer.up is not None or peer.dial is not None or not peer.address:
            return math.inf
        return peer.retry_at if me > node_id else max(peer.retry_at, peer.alone_since + PATIENCE_SECONDS)

    # --- which link stays ---------------------------------------------------------------------------------------------------

    def greet(self, link: PeerLink, message: Message, mine: PeerHello, now: float) -> Step:
        """A message on a link that is not up. When the link is up afterwards and this was no Hello, it is the first word of the other side
        and may say something. The side that dialled says its own Hello now, if the step is no refusal and no failure."""
        if isinstance(message, PeerRefused):
            self.refused(link, message)
            return Step(failure=f"the other side refused it ({message.code}): {message.text}")
        if link.phase is Phase.OFFERED and not isinstance(message, PeerHello):
            return self._take_choice(link, now)
        if link.phase is not Phase.GREETING or not isinstance(message, PeerHello):
            return Step(failure=f"it broke the protocol: {type(message).__name__} during the handshake")
        refusal = judge(mine, message, link.node_id) or self._judge_boot(message) or self._judge_life(mine, message)
        if refusal is not None:
            return Step(refusal)
        link.node_id, link.hello = message.node_id, message
        if self.chooses(mine, message):
            return self._bring_up(link, now)
        link.phase = Phase.OFFERED
        return Step()

    @staticmethod
    def chooses(mine: PeerHello, other: PeerHello) -> bool:
        """Whether this node chooses the link (P2)."""
        return mine.node_id > other.node_id

    def told(self, link: PeerLink, cluster_id: bytes) -> str | None:
        """The other side of a link that is up has found its cluster (P7). Why that cannot be, when it belonged to another one before."""
        assert link.hello is not None, "a link that is up was greeted"
        if is_known(link.hello.cluster_id) and link.hello.cluster_id != cluster_id:
            return f"it belonged to cluster {link.hello.cluster_id.hex()}, and now says {cluster_id.hex()}"
        link.hello = attrs.evolve(link.hello, cluster_id=cluster_id)
        return None

    def _judge_boot(self, other: PeerHello) -> PeerRefused | None:
        """Whether this is not the last life of its disk (P4)."""
        node_id, peer = other.node_id, self._peers.get(other.node_id)
        last = None if peer is None or peer.last is None or peer.last.disk_id != other.disk_id else peer.last
        known = max(self._boots.get(Member(node_id, other.disk_id), 0), 0 if last is None else last.boot_no)
        if other.boot_no < known:
            return PeerRefused(
                "rolled_back",
                f"node {node_id} says that this is its start number {other.boot_no}, but number {known} was here before: its data "
                f"directory was rolled back; start it with an empty one, then: govern members remove {node_id} and add {node_id} for a "
                f"candidate, govern reset {node_id} for what was in its slots",
            )
        if peer is not None and last is not None and other.boot_no == last.boot_no and (peer.is_double or other.life != last.life):
            peer.is_double = True
            return PeerRefused(
                "cloned",
                f"two processes call themselves start number {other.boot_no} of node {node_id}: its data directory was copied or rolled "
                f"back; stop both, start the right one again, and the other one only with an empty directory and an id of its own",
            )
        return None

    def _judge_life(self, mine: PeerHello, other: PeerHello) -> PeerRefused | None:
        peer = self._peers.get(other.node_id)
        if peer is None:
            if sum(not known.address for known in self._peers.values()) >= STRANGERS_MAX:
                return PeerRefused("overloaded", f"{STRANGERS_MAX} nodes that are in no table have links already")
            return None
        if peer.up is None:
            return None
        assert peer.up.hello is not None, "a link that is up was greeted"
        now_up = peer.up.hello
        if now_up.disk_id != other.disk_id:
            return None
        if other.boot_no == now_up.boot_no and self.chooses(mine, other):  # P2
            return PeerRefused("duplicate", f"node {other.node_id} has a link already")
        return None

    def _take_choice(self, link: PeerLink, now: float) -> Step:
        """The larger id said something behind its Hello: this link is the one (P3), unless a later life of it is here already."""
        assert link.node_id is not None, "a link that was offered was greeted"
        assert link.hello is not None, "a link that was offered was greeted"
        if self._judge_boot(link.hello) is not None:
            return Step(failure="another life of that node has come meanwhile")  # P4
        return self._bring_up(link, now)

    def _bring_up(self, link: PeerLink, now: float) -> Step:
        assert link.node_id is not None, "only who was greeted can be up"
        peer = self._peers.setdefault(link.node_id, _Peer())
        peer.last, peer.is_double = link.hello, False
        replaced = peer.up
        if replaced is not None:
            replaced.phase = Phase.OVER
        if peer.dial is link:
            peer.dial = None
        peer.up, link.phase, link.up_at = link, Phase.UP, now
        return Step(up=True, replaced=replaced)

    def end(self, link: PeerLink, now: float) -> bool:
        """A link or a dial is over, in whatever way. True when the node has no link with that: it was up and nothing replaced it. A
        second call for the same link does nothing."""
        peer = None if link.node_id is None else self._peers.get(link.node_id)
        was_up = link.phase is Phase.UP
        link.phase = Phase.OVER
        if peer is None or link.node_id is None or link not in (peer.up, peer.dial):
            return False
        if peer.up is link:
            peer.up, peer.alone_since = None, now
            if now - link.up_at >= STEADY_SECONDS:
                peer.failures = 0
        if peer.dial is link:
            peer.dial = None
        longest = min(BACKOFF_SECONDS_MAX, math.ldexp(BACKOFF_SECONDS_MIN, min(peer.failures, 10)))
        peer.failures += 1
        peer.retry_at = now + self._random.uniform(0.0, longest)  # P5
        self._forget_unknown(link.node_id)
        return was_up

    def _forget_unknown(self, node_id: int) -> None:
        peer = self._peers[node_id]
        if not peer.address and peer.up is None and peer.dial is None:
            del self._peers[node_id]

    # --- lives --------------------------------------------------------------------------------------------------------------

    def set_boots(self, boots: Mapping[Member, int]) -> None:
        """The highest boot number of each disk, as the metadata has it. Links may be `outlived` now."""
        self._boots = boots

    def refused(self, link: PeerLink, message: PeerRefused) -> None:
        """The other side refused a link, in its handshake or behind it. When that is because of the life of this node, it is out (P9)."""
        if message.code in LIFE_REFUSALS and link.dialled:
            self.expelled = message.text
        elif message.code in LIFE_REFUSALS:
            for peer in self._peers.values():
                peer.alone_since = -math.inf

    def outlived(self) -> list[PeerLink]:
        """Links that are up and whose other side would not be let in any more (P4); all of them, when this node itself is out (P9)."""
        return [
            link for _, link in self._links_up() if self.expelled or (link.hello is not None and self._judge_boot(link.hello) is not None)
        ]

    # --- what is up ---------------------------------------------------------------------------------------------------------

    def linked(self) -> dict[int, PeerHello]:
        """The nodes with a link that is up, and what each said of itself."""
        return {node_id: link.hello for node_id, link in self._links_up() if link.hello is not None}

    def _links_up(self) -> Iterator[tuple[int, PeerLink]]:
        for node_id, peer in self._peers.items():
            if peer.up is not None:
                yield node_id, peer.up

    def validate(self) -> None:
        """Assert the invariants."""
        for node_id, peer in self._peers.items():
            for link in (peer.up, peer.dial):
                assert link is None or link.node_id == node_id
            assert peer.up is None or (peer.up.phase is Phase.UP and peer.up.hello is not None)  # P1
            assert peer.dial is None or peer.dial.phase in (Phase.GREETING, Phase.OFFERED)
            assert peer.up is not None or peer.dial is not None or peer.address  # nobody is kept for nothing


# --- who is let in ----------------------------------------------------------------------------------------------------------


def judge(mine: PeerHello, other: PeerHello, expected: int | None) -> PeerRefused | None:
    """Why this node does not talk to the one that said this Hello, or None (P6). `expected` is the node that was dialled."""
    if other.protocol < PEER_PROTOCOL_VERSION_MIN:
        return PeerRefused("protocol", f"protocol {other.protocol} is too old, {PEER_PROTOCOL_VERSION_MIN} is the oldest spoken here")
    if not 1 <= other.node_id <= NODE_ID_MAX:
        return PeerRefused("identity", f"{other.node_id} is no node id")
    if other.node_id == mine.node_id:
        return PeerRefused("identity", f"both sides are node {mine.node_id}: each node needs its own id, and its own address in `peers`")
    if expected is not None and other.node_id != expected:
        return PeerRefused("identity", f"node {expected} was dialled, node {other.node_id} answered: check the addresses in `peers`")
    return judge_cluster(mine, other)


def judge_cluster(mine: PeerHello, other: PeerHello) -> PeerRefused | None:
    """Why the two have nothing to say to each other, or None as long as they may belong to one cluster."""
    if not _is_foreign(mine, other):
        return None
    return PeerRefused(
        "cluster",
        f"node {mine.node_id} belongs to cluster {mine.cluster_id.hex()}, node {other.node_id} to another cluster, "
        f"{other.cluster_id.hex()}: check `peers`; whichever is in the wrong one needs an empty data directory",
    )


def is_of_one_cluster(mine: PeerHello, other: PeerHello) -> bool:
    """Whether both belong to a cluster, and to the same one (P7)."""
    return is_known(mine.cluster_id) and mine.cluster_id == other.cluster_id


def _is_foreign(mine: PeerHello, other: PeerHello) -> bool:
    """Of another cluster; a node that belongs to none yet is not."""
    return is_known(mine.cluster_id) and is_known(other.cluster_id) and mine.cluster_id != other.cluster_id


def is_known(cluster_id: bytes) -> bool:
    """Whether that is a cluster, and not the word for none."""
    return any(cluster_id)


# --- silence and complaints -------------------------------------------------------------------------------------------------


class Silence:
    """How long the other side of one link has been silent, in ticks: a node that was stalled did not tick meanwhile (P8)."""

    def __init__(self) -> None:
        self.ticks = 0

    def heard(self) -> None:
        """Something came."""
        self.ticks = 0

    def tick(self) -> bool:
        """Called every `TICK_SECONDS`; True when nobody is there any more."""
        self.ticks += 1
        return self.ticks >= SILENT_TICKS_MAX


class Complaints:
    """What the log was told lately, so that it is told once a minute and not once a second. It remembers `COMPLAINTS_MAX` things and takes
    no more within a minute, so strangers cannot fill the log by inventing causes."""

    def __init__(self) -> None:
        self._said: dict[tuple[str, str], float] = {}  # oldest first

    def is_new(self, who: str, cause: str, now: float) -> bool:
        """Whether this is worth a line; it counts as said then."""
        for key, said_at in list(self._said.items()):
            if now - said_at < COMPLAINT_SECONDS:
                break
            del self._said[key]
        if (who, cause) in self._said or len(self._said) >= COMPLAINTS_MAX:
            return False
        self._said[who, cause] = now
        return True
