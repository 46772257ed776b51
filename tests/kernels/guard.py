"""Run Triton kernels in the interpreter with memory checks the hardware does not make.

Inside `checked()` every active lane of a load, store or atomic must fall inside a tensor argument; two programs may not
touch the same address unless both only read or both use atomics; and programs may be run in a shuffled order.
"""

import contextlib
from unittest import mock

import numpy as np
import torch
from triton.runtime import interpreter as I


class OutOfBounds(AssertionError):
    pass


class Race(AssertionError):
    pass


@contextlib.contextmanager
def checked(order_seed=None, program=None):
    B = I.interpreter_builder
    spans = []
    seen = {}
    init = I.GridExecutor._init_args_hst

    def init2(self, a, k):
        out = init(self, a, k)
        spans.clear()
        seen.clear()
        for t in list(out[0]) + list(out[1].values()):
            if isinstance(t, torch.Tensor) and t.numel():
                lo = t.data_ptr()
                spans.append(
                    (
                        lo,
                        lo
                        + (1 + sum((s - 1) * st for s, st in zip(t.shape, t.stride(), strict=True))) * t.element_size(),
                    )
                )
        return out

    def check(ptrs, mask, kind):
        data = np.asarray(ptrs.data)
        p = data[np.broadcast_to(mask, data.shape)]
        n = max(1, ptrs.get_element_ty().primitive_bitwidth // 8)
        good = np.zeros(p.shape, bool)
        for lo, hi in spans:
            good |= (p >= lo) & (p + n <= hi)
        if not good.all():
            raise OutOfBounds(
                f"{kind}: {int((~good).sum())} of {good.size} active lanes lie outside every tensor argument, "
                f"in program {B.grid_idx}"
            )
        me = tuple(B.grid_idx)
        for addr in p.ravel().tolist():
            who = seen.setdefault(addr, {})
            for other, kinds in who.items():
                if other != me and not (kinds | {kind} <= {"load"} or kinds | {kind} <= {"atomic"}):
                    raise Race(f"programs {other} and {me} share an address: {sorted(kinds)} and {kind}")
            who.setdefault(me, set()).add(kind)

    ml, ms, rmw, sg = B.create_masked_load, B.create_masked_store, B.create_atomic_rmw, B.set_grid_idx

    def ml2(p, m, *a):
        check(p, m.data, "load")
        return ml(p, m, *a)

    def ms2(p, v, m, *a):
        check(p, m.data, "store")
        return ms(p, v, m, *a)

    def rm2(op, p, v, m, *a):
        check(p, m.data, "atomic")
        return rmw(op, p, v, m, *a)

    perm = {}

    def sg2(x, y, z):
        if program is not None:
            B.grid_dim = tuple(max(g, q + 1) for g, q in zip(B.grid_dim, program, strict=True))
            return sg(*program)
        if order_seed is not None:
            g = tuple(B.grid_dim)
            if g not in perm:
                perm[g] = np.random.default_rng(order_seed).permutation(int(np.prod(g)))
            x, y, z = (int(v) for v in np.unravel_index(perm[g][np.ravel_multi_index((x, y, z), g)], g))
        return sg(x, y, z)

    with (
        mock.patch.object(I.GridExecutor, "_init_args_hst", init2),
        mock.patch.object(B, "create_masked_load", ml2),
        mock.patch.object(B, "create_masked_store", ms2),
        mock.patch.object(B, "create_atomic_rmw", rm2),
        mock.patch.object(B, "set_grid_idx", sg2),
    ):
        yield
