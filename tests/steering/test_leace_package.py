"""`erase` against the `concept-erasure` package, by a fixture that `tests/fixtures/generate_leace.py` wrote."""

from pathlib import Path

import pytest
import torch

from interp.moments import Moments, whitener
from interp.steering.closed_forms import erase
from interp.tensorfile import read_tensors

FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "leace.safetensors"


@pytest.fixture(scope="module")
def theirs() -> dict[str, torch.Tensor]:
    return read_tensors(FIXTURE, "fixture")[0]


def _ours(theirs: dict[str, torch.Tensor], name: str):
    moments = Moments.from_rows(theirs[f"{name}.x"], theirs[f"{name}.z"])
    return erase(moments.cross_covariance(), whitener(moments, "full"), moments.mean)


def test_the_map_is_the_packages_where_options_coincide(theirs: dict[str, torch.Tensor]):
    edit = _ours(theirs, "plain")
    torch.testing.assert_close(edit.dense()[0], theirs["plain.A"], rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(edit(theirs["plain.x"]), theirs["plain.erased"], rtol=1e-8, atol=1e-8)


@pytest.mark.filterwarnings("ignore:whiten='full' with 9 prompts")
def test_with_fewer_rows_than_dimensions_it_still_is(theirs: dict[str, torch.Tensor]):
    edit = _ours(theirs, "few")
    torch.testing.assert_close(edit.dense()[0], theirs["few.A"], rtol=1e-8, atol=1e-8)


def test_a_concept_in_other_units_is_erased_here_and_dropped_there(theirs: dict[str, torch.Tensor]):
    x, z = theirs["rescaled.x"], theirs["rescaled.z"]
    before = Moments.from_rows(x, z).cross_covariance().norm(dim=0)
    left = {
        name: Moments.from_rows(after, z).cross_covariance().norm(dim=0) / before
        for name, after in (("ours", _ours(theirs, "rescaled")(x)), ("theirs", theirs["rescaled.erased"]))
    }
    assert float(left["ours"].max()) < 1e-12
    assert float(left["theirs"][0]) < 1e-6 and float(left["theirs"][1]) > 0.1
    torch.testing.assert_close(_ours(theirs, "rescaled").dense()[0], theirs["plain.A"], rtol=1e-8, atol=1e-8)
