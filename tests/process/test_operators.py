"""The verbs of operators: what they do to instances that others hold, what they print, and with which exit code they end."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from typing import Any

from govern.cli.operators import explanation_lines
from govern.client import Explanation, connect

from .harness import Programs, free_port, wait_until

# --- sentences --------------------------------------------------------------------------------------------------------------------------

PRESENT: Mapping[str, Any] = {
    "id": "10.0.0.5:8080",
    "status": "up",
    "in_view": True,
    "registered_at": "2026-01-31T13:02:11.123Z",
    "session": "ab12cd34",
    "who": "orders-7",
    "peer": "10.0.0.5",
    "connected": True,
    "last_heard_seconds": 0.4,
    "suspect_seconds": None,
    "ttl": 5.0,
    "ephemeral": True,
    "lease_id": [1, 2],
    "lsn": [1, 2],
}
GONE: Mapping[str, Any] = dict.fromkeys(PRESENT) | {"id": "10.0.0.5:8080", "in_view": False, "status": "gone", "registered_at": ""}


def event(kind: str, detail: str = "", who: str = "", identity: str = "10.0.0.5:8080") -> dict[str, Any]:
    return {"at": "2026-01-31T13:04:02.500Z", "kind": kind, "id": identity, "session": "ab12cd34", "who": who, "detail": detail}


def sentence(row: Mapping[str, Any], *events: Mapping[str, Any]) -> str:
    """What is said of one instance, on one line."""
    lines = explanation_lines(Explanation(instances=(row,), events=events))
    end = lines.index("") if "" in lines else len(lines)
    return " ".join(line.strip() for line in lines[:end])


def test_an_instance_in_the_view_is_explained() -> None:
    """Since when, by whom and when it was heard; and whatever is not as usual."""
    usual = "10.0.0.5:8080 is in the view: registered 2026-01-31 13:02:11 by session ab12cd34 (orders-7 at 10.0.0.5)"
    heard = ", last heard 0.4 s ago of a ttl of 5 s."
    assert sentence(PRESENT) == usual + heard
    assert sentence({**PRESENT, "suspect_seconds": 1.25, "connected": False}) == (
        usual + heard + " It has been suspect for 1.2 s: its client is silent or lost its connection."
    )
    assert sentence({**PRESENT, "connected": False}).endswith(heard + " Its client is not connected.")
    assert sentence({**PRESENT, "status": "draining"}).endswith(heard + " It is draining: it gets no new traffic.")
    assert sentence({**PRESENT, "status": "down"}).endswith(heard + " Its own program says that it is down.")
    lasting = {**PRESENT, "ephemeral": False, "connected": False, "who": "", "peer": "", "last_heard_seconds": None}
    assert sentence(lasting).endswith("by session ab12cd34. It is persistent: it stays until somebody deregisters or evicts it.")


def test_an_instance_that_is_gone_is_explained_by_what_happened_to_it_last() -> None:
    """The last removal counts, not an earlier one and not another instance's; without any the node says that it does not remember."""
    events = (
        event("evicted"),
        event("registered"),
        event("expired", "silent for 4.5 s of a ttl of 5 s"),
        event("evicted", identity="other"),
    )
    assert sentence(GONE, *events) == (
        "10.0.0.5:8080 is not in the view: it expired 2026-01-31 13:04:02, silent for 4.5 s of a ttl of 5 s."
    )
    assert sentence(GONE, event("deregistered", "its client said Goodbye", "orders-7 (10.0.0.5)")) == (
        "10.0.0.5:8080 is not in the view: it was deregistered 2026-01-31 13:04:02 by orders-7 (10.0.0.5): its client said Goodbye."
    )
    assert sentence(GONE) == "10.0.0.5:8080 is not in the view; the node does not remember why."


def test_explanations_are_narrow_and_harmless() -> None:
    """Whatever a client calls itself: at most 80 columns where there is a blank to break at, and no control character."""
    who = "a\x1b[31m b\nc " * 20
    lines = explanation_lines(Explanation(instances=({**PRESENT, "who": who},), events=(event("connected", "x y " * 50, who),)))
    assert all(len(line) <= 80 and line.isprintable() for line in lines)
    assert "\\x1b" in "".join(lines)


# --- real processes ---------------------------------------------------------------------------------------------------------------------


async def test_drain_waits_for_every_subscriber_and_names_who_is_missing(programs: Programs) -> None:
    """Exit code 0 when all have applied it, 1 with the names of those who have not in time, 1 for an instance that is not there. The
    instance is draining in any case."""
    node = await programs.node()
    async with connect(node.address) as registry, registry.register("orders", port=1) as registration:
        watch = programs.govern("watch", "orders", connect=node.address)
        await watch.wait_out("\n")
        drain = ("drain", "orders", registration.instance.id)
        assert await programs.run(*drain, connect=node.address) == (
            0,
            "orders 127.0.0.1:1 is draining: 1 subscriber has applied it, nobody is missing\n",
            "",
        )
        await watch.wait_out("draining")
        watch.send(signal.SIGSTOP)
        async with registry.register("orders", port=2) as second:
            again = ("drain", "orders", second.instance.id, "--timeout", "0.3")
            code, out, err = await programs.run(*again, connect=node.address)
            assert (code, err) == (1, "")
            assert out.splitlines()[0] == "orders 127.0.0.1:2: 0 subscribers have applied the drain; missing:"
            assert "(127.0.0.1)" in out.splitlines()[1]
            code, out, err = await programs.run(*again, "--json", connect=node.address)
            assert (code, err) == (1, "")
            drained = json.loads(out)
            assert (drained["applied"], drained["missing_count"], len(drained["missing"])) == (0, 1, 1)
            assert {str(each.status) for each in await registry.lookup("orders")} == {"draining"}
    absent = programs.govern("drain", "orders", "absent", connect=node.address)
    unheard = programs.govern("drain", "unheard", "absent", "--namespace", "prod", connect=node.address)
    for program in (absent, unheard):
        assert await program.wait_exit() == 1
        assert (program.out, len(program.err.splitlines())) == ("", 1)
        assert "absent" in program.err


async def test_an_evicted_instance_is_gone_and_explained(programs: Programs) -> None:
    """The instance is removed, its program is told, a second eviction finds nothing; `explain` says who did it, also after the fact."""
    node = await programs.node()
    owner = programs.govern("register", "orders", "--port", "1", connect=node.address)
    await wait_until(lambda: "is registered" in owner.err, "the registration")
    code, out, err = await programs.run("explain", "orders", connect=node.address)
    assert (code, err) == (0, "")
    assert out.startswith("127.0.0.1:1 is in the view: registered 20")
    assert await programs.run("evict", "orders", "127.0.0.1:1", connect=node.address) == (
        0,
        "orders 127.0.0.1:1 is evicted: its session cannot register this id again\n",
        "",
    )
    assert await owner.wait_exit() == 1
    assert "evicted" in owner.err
    again = (
        ("evict", "orders", "127.0.0.1:1"),
        ("explain", "orders", "127.0.0.1:1"),
        ("explain", "orders", "--json"),
        ("explain", "orders", "absent"),
        ("explain", "orders", "absent", "--json"),
    )
    asked = await programs.each(again, connect=node.address)
    assert [said.code for said in asked] == [1, 0, 0, 1, 1]
    assert [len(said.err.splitlines()) for said in asked] == [1, 0, 0, 1, 0]
    assert "127.0.0.1:1 is not in the view: it was evicted 20" in asked[1].out
    known = json.loads(asked[2].out)
    assert known.keys() == {"instances", "events"}
    assert [(row["id"], row["in_view"]) for row in known["instances"]] == [("127.0.0.1:1", False)]
    kinds = [each["kind"] for each in known["events"] if each["id"] == "127.0.0.1:1"]
    assert (kinds[0], kinds[-1]) == ("registered", "evicted")
    assert json.loads(asked[4].out) == {"instances": [], "events": []}


async def test_wrong_usage_and_no_registry_are_one_line_each(programs: Programs) -> None:
    """A bad name is 2, a registry that is not there 3."""
    node, nobody = await programs.node(), f"127.0.0.1:{free_port()}"
    expected = [(("drain", "orders"), node.address, 2), (("evict", "orders", "a b"), node.address, 2), (("explain",), node.address, 2)]
    expected += [((verb, "orders", "one", "--timeout", "0.5"), nobody, 3) for verb in ("drain", "evict", "explain")]
    told = await programs.each([[*arguments, "--connect", where] for arguments, where, _ in expected])
    for said, (_, _, code) in zip(told, expected, strict=True):
        assert (said.code, said.out, len(said.err.splitlines())) == (code, "", 1), said
