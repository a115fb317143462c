"""Handlers for transcripts: the cores of a node, driven by what clients say, and everything that comes out of it.

A story has clients with names of one letter each. A client `a` has the session `aaaa…`; its requests are numbered 1, 2, 3 … over all its
connections, unless a case says `request=N`. Nothing happens but what the commands say:

    node [loading] [limit=value …]      begin anew, with other limits
    connect a [attempt=N] [session=none] [from=HOST]     open a connection; with a session it says Hello
    say a Message field=value …         send one message; `Heartbeat right` has the count and digest that the node has
    raw a                               send the frame that the body says, as a Python list, instead of a message
    commit [count=N]                    the store makes durable what waits, the oldest first
    refuse                              the log takes nothing
    pass seconds=S                      time, in ticks of 100 ms: silence, suspicion, late pushes, the ends of drains
    stall seconds=S                     the same time, but the process did not run
    break a · choke a · unchoke a       the connection is gone; its socket takes nothing; it takes everything again
    restart [snapshot] [loading]        a new life: all is read from the log, or from blocks and the log
    loaded                              the node has its state
    show entries|sessions|waiting|late|drains|blocks|suspects|digest

Below each command stands all that was put out, link by link: `a < Registered lease_id=1/1 lsn=1/1 #1`, with the request id of what is an
answer. `a | …` says why a connection is closed. After each command the cores are asked to validate themselves.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from typing import Any

import attrs
import msgpack

from govern.core.blocks import unpack_state
from govern.core.brake import Brake
from govern.core.entries import unpack_entry
from govern.core.limits import Limits
from govern.core.links import Gate, Link, overdue
from govern.core.lived import STEP_US_MAX, TICK_US
from govern.core.sessions import Lease, Session, Sessions, Silent
from govern.messages import MESSAGES, Explained, Heartbeat, Hello, Message, encode, unpack_frame
from govern.model import Instance, Lsn, ServiceKey, client_fields, instance_from_public

from .rig import ORDERS, Rig, messages_of

KINDS = {kind.__name__: kind for kind in MESSAGES.values()}
Args = dict[str, list[str]]


# --- words ------------------------------------------------------------------------------------------------------------------


def lsn_of(text: str) -> Lsn:
    term, _, seq = text.partition("/")
    return Lsn(int(term), int(seq))


def service_of(text: str) -> ServiceKey:
    namespace, _, name = text.rpartition("/")
    return ServiceKey(namespace or "default", name)


def value_of(text: str) -> Any:
    """A number, a list, a mapping; or just this text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def words(value: object) -> str:
    """A value as transcripts show it."""
    if isinstance(value, Lsn):
        return f"{value.term}/{value.seq}"
    if isinstance(value, ServiceKey):
        return value.name if value.namespace == "default" else str(value)
    if isinstance(value, bytes):
        return value.decode() if len(dict.fromkeys(value)) != 1 else chr(value[0])
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(words, value))}]"
    if isinstance(value, dict):
        return " ".join(f"{name}={words(item)}" for name, item in value.items())
    return "-" if value in ("", None) else str(value)


def instance_words(public: list[Any]) -> str:
    """One instance of a view or delta: what is not as usual in it."""
    instance = instance_from_public(public)
    usual = Instance(id=instance.id, host="h", port=1, lease_id=instance.lease_id, lsn=instance.lsn, registered_at=instance.registered_at)
    different = [
        f" {field.name}={words(getattr(instance, field.name))}"
        for field in attrs.fields(Instance)
        if getattr(instance, field.name) != getattr(usual, field.name)
    ]
    return f"{instance.id}@{words(instance.lease_id)}..{words(instance.lsn)}{''.join(different)}"


USUAL = (("fresh", True), ("more", False), ("protocol", 1), ("cluster_id", "c1"), ("node_id", 7), ("version", "0"), ("heartbeat_ms", 1000))
"""What messages nearly always say is left out."""


def message_words(message: Message, request_id: int) -> str:
    """A message in one line; an explanation in several."""
    shown: list[str] = [type(message).__name__]
    for field in attrs.fields(type(message)):
        value = getattr(message, field.name)
        if value == field.default or (field.name, value) in USUAL:
            continue
        if field.name in ("instances", "changed") and not isinstance(message, Explained):
            value = [instance_words(public) for public in value]
        shown.append(f"{field.name}={f'«{value}»' if field.name == 'text' else words(value)}")
    number = f" #{request_id}" if request_id else ""
    if isinstance(message, Explained):
        return "\n".join([f"Explained{number}", *("    " + words(row) for row in (*message.instances, *message.events))])
    return " ".join(shown) + number


FIELDS: dict[str, Callable[[list[str]], Any]] = {
    "service": lambda found: service_of(found[0]),
    "prior": lambda found: lsn_of(found[0]),
    "known": lambda found: lsn_of(found[0]),
    "lease_id": lambda found: lsn_of(found[0]),
    "lsn": lambda found: lsn_of(found[0]),
    "namespace": lambda found: found[0],
    "more": lambda found: True,
    "changes": lambda found: {name: value_of(value) for name, _, value in (each.partition(":") for each in found)},
    "who": lambda found: found[0],
    "leases": lambda found: [
        [*service_of(service), instance_id, *lsn_of(lsn)] for service, instance_id, lsn in (each.split() for each in found)
    ],
}


def message_of(name: str, args: Args) -> Message:
    """The message that a case speaks of; what it does not mention has its default, and the service is `orders`."""
    kind = KINDS[name]
    values: dict[str, Any] = {}
    for field in attrs.fields(kind):
        if field.name == "instance":
            values["instance"] = _instance_fields(args)
        elif field.name == "instance_id" and "id" in args:
            values["instance_id"] = args.pop("id")[0]
        elif field.name in args:
            found = args.pop(field.name)
            values[field.name] = FIELDS[field.name](found) if field.name in FIELDS else value_of(found[0])
        elif field.name == "service":
            values["service"] = ORDERS
        elif field.name == "more":
            values["more"] = False
    assert not args, f"a {name} has no {', '.join(args)}"
    return kind(**values)


def _instance_fields(args: Args) -> list[Any]:
    """The fields of an instance as a client sends them, valid or not."""
    names = [field.name for field in attrs.fields(Instance) if field.name in args]
    given: dict[str, Any] = {name: value_of(args.pop(name)[0]) for name in names}
    numbers = {2: given.pop("port", 1), 4: float(given.pop("weight", 1)), 10: round(given.pop("ttl", 5) * 1000)}
    fields = client_fields(Instance(**{"id": "i1", "host": "h", "port": 1, **given}))
    return [numbers.get(place, value) for place, value in enumerate(fields)]


# --- the node ---------------------------------------------------------------------------------------------------------------


class NodeStory:
    """The cores of one node."""

    def __init__(self) -> None:
        self._limits = Limits()
        self._links: dict[str, Link] = {}
        self._requests: dict[str, int] = {}
        self._attempts: dict[str, int] = {}
        self.rig = Rig()

    def __call__(self, command: str, args: Args, body: str) -> str:
        act = getattr(self, f"_{command}")
        said = act(args, body)
        lines = [] if said is None else said
        lines += self._put_out()
        self.rig.validate()
        self.rig.gate.validate()
        self.rig.history.validate()
        return "\n".join(lines)

    def _put_out(self) -> list[str]:
        """Everything that came out, link by link; closes what is to be closed."""
        lines: list[str] = []
        while True:
            for name, link in self._links.items():
                if link.unsent:
                    continue
                data = b"".join(link.out)
                link.out.clear()
                lines += [f"{name} < {line}" for line in (message_words(*found) for found in messages_of(data))]
            self.rig.dispatch.drains.answered.clear()
            closing = list(self.rig.dispatch.to_close)
            if not closing:
                return lines
            for link in closing:
                (name,) = [name for name, known in self._links.items() if known is link]
                lines.append(f"{name} | {link.closing}")
                del self._links[name]
                self.rig.dispatch.closed(link)

    # --- commands -----------------------------------------------------------------------------------------------------------

    def _node(self, args: Args, body: str) -> None:
        loading = args.pop("loading", None) is not None
        self._limits = Limits(**{name: value_of(value[0]) for name, value in args.items()})
        self.rig = Rig(self._limits, loaded=not loading)

    def _connect(self, args: Args, body: str) -> None:
        name, *_ = args
        self._attempts[name] = self._attempts.get(name, 0) + 1
        attempt = int(args["attempt"][0]) if "attempt" in args else self._attempts[name]
        link = Link(args.get("from", ["10.0.0.1"])[0], "10.0.0.9", self.rig.sessions.now_us)
        former = self._links.pop(name, None)
        if former is not None:
            self._links[f"{name}'"] = former  # the connection of before, until it is closed
        self._links[name] = link
        self.rig.gate.admit(link)
        if "silent" in args:
            return
        session_id = b"" if args.get("session") == ["none"] else name.encode() * 16
        self._give(name, Hello(1, args.get("cluster", [""])[0], name, "", session_id, attempt), None)

    def _say(self, args: Args, body: str) -> None:
        name, kind = list(args)[:2]
        del args[name], args[kind]
        request = args.pop("request", None)
        if kind == "Heartbeat" and args.pop("right", None) is not None:
            session = self._session(name)
            self._give(name, Heartbeat(session.count, session.digest), request)
        else:
            self._give(name, message_of(kind, args), request)

    def _give(self, name: str, message: Message, request: list[str] | None) -> None:
        number = self._requests.get(name, 0) + 1 if request is None else int(request[0])
        self._requests[name] = max(number, self._requests.get(name, 0))
        self.rig.dispatch.receive(self._links[name], unpack_frame(encode(message, number)[4:]))

    def _raw(self, args: Args, body: str) -> None:
        (name,) = args
        frame = ast.literal_eval(body)
        self.rig.dispatch.receive(self._links[name], unpack_frame(msgpack.packb(frame)))

    def _commit(self, args: Args, body: str) -> list[str]:
        before = len(self.rig.log)
        self.rig.commit(int(args["count"][0]) if "count" in args else None)
        return [
            f"# {term}/{seq} {type(op).__name__} {words(op.service)} {op.instance_id}" for _, term, seq, op in self.rig.log[before:]
        ] or ["# nothing"]

    def _refuse(self, args: Args, body: str) -> None:
        self.rig.refuse()

    def _pass(self, args: Args, body: str) -> None:
        left_us = round(float(args["seconds"][0]) * 1e6)
        while left_us:
            self._advance(min(left_us, TICK_US))
            left_us -= min(left_us, TICK_US)

    def _stall(self, args: Args, body: str) -> None:
        self._advance(round(float(args["seconds"][0]) * 1e6))

    def _advance(self, us: int) -> None:
        rig = self.rig
        rig.sessions.now_us += min(us, STEP_US_MAX)
        rig.dispatch.now_us += us
        rig.dispatch.wall_ms += us // 1000
        rig.history.wall_ms = rig.dispatch.wall_ms
        rig.dispatch.propose_expiries(rig.sessions.due(100))
        if rig.suspects.next_us is not None and rig.suspects.next_us <= rig.dispatch.now_us:
            rig.suspects.wake(rig.dispatch.now_us)
        rig.dispatch.drains.check(rig.dispatch.now_us)
        for _ in (*rig.subscriptions.publish_hints(), *rig.subscriptions.push_late(rig.dispatch.now_us)):
            pass
        for link in self._links.values():
            reason = overdue(link, rig.sessions.now_us, self._limits)
            if reason is not None:
                rig.dispatch.refuse_link(link, "timeout", reason)

    def _break(self, args: Args, body: str) -> None:
        (name,) = args
        self.rig.dispatch.closed(self._links.pop(name))

    def _choke(self, args: Args, body: str) -> None:
        (name,) = args
        self._links[name].unsent = b"x"

    def _unchoke(self, args: Args, body: str) -> None:
        (name,) = args
        self._links[name].unsent = b""
        for _ in self.rig.subscriptions.push_late(self.rig.dispatch.now_us):
            pass

    def _restart(self, args: Args, body: str) -> None:
        former = self.rig
        self.rig = Rig(self._limits, loaded=False)
        self.rig.term, self.rig.log = former.term + 1, former.log
        self.rig.dispatch.now_us = former.dispatch.now_us
        self._links.clear()
        if "snapshot" in args:
            for number in former.shard.slot_numbers():
                self.rig.shard.load_block(former.shard.block(number))
        for record in former.log:
            self.rig.shard.apply(*record)
        if "loading" not in args:
            self._loaded({}, "")

    def _loaded(self, args: Args, body: str) -> None:
        self.rig.shard.loaded = True
        self.rig.sessions.grant_grace()
        self.rig.dispatch.note_loaded()
        self.rig.dispatch.release_parked(1000)

    # --- looking ------------------------------------------------------------------------------------------------------------

    def _session(self, name: str) -> Session:
        session = self.rig.sessions.get(name.encode() * 16)
        assert session is not None, f"{name} has no session"
        return session

    def _show(self, args: Args, body: str) -> list[str]:
        (what,) = args
        lines: list[str] = list(getattr(self, f"_show_{what}")())
        return lines or ["nothing"]

    def _show_entries(self) -> Iterable[str]:
        for namespace, name, _, _ in self.rig.shard.service_rows(""):
            key = ServiceKey(namespace, name)
            for instance_id, entry in self.rig.shard.entries(key).items():
                parts = unpack_entry(entry)
                lasting = "" if parts.ephemeral else " persistent"
                who = f"{words(parts.session_id)} #{parts.request_id}"
                yield f"{words(key)} {instance_id} of {who}: {words(parts.lease_id)}..{words(parts.lsn)}{lasting}"

    def _show_sessions(self) -> Iterable[str]:
        for session in self.rig.sessions:
            leases = [f"{words(service)} {instance_id} {words(lease.lease_id)}" for service, instance_id, lease in session.leases()]
            connected = "connected" if session.connection is not None else "away"
            silent = (self.rig.sessions.now_us - session.stamp_us) / 1e6
            yield f"{words(session.session_id)}: attempt {session.attempt}, {connected}, silent for {silent:g} s, holds {words(leases)}"

    def _show_waiting(self) -> Iterable[str]:
        for write in self.rig.dispatch.writes:
            yield f"{type(write.op).__name__} {words(write.op.service)} {write.op.instance_id}"
        if self.rig.dispatch.parked:
            yield f"{len(self.rig.dispatch.parked)} parked"

    def _show_late(self) -> Iterable[str]:
        for name, link in self._links.items():
            if link.late:
                yield f"{name}: late {words(list(link.late))} astray {words(list(link.astray))}"

    def _show_drains(self) -> Iterable[str]:
        for barrier in self.rig.dispatch.drains._barriers():
            missing = words(list(barrier.missing.values()))
            yield f"{words(barrier.service)} {words(barrier.lsn)}: applied {barrier.applied}, missing {missing}"

    def _show_blocks(self) -> Iterable[str]:
        for number in self.rig.shard.slot_numbers():
            block = self.rig.shard.block(number)
            rows, barred = unpack_state(block.state)
            yield f"slot {number} at {words(block.lsn)}"
            for namespace, name, term, seq, entries in rows:
                yield f"    {namespace}/{name} at {term}/{seq}: {words(list(entries))}"
            for service, instance_id, session_id in barred:
                yield f"    barred from {service} {instance_id}: {words(session_id)}"

    def _show_suspects(self) -> Iterable[str]:
        for namespace, name, _, _ in self.rig.shard.service_rows(""):
            key = ServiceKey(namespace, name)
            for instance_id in self.rig.suspects.of(key):
                yield f"{words(key)} {instance_id} for {self.rig.suspects.seconds(key, instance_id):.1f} s"

    def _show_digest(self) -> Iterable[str]:
        for session in self.rig.sessions:
            yield f"{words(session.session_id)}: {session.count} {session.digest:016x}"


# --- others -----------------------------------------------------------------------------------------------------------------


class BrakeStory:
    """The brake over sessions that beat every second until they are told to stop; what it lets pass is removed at once."""

    def __init__(self) -> None:
        self.sessions = Sessions()
        self.brake = Brake()
        self._alive: dict[int, bool] = {}

    def __call__(self, command: str, args: Args, body: str) -> str:
        if command == "sessions":
            ttl_ms = round(float(args["ttl"][0]) * 1000)
            for number in self._numbers(args):
                self.sessions.grant(self._id(number), ORDERS, f"i{number}", Lease(Lsn(1, number + 1), ttl_ms))
                self._alive[number] = True
        elif command in ("silence", "wake"):
            self._alive.update(dict.fromkeys(self._numbers(args), command == "wake"))
        else:
            assert command == "pass", command
            return "\n".join(self._pass(round(float(args["seconds"][0]) * 10)))
        return ""

    @staticmethod
    def _numbers(args: Args) -> range:
        first, _, last = args["numbers"][0].partition("-")
        return range(int(first), int(last or first) + 1)

    @staticmethod
    def _id(number: int) -> bytes:
        return number.to_bytes(16, "big")

    def _pass(self, ticks: int) -> Iterable[str]:
        """A line for every second in which something changed."""
        removed = 0
        shown = ""
        for tick in range(1, ticks + 1):
            self.sessions.now_us += TICK_US
            for number, alive in self._alive.items():
                session = self.sessions.get(self._id(number))
                if alive and session is not None:
                    session.stamp_us = self.sessions.now_us
            named = self.sessions.due(2048)
            passing = self.brake.judge(named, self.sessions.dying(5_000_000), self.sessions.holders, self.sessions.now_us)
            self.brake.validate()
            removed += self._remove(passing)
            if tick % 10 == 0 or tick == ticks:
                line = f"removed {removed}, holders {self.sessions.holders}; {self.brake!r}"
                if line != shown:
                    yield f"{self.sessions.now_us / 1e6:5.1f} s: {line}"
                shown = line

    def _remove(self, passing: list[Silent]) -> int:
        ops = self.sessions.expiries(passing, 1000)
        for silent in passing:
            for service, instance_id, _ in list(silent.session.leases()) if silent.final else ():
                self.sessions.end(silent.session.session_id, service, instance_id)
        return len(ops)


class GateStory:
    """Strangers at the gate, and how long each connection is borne."""

    def __init__(self) -> None:
        self._limits = Limits()
        self._gate = Gate(self._limits)
        self._links: dict[str, Link] = {}
        self._now_us = 0

    def __call__(self, command: str, args: Args, body: str) -> str:
        lines: list[str] = []
        getattr(self, f"_{command}")(args, lines)
        for name, link in list(self._links.items()):
            reason = overdue(link, self._now_us, self._limits)
            if reason is not None:
                lines.append(f"{name} | {reason}")
                self._gate.forget(link)
                del self._links[name]
        self._gate.validate()
        return "\n".join([*lines, f"{len(self._gate)} strangers{', saturated' if self._gate.is_saturated(self._now_us) else ''}"])

    def _limit(self, args: Args, lines: list[str]) -> None:
        self._limits = Limits(**{name: value_of(value[0]) for name, value in args.items()})
        self._gate = Gate(self._limits)

    def _arrive(self, args: Args, lines: list[str]) -> None:
        host = args.pop("from")[0]
        for name in args:
            link = self._links[name] = Link(host, "10.0.0.9", self._now_us)
            victim = self._gate.admit(link)
            for other, known in list(self._links.items()):
                if known is victim:
                    lines.append(f"{other} | has to go for {name}")
                    del self._links[other]

    def _greet(self, args: Args, lines: list[str]) -> None:
        for name in args:
            self._links[name].greeted = True
            self._gate.forget(self._links[name])

    def _leave(self, args: Args, lines: list[str]) -> None:
        for name in args:
            self._gate.forget(self._links.pop(name))

    def _hear(self, args: Args, lines: list[str]) -> None:
        for name in args:
            self._links[name].heard_us = self._now_us
            self._links[name].partial_since_us = None

    def _half(self, args: Args, lines: list[str]) -> None:
        for name in args:
            self._links[name].partial_since_us = self._now_us

    def _choke(self, args: Args, lines: list[str]) -> None:
        size = int(args.pop("bytes")[0])
        for name in args:
            self._links[name].unsent = b"x" * size
            self._links[name].stalled_since_us = self._now_us

    def _full(self, args: Args, lines: list[str]) -> None:
        self._gate.note_full_accept(self._now_us)

    def _pass(self, args: Args, lines: list[str]) -> None:
        self._now_us += round(float(args["seconds"][0]) * 1e6)


class BlockStory:
    """What a block of a snapshot may say: the body is a Python literal, packed and read again."""

    def __call__(self, command: str, args: Args, body: str) -> str:
        assert command == "read", command
        try:
            rows, barred = unpack_state(msgpack.packb(ast.literal_eval(body)))
        except ValueError as error:
            return f"refused: {error}"
        return f"services {words([[*row[:4], list(row[4])] for row in rows])}, barred {words(barred)}"
