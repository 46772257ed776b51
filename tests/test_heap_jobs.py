"""Long jobs hand freed memory back at their end, also where they fail: here each is given what it refuses."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from interp.attention.sd_train import TwinTraining, train_twin
from interp.attention.survey import survey
from interp.errors import InputError
from interp.model import HookedModel
from interp.ray_worker import Task, Worker
from interp.sudoku import jobs
from interp.sudoku.probe_records import ProbeConfig
from saes.sae import SAE, SAEConfig
from saes.suite import SuiteConfig, run_suite
from tests.test_heap import GLIBC, released, resident, scattered
from tests.tiny_models import tiny
from tests.toy_store import token_file

Job = Callable[[Path], Any]


def shard(folder: Path) -> None:
    """A shard of an extraction without a site."""
    tokens = token_file(folder / str(time.time_ns()), [5, 9], seed=1)
    Worker(Task(lambda: (HookedModel.wrap(tiny("llama")), tokens), [], folder / "store", {})).compute(0)


def suite(folder: Path) -> None:
    """Evaluations on a task that there is not."""
    sae = SAE(SAEConfig(d_in=48, d_sae=96, k=4, architecture="topk"))
    run_suite(sae, HookedModel.wrap(tiny("llama")), SuiteConfig(probing=("no such task",)))


JOBS: dict[str, Job] = {
    "sudoku train": lambda at: jobs.train_job(jobs.TrainConfig(preset="no such preset"), at),
    "sudoku solve": lambda at: jobs.solve_job(at / "model", at / "solving.json"),
    "sudoku probe": lambda at: jobs.probe_job([], at / "probes.json", ProbeConfig()),
    "sudoku intervene": lambda at: jobs.intervene_job(at / "model", at / "found.json", jobs.InterveneConfig()),
    "sudoku circuit": lambda at: jobs.circuit_job(at / "model", at / "found.json", jobs.CircuitConfig()),
    "attention survey": lambda at: survey([at / "model.gguf"], at / "survey", progress=False),
    "attention twin": lambda at: train_twin(TwinTraining(corpus=str(at / "text.txt")), at / "twin"),
    "suite of evaluations": suite,
    "shard of a Ray worker": shard,
}


@pytest.mark.skipif(not GLIBC, reason="only glibc keeps and trims")
@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_memory_freed_before_the_end_of_a_job_leaves_the_process(job: Job, tmp_path: Path):
    with pytest.raises(InputError):
        job(tmp_path)  # for what it imports, so that little is allocated while it is looked at
    freed, kept = scattered()
    assert resident(freed) > 0.5, "glibc gave it back by itself: this test shows nothing"
    with pytest.raises(InputError):
        job(tmp_path)
    assert resident(freed) < 0.25  # some is taken again by what the job allocates
    released(kept)
