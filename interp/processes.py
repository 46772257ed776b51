"""The group of the processes that `torchrun` started, closed before the interpreter ends.

    left_at_end()                     then open the group, or let transformers open it
    open_group()                      open it here

gloo's threads let go of the last tensors they sent by themselves. One that does so while the interpreter is already
ending aborts the process ("terminate called without an active exception"), after all of its work was done, and torchrun
then calls the whole run failed. Closing the group waits for these threads, unless something else still holds it:
`torch.distributed.nn`, if it is first imported while a group is open, keeps that group as a default of its functions.
"""

import atexit
from functools import cache

import torch
import torch.distributed as dist


@cache
def left_at_end() -> None:
    """Have the group of all processes closed at the end of the interpreter; to be called before it is opened."""
    import torch.distributed.nn  # noqa: F401  (before there is a group, see above)

    atexit.register(_leave)


def open_group() -> None:
    """The group of all processes of torchrun: NCCL's on GPUs, gloo's elsewhere."""
    left_at_end()
    if not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
