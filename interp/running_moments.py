"""`Moments`: mean, covariance and cross-covariance of a stream of activations, float64, mergeable.

    μ = E x,   Σ = E (x − μ)(x − μ)ᵀ,   Σ_xz = E (x − μ)(z − ν)ᵀ       x [n d], z [n l]

Two sets of n_a and n_b rows are joined exactly (Chan, Golub and LeVeque 1983): with e = m_b − m_a,

    M = M_a + M_b + e eᵀ n_a n_b / (n_a + n_b)                          M = Σ_i (x_i − m)(x_i − m)ᵀ

Each chunk is centred by its own mean before anything is squared. Raw second moments are not enough: activations with
an offset of 300 and a spread of 0.1 give nonsense in float32 (`tests/test_moments.py` holds both).

Tokens of one prompt depend on each other, so the size of the sample that counts for shrinkage and for tests is the
number of prompts, `n_groups`.
"""

from pathlib import Path

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from interp.errors import InputError
from interp.tensorfile import read_tensors, write_tensors

Groups = int | Integer[Tensor, " n"] | None


class Moments:
    """A fitter: `update` with rows, `merge` with others, then read `mean`, `covariance()`, `cross_covariance()`."""

    def __init__(self, d: int, l: int = 0, *, device: torch.device | str = "cpu") -> None:  # noqa: E741
        if d < 1 or l < 0:
            raise InputError(f"Moments: expected a width of 1 or more and 0 or more concepts, got d={d}, l={l}")
        # Apple's GPUs have no float64
        device = torch.device("cpu") if torch.device(device).type == "mps" else torch.device(device)
        self.n = 0
        self.n_groups = 0
        self.mean: Float[Tensor, " d"] = torch.zeros(d, dtype=torch.float64, device=device)
        self.z_mean: Float[Tensor, " l"] = torch.zeros(l, dtype=torch.float64, device=device)
        self._xx = torch.zeros(d, d, dtype=torch.float64, device=device)
        self._xz = torch.zeros(d, l, dtype=torch.float64, device=device)

    @classmethod
    def of(cls, d: int, l: int = 0, *, device: torch.device | str = "cpu") -> "Moments":  # noqa: E741
        """Of nothing yet: activations of width `d`, `l` concept variables."""
        return cls(d, l, device=device)

    @classmethod
    def from_rows(
        cls, x: Float[Tensor, "n d"], z: Float[Tensor, "n l"] | None = None, *, groups: Groups = None
    ) -> "Moments":
        """Of rows that are all at hand."""
        return cls(x.shape[1], 0 if z is None else z.shape[1], device=x.device).update(x, z, groups=groups)

    @property
    def d(self) -> int:
        """Width of the activations."""
        return len(self.mean)

    @property
    def l(self) -> int:  # noqa: E743
        """Number of concept variables."""
        return len(self.z_mean)

    def update(
        self, x: Float[Tensor, "n d"], z: Float[Tensor, "n l"] | None = None, *, groups: Groups = None
    ) -> "Moments":
        """Add rows.

        `groups`: how many prompts they are, or the prompt of every row (a prompt must not be split over two calls
        then: it would count twice); without it every row is a prompt of its own.
        """
        if x.ndim != 2 or x.shape[1] != self.d or (0 if z is None else z.shape[-1]) != self.l:
            raise InputError(
                f"Moments of width {self.d} with {self.l} concepts: got rows of shape {tuple(x.shape)}"
                + ("" if z is None else f" and concepts of shape {tuple(z.shape)}")
            )
        if len(x) == 0:
            return self
        device = self.mean.device
        x, z = _double(x, device), torch.zeros(len(x), 0) if z is None else z
        z = _double(z, device)
        n_groups = len(x) if groups is None else groups if isinstance(groups, int) else len(groups.unique())
        mean, z_mean = _mean(x), _mean(z)
        if not bool(mean.isfinite().all() & z_mean.isfinite().all()):
            raise InputError(
                "Moments: the rows hold NaN or infinite values. The model's dtype overflowed (try float32 or "
                "bfloat16), or an edit before this site returned them"
            )
        self._join(len(x), n_groups, mean, z_mean)
        x, z = x - mean, z - z_mean
        self._xx.addmm_(x.T, x)
        self._xz.addmm_(x.T, z)
        return self

    def merge(self, other: "Moments") -> "Moments":
        """Take in what another one has seen: exactly as if its rows had come here."""
        if (other.d, other.l) != (self.d, self.l):
            raise InputError(
                f"moments of width {other.d} with {other.l} concepts cannot be merged into ones of width {self.d} "
                f"with {self.l}"
            )
        if other.n == 0:
            return self
        device = self.mean.device
        self._join(other.n, other.n_groups, other.mean.to(device), other.z_mean.to(device))
        self._xx.add_(other._xx.to(device))
        self._xz.add_(other._xz.to(device))
        return self

    def _join(self, n: int, n_groups: int, mean: Float[Tensor, " d"], z_mean: Float[Tensor, " l"]) -> None:
        """Chan's step for n more rows about their own mean, but for their scatter; in place, Σ may be large."""
        total = self.n + n
        e, f, share = mean - self.mean, z_mean - self.z_mean, n / total
        self._xx.addr_(e, e, alpha=self.n * share)
        self._xz.addr_(e, f, alpha=self.n * share)
        self.mean, self.z_mean = self.mean + e * share, self.z_mean + f * share
        self.n, self.n_groups = total, self.n_groups + n_groups

    def covariance(self) -> Float[Tensor, "d d"]:
        """Σ, divided by n − 1 and exactly symmetric."""
        return (self._xx + self._xx.T) / (2 * self._degrees())

    def cross_covariance(self) -> Float[Tensor, "d l"]:
        """Σ_xz, divided by n − 1."""
        return self._xz / self._degrees()

    def _degrees(self) -> int:
        if self.n < 2:
            raise InputError(f"a covariance needs two rows or more, got {self.n}; give more prompts")
        return self.n - 1

    def save(self, path: str | Path) -> None:
        """Write as one safetensors file."""
        tensors = {"mean": self.mean, "z_mean": self.z_mean, "xx": self._xx, "xz": self._xz}
        write_tensors(Path(path), tensors, {"moments": 1, "n": self.n, "n_groups": self.n_groups})

    @classmethod
    def load(cls, path: str | Path) -> "Moments":
        """Read what `save` wrote."""
        tensors, facts = read_tensors(Path(path), "file of moments")
        if not isinstance(facts, dict) or facts.get("moments") != 1:
            raise InputError(f"{path} holds no moments that this version knows")
        counts = [facts.get(name) for name in ("n", "n_groups")]
        d, e = (len(tensors[name]) if name in tensors and tensors[name].ndim else 0 for name in ("mean", "z_mean"))
        shapes = {"mean": (d,), "z_mean": (e,), "xx": (d, d), "xz": (d, e)}
        sound = {name: tuple(x.shape) for name, x in tensors.items() if x.dtype == torch.float64} == shapes
        if not sound or not all(type(one) is int and 0 <= one < 2**53 for one in counts):
            raise InputError(f"{path} is damaged: its tensors or its counts are not those of moments; make it again")
        found = cls(d, e)
        found.n, found.n_groups = facts["n"], facts["n_groups"]
        found.mean, found.z_mean, found._xx, found._xz = (tensors[k] for k in ("mean", "z_mean", "xx", "xz"))
        return found


def _double(x: Tensor, device: torch.device) -> Tensor:
    """Float64 on `device`, by way of the CPU where the source has no float64."""
    x = x.detach()
    return (x.to(device) if x.device.type == "mps" else x).to(device=device, dtype=torch.float64)


def _mean(x: Float[Tensor, "n d"]) -> Float[Tensor, " d"]:
    """The mean, taken about the first row: sums of large offsets would round."""
    return x[0] + (x - x[0]).mean(0)
