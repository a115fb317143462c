"""The public face of the package: these names and no others, and importing it starts nothing."""

from __future__ import annotations

import inspect
import subprocess
import sys

import govern

PUBLIC = """
Change Config ConfigError DiskFull Drained Evicted Explanation Gone GovernError Indeterminate Instance Invalid LiveView Lsn NoController
Node NodeFailed Overloaded ProtocolError Registration Registry Rejected ServiceInfo ServiceKey Status Stopped StorageError Superseded
Unassigned Unreachable __version__ connect open_node
"""


def test_the_public_names_are_exactly_these() -> None:
    """Adding or removing a public name is a decision: it shows here."""
    assert sorted(govern.__all__) == sorted(PUBLIC.split())
    assert all(hasattr(govern, name) for name in govern.__all__)


def test_every_public_class_and_function_is_documented() -> None:
    """A docstring on each, and on each public method and property of each class."""
    for name in govern.__all__:
        thing = getattr(govern, name)
        if not inspect.isclass(thing) and not callable(thing):
            continue
        assert thing.__doc__, name
        if inspect.isclass(thing) and not issubclass(thing, tuple | BaseException | str):
            for attribute, value in vars(thing).items():
                if not attribute.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
                    assert value.__doc__, f"{name}.{attribute}"


def test_importing_govern_has_no_effect_on_the_process() -> None:
    """No thread, no signal handler, no logging handler, no change of the garbage collector."""
    program = (
        "import gc, logging, signal, threading\n"
        "before = (gc.get_threshold(), signal.getsignal(signal.SIGTERM), list(logging.getLogger().handlers))\n"
        "import govern\n"
        "assert before == (gc.get_threshold(), signal.getsignal(signal.SIGTERM), list(logging.getLogger().handlers))\n"
        "assert threading.active_count() == 1\n"
        "assert not logging.getLogger('govern').handlers\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
