"""One thread for a block of torch's work on the CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

__all__ = ["one_thread"]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Limits torch to one thread inside the block.

    The bits then do not depend on the number of cores, and steps of a few milliseconds do not wait at a barrier
    for a thread that another process keeps from running: on a busy machine two threads were 25 times slower.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
