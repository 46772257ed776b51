"""Every stage of an extraction overlaps with the others, in bounded memory, and nothing in the loop waits."""

import pytest

from interp.extract import prepare
from interp.stages import NAMES, Stages
from tests.toy_store import SITES, ToyModel, token_file

SMALL = {"max_length": 16, "token_budget": 64, "rows_per_shard": 400}


def test_stages_add_up_and_the_busiest_is_named():
    stages = Stages()
    assert stages.limiting() == "none"
    stages.add("forward", 2.0)
    stages.add("disk", 1.5)
    stages.add("disk", 1.0)
    stages.add("stall", 9.0)  # waiting is no work
    assert stages.as_dict() == {"tokens": 0, "forward": 2, "copy": 0, "writer": 0, "disk": 2.5, "stall": 9}
    assert stages.limiting() == "disk"
    with pytest.raises(KeyError):
        stages.add("coffee", 1.0)


def test_a_run_times_every_stage(tmp_path):
    extraction = prepare(ToyModel(), token_file(tmp_path / "t", [40] * 9), SITES, tmp_path / "s", **SMALL)
    assert extraction.stages.limiting() == "none"
    extraction.run(progress=False)
    seconds = extraction.stages.as_dict()
    assert tuple(seconds) == NAMES
    assert all(seconds[name] > 0 for name in NAMES if name != "copy")
