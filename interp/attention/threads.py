"""Many small matrices: one torch thread to each worker, instead of all threads to each matrix.

LAPACK calls on matrices of 128 x 128 do not pay for threads of their own: with two, matched nulls took three times the
processor time and twice the time of one, and beside other busy processes they hardly went on at all (2 cores, torch
2.13): each of thousands of short calls waits for the thread that has no core. PyTorch lets go of the interpreter's lock
in every call, so workers run side by side.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[int]:
    """Torch computes with one thread inside; gives the number it had, and has again afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)
