"""The cores in transcripts: `tests/data/core/*.txt`, to be read as documentation of what a node does. The commands are in `story.py`, those
about a cluster in `cluster_story.py`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.datadriven import Handler, run_file, transcripts

from .cluster_story import BootstrapStory, ClusterStory, PeeringStory
from .story import BlockStory, BrakeStory, GateStory, NodeStory

HANDLERS: dict[str, Callable[[], Handler]] = {
    "brake": BrakeStory,
    "gate": GateStory,
    "blocks_read": BlockStory,
    "cold_start": ClusterStory,
    "node_restarts": ClusterStory,
    "controller_dies": ClusterStory,
    "other_disks": ClusterStory,
    "bootstrap": BootstrapStory,
    "bootstrap_refuses": BootstrapStory,
    "peering": PeeringStory,
}
"""By the name of the file; all others tell of a whole node."""


@pytest.mark.parametrize("path", transcripts("core"), ids=lambda path: path.stem)
def test_transcript(path: Path, rewrite: bool) -> None:
    """Everything comes as it stands there."""
    run_file(path, HANDLERS.get(path.stem, NodeStory)(), rewrite)


def test_every_handler_has_its_file() -> None:
    """A transcript that was renamed would be told to the wrong cores."""
    assert [name for name in HANDLERS if name not in [path.stem for path in transcripts("core")]] == []
