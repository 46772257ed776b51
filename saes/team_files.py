"""A team's run in its folder: one process keeps settings and metrics, all of them write the checkpoints together.

    training/checkpoints/step-000000050/     safetensors of every process's part (torch.distributed.checkpoint, with the
                                             Hugging Face writer: the default one pickles its metadata), and the run's
                                             settings

Parts are written with their place in the whole, so a run goes on with another number of processes, or divided another
way. A folder has its name only when every part of it is on disk.
"""

import dataclasses
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.loop import KEPT, Metrics, RunFiles, Trainee, of_another_run
from interp.sealing import partial_name, publish, sync
from saes.sae import SAE
from saes.state import TrainState
from saes.team import SHARDED, Team

_RUN = "run.json"


def own_features(sae: SAE, team: Team) -> SAE:
    """The part of a dictionary that this process trains."""
    if team.parallel != "dictionary":
        return sae
    block = team.features(sae.config.d_sae)
    f = block.stop - block.start
    k = None if sae.config.k is None else min(sae.config.k, f)
    part = SAE(dataclasses.replace(sae.config, d_sae=f, k=k))
    with torch.no_grad():
        for name, parameter in part.named_parameters():
            parameter.copy_(team.shard(name, sae.get_parameter(name)))
    return part


def whole_sae(state: TrainState) -> SAE:
    """The whole dictionary, in every process."""
    if state.team.parallel != "dictionary":
        return state.sae
    sae = SAE(state.whole)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.copy_(state.team.whole(name, state.sae.get_parameter(name)))
    return sae.to(state.sae.b_dec.device)


class TeamFiles(RunFiles):
    """`interp.loop.RunFiles` for the processes of a team."""

    def __init__(self, state: TrainState) -> None:
        self.state, self.team = state, state.team

    def claim(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """The first process begins the run; the others then find it and compare."""
        for lead in (True, False):
            if (self.team.rank == 0) is lead:
                super().claim(folder, settings)
            self.team.wait()

    def metrics(self, folder: Path, after: int) -> Metrics | None:
        """Of the first process alone."""
        return super().metrics(folder, after) if self.team.rank == 0 else None

    def resume(self, folder: Path, trainee: Trainee[Any]) -> int:
        """Restore the newest whole checkpoint, of however many processes."""
        from torch.distributed.checkpoint import HuggingFaceStorageReader, load

        home = folder / "checkpoints"
        if self.team.rank == 0:
            for partial in home.glob(".step-*.partial"):
                shutil.rmtree(partial)
        self.team.wait()
        found = sorted(home.glob("step-*"))
        if not found:
            return 0
        of = found[-1] / _RUN
        if not of.exists() or of.read_bytes() != (folder / _RUN).read_bytes():
            raise of_another_run(found, folder)
        held = self._parts()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch.distributed about its own defaults
            load(held, storage_reader=HuggingFaceStorageReader(str(found[-1])))
        self._take(held)
        return self.state.step

    def save(self, folder: Path, step: int, trainee: Trainee[Any]) -> None:
        """All processes write their parts; the first gives the folder its name."""
        from torch.distributed.checkpoint import HuggingFaceStorageWriter, save

        final = folder / "checkpoints" / f"step-{step:09d}"
        partial = partial_name(final)
        if self.team.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            shutil.copy(folder / _RUN, partial)
        self.team.wait()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            save(self._parts(), storage_writer=HuggingFaceStorageWriter(str(partial), save_distributed=True))
        self.team.wait()
        if self.team.rank == 0:
            for file in partial.iterdir():
                sync(file)
            publish(partial, final)
            for old in sorted(final.parent.glob("step-*"))[:-KEPT]:
                shutil.rmtree(old)
        self.team.wait()

    def _parts(self) -> dict[str, Tensor]:
        """The state, what is divided as distributed tensors; moments of Adam that are not there yet as zeros."""
        state = self.state
        held = {name: tensor.detach() for name, tensor in state.tensors().items() if name != "dead"}
        held["dead"] = torch.zeros_like(state.silent, dtype=torch.bool).index_fill_(0, state.dead, True)
        for name, parameter in state.parameters.items():
            held.setdefault(f"adam.{name}.step", torch.zeros((), dtype=torch.float32))
            for moment in ("exp_avg", "exp_avg_sq"):
                held.setdefault(f"adam.{name}.{moment}", torch.zeros_like(parameter, requires_grad=False))
        return {name: self._placed(name, tensor) for name, tensor in held.items()}

    def _placed(self, name: str, tensor: Tensor) -> Tensor:
        if self.team.parallel != "dictionary" or not divided(name):
            return tensor.contiguous()
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import DTensor, Shard

        mesh = init_device_mesh(tensor.device.type, (self.team.size,))
        return DTensor.from_local(tensor.contiguous(), mesh, [Shard(0)])

    def _take(self, held: Mapping[str, Any]) -> None:
        local = {name: tensor.to_local() if hasattr(tensor, "to_local") else tensor for name, tensor in held.items()}
        local["dead"] = local["dead"].nonzero()[:, 0]
        self.state.restore(local)
        self.state.count_dead()


def divided(name: str) -> bool:
    """Whether a tensor of a checkpoint has one row per feature."""
    parts = name.split(".")
    key = parts[1] if parts[0] in ("sae", "adam") else parts[0]
    return key in SHARDED | {"dead"} and parts[-1] != "step"
