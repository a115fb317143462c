"""The model: what is valid, what is refused, and that packing loses nothing."""

from __future__ import annotations

import datetime
import math
import re
import string
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs
import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from govern.errors import Invalid
from govern.model import (
    CLIENT_PART_FIELDS,
    METADATA_BYTES_MAX,
    METADATA_KEYS_MAX,
    Change,
    Instance,
    Lsn,
    ServiceKey,
    Status,
    check_host,
    check_instance,
    check_metadata,
    check_name,
    check_namespace,
    check_port,
    check_text,
    check_ttl,
    check_weight,
    client_fields,
    format_time_ms,
    instance_from_public,
    join_address,
    pack_client_part,
    pack_public,
    pack_server_part,
    split_address,
)

LETTERS = string.ascii_letters + string.digits
numbers = st.integers(0, 2**64 - 1)
lsns = st.builds(Lsn, numbers, numbers)
names = st.text(LETTERS + "._:/@{}-", min_size=1, max_size=255)
texts = st.text(LETTERS + "._:/@+ -", max_size=64)
hosts = st.one_of(
    st.text(LETTERS + "._-", min_size=1, max_size=255),
    st.ip_addresses().map(str),
)
metadata = st.dictionaries(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=8), st.text(st.characters(codec="utf-8"), max_size=8), max_size=8
)
instances = st.builds(
    Instance,
    id=names,
    host=hosts,
    port=st.integers(1, 65535),
    protocol=texts,
    weight=st.one_of(st.floats(0, 10_000), st.integers(0, 10_000)),
    zone=texts,
    version=texts,
    metadata=metadata,
    status=st.sampled_from([Status.UP, Status.DRAINING, Status.DOWN]),
    ephemeral=st.booleans(),
    ttl=st.integers(1000, 3_600_000).map(lambda milliseconds: milliseconds / 1000),
)
anything = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.sampled_from(list(Status))),
    lambda inner: st.one_of(st.lists(inner), st.tuples(inner), st.dictionaries(st.one_of(st.text(), st.integers(), st.none()), inner)),
    max_leaves=5,
)
CHECKS: list[Callable[[Any], object]] = [
    check_name,
    check_namespace,
    check_host,
    check_port,
    lambda value: check_text(value, "zone"),
    check_weight,
    check_metadata,
    check_ttl,
]


class Text(str):
    """A str that is not quite one: it could lie about itself."""


class Pairs(Mapping[str, str]):
    """A mapping that is no dict, as a user may pass it."""

    def __init__(self, **pairs: str) -> None:
        self.pairs = pairs

    def __getitem__(self, key: str) -> str:
        return self.pairs[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)


# --- checks -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("check", "accepted", "refused"),
    [
        (
            check_name,
            ["a", "a" * 255, "A-Za-z0-9._:/@{}", "10.0.0.1:8080", "[::1]:80".strip("[]").replace("]", "")],
            ["", "a" * 256, "a b", "ä", "a\n", "\na", "a\0", "[a]", "a,b", None, 1, b"a", ["a"], Text("a")],
        ),
        (check_namespace, ["default", "a" * 64, "a.b_c-1"], ["", "a" * 65, "a/b", "a:b", "a\n", "{a}", None, 1, b"a", Text("a")]),
        (
            check_host,
            ["localhost", "10.0.0.1", "::1", "fe80::1%eth0", "a" * 255],
            ["", "a" * 256, "a b", "a/b", "[::1]", "a\n", None, 1, b"a", Text("a")],
        ),
        (check_port, [1, 65535], [0, 65536, -1, 1.0, True, "80", None, math.nan, 10**5000]),
        (
            lambda value: check_text(value, "zone"),
            ["", "a" * 64, "eu west/1 +x@b:c_d.e-f"],
            ["a" * 65, "ä", "a\n", "{}", None, 1, b"a", Text("a")],
        ),
        (check_weight, [0, 0.0, 1, 10_000, 10_000.0], [-0.1, 10_000.1, math.nan, math.inf, -math.inf, True, "1", None, 10**400]),
        (check_ttl, [1, 1.0, 3600, 3600.0], [0.999, 3600.001, 0, math.nan, math.inf, True, "5", None, 10**400]),
        (
            check_metadata,
            [
                {},
                {"k": ""},
                Pairs(version="1"),
                {"k" * 96: "v" * (METADATA_BYTES_MAX - 96)},
                {str(number): "" for number in range(METADATA_KEYS_MAX)},
                {"ä": "ö" * (METADATA_BYTES_MAX // 2 - 1)},
            ],
            [
                {"k" * 96: "v" * (METADATA_BYTES_MAX - 95)},
                {str(number): "" for number in range(METADATA_KEYS_MAX + 1)},
                {"ä": "ö" * (METADATA_BYTES_MAX // 2)},
                {"": "v"},
                {"k": None},
                {"k": 1},
                {1: "v"},
                {b"k": "v"},
                {"k": Text("v")},
                {"k": "\ud800"},
                {"\ud800": "v"},
                None,
                [],
                [("k", "v")],
                "k=v",
            ],
        ),
    ],
)
def test_limits_at_both_edges(check: Callable[[Any], object], accepted: list[Any], refused: list[Any]) -> None:
    """The last allowed value is allowed and the next one is not; the wrong type is refused; the error says what to use."""
    for value in accepted:
        assert check(value) == value
    for value in refused:
        with pytest.raises(Invalid) as caught:
            check(value)
        assert str(caught.value)
        assert len(str(caught.value)) < 250
        assert caught.value.retry_after is None


@pytest.mark.parametrize("check", CHECKS)
@given(value=anything)
def test_anything_is_accepted_or_invalid(check: Callable[[Any], object], value: Any) -> None:
    """No value of any type makes a check raise anything but `Invalid`, and no accepted value changes."""
    try:
        assert check(value) == value
    except Invalid:
        return


# --- packing ----------------------------------------------------------------------------------------------------------------


@given(instances, lsns, lsns, st.integers(0, 4_102_444_800_000))
def test_what_is_packed_comes_back(instance: Instance, lease_id: Lsn, lsn: Lsn, registered_at_ms: int) -> None:
    """An instance that passes the door survives packing, the wire and unpacking; packing again gives the same bytes."""
    client_part = pack_client_part(client_fields(check_instance(instance)))
    public = pack_public(pack_server_part(lease_id, lsn, registered_at_ms), client_part)
    back = instance_from_public(msgpack.unpackb(public))
    assert back == attrs.evolve(instance, lease_id=lease_id, lsn=lsn, registered_at=format_time_ms(registered_at_ms))
    assert pack_client_part(client_fields(back)) == client_part
    assert pack_client_part(msgpack.unpackb(client_part)) == client_part
    assert isinstance(back.status, Status)
    assert type(back.weight) is float


@given(instances, st.lists(anything, max_size=3))
def test_unknown_trailing_fields_are_dropped(instance: Instance, extra: list[Any]) -> None:
    """A newer client may send more fields; they do not reach other clients."""
    fields = client_fields(instance)
    assert pack_client_part(fields + extra) == pack_client_part(fields)


@given(instances, st.integers(0, CLIENT_PART_FIELDS - 1), anything)
def test_one_wrong_field_is_invalid_and_nothing_else(instance: Instance, index: int, value: Any) -> None:
    """Whatever a client sends in place of a field is packed or `Invalid`."""
    fields = client_fields(instance)
    fields[index] = value
    try:
        part = pack_client_part(fields)
    except Invalid:
        return
    assert msgpack.unpackb(part)[index] == value


@given(anything)
def test_anything_in_place_of_the_fields_is_invalid(value: Any) -> None:
    """Not a list, or too short a list: `Invalid`."""
    with pytest.raises(Invalid):
        pack_client_part(value)


@given(instances, st.sampled_from([field.name for field in attrs.fields(Instance)[:11]]), anything)
def test_an_instance_with_a_wrong_attribute_is_invalid_and_nothing_else(instance: Instance, name: str, value: Any) -> None:
    """The door of the side that registers refuses with `Invalid` too, whatever the user put into the object."""
    changed = attrs.evolve(instance, **{name: value})
    try:
        assert check_instance(changed) is changed
    except Invalid:
        assert getattr(instance, name) != value or type(getattr(instance, name)) is not type(value)


def test_a_value_nested_too_deeply_to_be_shown_is_invalid() -> None:
    """A frame of a kilobyte can hold lists that Python cannot print; that is a mistake of the client and no error of the node."""
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(Invalid, match="that is a list"):
        check_name(value)


def test_suspect_is_never_packed() -> None:
    """The overlay of a node is nothing that a client may register."""
    with pytest.raises(Invalid):
        check_instance(Instance(id="a", host="h", port=1, status=Status.SUSPECT))


@pytest.mark.parametrize("value", [1, 0, [], "gone", None, Status.SUSPECT])
def test_a_status_that_is_none_of_three_words_is_named(value: Any) -> None:
    """The error shows what the user wrote; numbers of the wire are nothing for users."""
    with pytest.raises(Invalid, match=re.escape(repr(value))):
        check_instance(Instance(id="a", host="h", port=1, status=value))


def test_numbers_beyond_every_float_are_invalid() -> None:
    """Also where they would be converted."""
    for name in ("weight", "ttl", "port"):
        fields: dict[str, Any] = {"port": 1, name: 10**5000}
        with pytest.raises(Invalid, match=name):
            check_instance(Instance(id="a", host="h", **fields))


def test_the_ttl_is_kept_in_whole_milliseconds() -> None:
    """Parts of a millisecond are rounded, and rounding never leaves the limits."""
    assert client_fields(Instance(id="a", host="h", port=1, ttl=1.2344))[10] == 1234
    for ttl in (1.0, 1.0000001, 3599.9999999, 3600.0):
        check_instance(Instance(id="a", host="h", port=1, ttl=ttl))


# --- addresses and shapes ---------------------------------------------------------------------------------------------------


@given(hosts, st.integers(0, 65535))
def test_an_address_survives_joining_and_splitting(host: str, port: int) -> None:
    """Host names, IPv4 and IPv6."""
    assert split_address(join_address(host, port)) == (host, port)
    assert split_address(f"  {join_address(host, port)} ") == (host, port)


@pytest.mark.parametrize(
    ("text", "port_default", "expected"),
    [
        ("localhost:7400", None, ("localhost", 7400)),
        ("[::1]:7400", None, ("::1", 7400)),
        ("[fe80::1%eth0]:0", None, ("fe80::1%eth0", 0)),
        ("localhost", 7400, ("localhost", 7400)),
        ("::1", 7400, ("::1", 7400)),
        ("[::1]", 7400, ("::1", 7400)),
        ("10.0.0.1:1", 7400, ("10.0.0.1", 1)),
    ],
)
def test_ways_to_write_an_address(text: str, port_default: int | None, expected: tuple[str, int]) -> None:
    """With a default port the port may be left out, also of an IPv6 address."""
    assert split_address(text, port_default=port_default) == expected


NO_ADDRESSES = """
: :7400 localhost localhost: ::1 [::1] [::1]7400 [::1:7400 []:1 h:65536 h:-1 h:+1 h:1.0 h:٣ h:² h:1:2 a/b:1 h:_1 [[::1]]:1
"""


@pytest.mark.parametrize("text", ["", "a b:1", "h: 1", "h:" + "9" * 5000, *NO_ADDRESSES.split()])
def test_what_is_no_address(text: str) -> None:
    """Refused with a hint how to write it, or what to put into its host."""
    with pytest.raises(Invalid, match=r"use (HOST:PORT|a host name)"):
        split_address(text)


@given(st.text(), st.sampled_from([None, 7400]))
def test_any_text_is_an_address_or_invalid(text: str, port_default: int | None) -> None:
    """Nothing but `Invalid` is raised, and what is accepted is a valid host and a port."""
    try:
        host, port = split_address(text, port_default=port_default)
    except Invalid:
        return
    assert check_host(host) == host
    assert 0 <= port <= 65535


@given(st.integers(0, 253_402_300_799_999))
def test_times_are_iso_8601_in_utc(milliseconds: int) -> None:
    """To the millisecond, and back."""
    text = format_time_ms(milliseconds)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", text)
    epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    assert datetime.datetime.fromisoformat(text) - epoch == datetime.timedelta(milliseconds=milliseconds)


@pytest.mark.parametrize("milliseconds", [253_402_300_800_000, 2**64 - 1])
def test_a_time_beyond_the_calendar_is_a_malformed_instance(milliseconds: int) -> None:
    """It is a `ValueError` like every other malformed value from the wire."""
    with pytest.raises(ValueError, match="calendar"):
        format_time_ms(milliseconds)


def test_json_has_the_documented_shape() -> None:
    """Every field is there under its own name, lsns are pairs and the status is a word."""
    instance = Instance(id="a", host="::1", port=80, status=Status.DRAINING, lease_id=Lsn(1, 2), lsn=Lsn(1, 3))
    shown = instance.to_json()
    assert list(shown) == [field.name for field in attrs.fields(Instance)]
    assert (shown["lease_id"], shown["lsn"], shown["status"]) == ([1, 2], [1, 3], "draining")
    assert type(shown["status"]) is str
    assert instance.address == "[::1]:80"
    assert str(ServiceKey("prod", "orders")) == "prod/orders"


def test_a_change_is_true_when_something_changed() -> None:
    """An empty change is false, also a full one."""
    empty = Change(service=ServiceKey("default", "a"), lsn=Lsn(1, 1), full=True)
    assert not empty
    assert attrs.evolve(empty, removed=("x",))
