"""Edits: replacing what the model computed at a site while it runs.

An edit is called with a copy of the site's tensor, so it may change it in place, and with `Where`. What it returns goes
on through the model. `resid_mid` is read twice, by the second norm and by the block's last sum; both see the edited
value.
"""

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from interp.anatomy import Anatomy
from interp.errors import InputError
from interp.running import Where
from interp.sites import Point, Site
from interp.switchboard import Call, Switchboard, Turn
from interp.taps import DERIVED, Tap, rejoin, tap_of

Edit = Callable[[Tensor, Where], Tensor]


class Editing:
    """A set of edits on one model, and how often each has fired."""

    def __init__(
        self,
        anatomy: Anatomy,
        hf: nn.Module,
        edits: Mapping[Site, Edit] | Mapping[str, Edit],
        where: Callable[[], Where],
    ) -> None:
        self.edits = {Site.parse(name): edit for name, edit in edits.items()}
        if len(self.edits) < len(edits):
            raise InputError(f"two of the edits at {', '.join(map(str, edits))} are at one site; make one edit of them")
        for site in self.edits:
            anatomy.check(hf, site)
            if site.point in DERIVED:
                raise InputError(
                    f"{site} cannot be edited: fused attention never forms it (it is recomputed from q and k when "
                    f"captured). Edit q, k, v or z of layer {site.layer} instead"
                )
        self.anatomy, self.hf, self.where = anatomy, hf, where
        self.fired = dict.fromkeys(self.edits, 0)

    def attach(self, board: Switchboard) -> list[Callable[[], None]]:
        """Put every edit in place; returns what undoes it."""
        undo: list[Callable[[], None]] = []
        taps = {site: tap_of(self.anatomy, self.hf, site) for site in self.edits}
        for site, edit in self.edits.items():
            tap = taps[site]
            if site.point is Point.RESID_MID:
                undo += rejoin(self.anatomy, self.hf, site, board)

            def handler(value: Tensor, call: Call, site: Site = site, edit: Edit = edit, tap: Tap = tap) -> Tensor:
                old = tap.read(value, call)
                new = edit(old.clone(), self.where().to(old.device))
                self.fired[site] += 1
                _check_result(site, old, new)
                return tap.write(value, call, new)

            undo.append(board.attach(tap.module, tap.side, Turn.EDIT, handler))
        return undo

    def check_fired(self, passes: int) -> None:
        """Refuse to end quietly if an edit was never applied."""
        if silent := [str(site) for site, count in self.fired.items() if not count]:
            raise InputError(
                f"the edit at {', '.join(silent)} never fired: {passes} forward passes of this model ran inside "
                f"`edited` and none reached it. Expected at least one; was another model run, or did every capture "
                f"stop below?"
            )


def _check_result(site: Site, old: Tensor, new: object) -> None:
    if not isinstance(new, Tensor):
        raise InputError(
            f"the edit at {site} returned {type(new).__name__}: expected a tensor of shape {tuple(old.shape)}"
        )
    if new.shape != old.shape or new.dtype != old.dtype:
        raise InputError(
            f"the edit at {site} returned {tuple(new.shape)} {new.dtype}: expected {tuple(old.shape)} {old.dtype}, "
            f"as it was given"
        )
