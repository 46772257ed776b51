"""Path patching: the effect of one component on others, through the paths between them and no other way.

    frozen run:  tokens of clean; the sender's value from corrupt; what every other attention block and MLP adds to the
                 stream held at its clean value          -> the receivers' values, as they read sender' + clean rest
    final run:   tokens of clean; the receivers' values from the frozen run; all else computed as it comes

A sender is any site: a head's `z`, `attn_out`, `mlp_out`, a stream. A receiver is a site that is computed from the
stream: `q`, `k` or `v` of a head (of a key-value group where heads share them), `z` (the head reads the changed stream
in all three), `ln1`, `ln2`, `mlp_pre`, `mlp_post` (the MLP reads it), `resid_*` (all that follows reads it),
`ln_final` (the logits read it: the direct path). Several receivers are changed together, each as if the others were
not. Attention and MLP outputs are held after Gemma's post-norms, at what is added to the stream.

Wang et al. 2023 (arXiv 2211.00593) hold the heads and let MLPs follow: `through_mlps`. Goldowsky-Dill et al. 2023
(arXiv 2304.05969) write a path as a rewritten computation; here is the case of one edge, sender to receiver.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from interp.errors import InputError
from interp.model import Edit, HookedModel
from interp.patches import Positions, Run, capture, check_positions, placed
from interp.sites import Point, Site

ATTENTION = (Point.LN1, Point.Q, Point.K, Point.V, Point.ROT_Q, Point.ROT_K, Point.Z, Point.ATTN_OUT)
MLP = (Point.LN2, Point.MLP_PRE, Point.MLP_PRE_LINEAR, Point.MLP_POST, Point.MLP_OUT)
_NOT_RECEIVERS = {
    Point.EMBED: "it reads nothing",
    Point.ATTN_OUT: "name the heads that read the stream: z, or z of one head",
    Point.MLP_OUT: "name what in the MLP reads the stream: mlp_post",
}


@dataclass(frozen=True)
class Path:
    """From a sender to receivers, directly."""

    sender: Site
    receivers: tuple[Site, ...]
    positions: Positions = None
    """Where the sender is changed; `None`: everywhere."""
    receiver_positions: Positions = None
    through_mlps: bool = False
    """Let the MLPs between sender and receivers follow the sender, so that the paths through them count too."""

    def __post_init__(self) -> None:
        if not self.receivers or len(set(self.receivers)) < len(self.receivers):
            raise InputError(f"receivers {', '.join(map(str, self.receivers))}: expected at least one, and none twice")
        for receiver in self.receivers:
            if receiver.point in _NOT_RECEIVERS:
                raise InputError(f"{receiver} cannot be a receiver: {_NOT_RECEIVERS[receiver.point]}")
            if not self.sender < receiver:
                raise InputError(f"{receiver} is not computed after {self.sender}: no path leads from the one to it")

    def held(self, model: HookedModel) -> list[Site]:
        """What the frozen run holds at its clean value: outputs behind the sender that it is not itself a part of."""
        points = (Point.ATTN_OUT,) if self.through_mlps else (Point.ATTN_OUT, Point.MLP_OUT)
        all_of = [Site(point, layer) for layer in range(model.loaded_layers) for point in points]
        return [site for site in all_of if self.sender < site and not self._within(site)]

    def _within(self, output: Site) -> bool:
        parts = ATTENTION if output.point is Point.ATTN_OUT else MLP
        return self.sender.layer == output.layer and self.sender.point in parts


def path_edits(model: HookedModel, clean: Run, corrupt: Run, path: Path) -> dict[Site, Edit]:
    """The edits of the final run, a run of `clean`: what the receivers read along the path."""
    clean.alike(corrupt)
    held = path.held(model)
    return edits_along(
        model, clean, path, capture(model, clean, held) if held else {}, capture(model, corrupt, [path.sender])
    )


def edits_along(
    model: HookedModel, clean: Run, path: Path, outputs: Mapping[Site, Tensor], corrupt: Mapping[Site, Tensor]
) -> dict[Site, Edit]:
    """The same from captured values: the clean outputs to be held (there may be more), the sender's in `corrupt`."""
    check_positions(clean, path.positions)
    check_positions(clean, path.receiver_positions)
    frozen: dict[Site, Edit] = {site: placed([(outputs[site], None)]) for site in path.held(model)}
    frozen[path.sender] = placed([(corrupt[path.sender], path.positions)])
    last = max(path.receivers)
    # A capture stops at the last receiver, and an edit that no pass reaches is an error.
    with model.edited({site: edit for site, edit in frozen.items() if site < last}):
        values = capture(model, clean, path.receivers)
    return {site: placed([(values[site], path.receiver_positions)]) for site in path.receivers}
