"""Several processes of one training, as torchrun starts them; alone, every function here is the obvious one."""

import contextlib
import gc
import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Result = TypeVar("Result")
PATIENCE = timedelta(minutes=30)
"""How long processes wait for each other: the first looks at the model while the others do nothing."""


@contextlib.contextmanager
def joined(device: str | torch.device) -> Iterator[torch.device]:
    """Among the other processes of `torchrun`, or alone without it: the device of this process.

    With "cuda" each process of a node takes the GPU of its number, or ValueError where there are fewer GPUs.
    """
    device = torch.device(device)
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield device
        return
    if device.type == "cuda":
        here, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if here >= gpus:
            raise ValueError(f"process {here} of this node has no GPU, there are {gpus}: torchrun --nproc-per-node {gpus}")
        device = torch.device("cuda", here)
        torch.cuda.set_device(device)
    importlib.import_module("torch.distributed.nn.functional")  # its defaults keep the group that is there by then
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield device
    finally:
        dist.destroy_process_group()
        gc.collect()  # with the last owner of the group its threads end: one that outlives the interpreter may abort


def rank() -> int:
    """The number of this process, 0 for the one that writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def first(action: Callable[[], Result]) -> Result:
    """Let the first process do something while the others wait: its result, or its error, is that of all of them."""
    error = result = None
    if rank() == 0:
        try:
            result = action()
        except Exception as failed:
            error = failed
    error, result = gathered((error, result))[0]
    if error:
        raise error
    return result


def mean(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mean over processes of scalars that all of them have, {name: scalar}."""
    if world() == 1 or not values:
        return dict(values)
    stacked = torch.stack([value.double() for value in values.values()])
    dist.all_reduce(stacked)
    return dict(zip(values, stacked / world(), strict=True))


def gathered(value):
    """What every process has, as a list in their order."""
    if world() == 1:
        return [value]
    out = [None] * world()
    dist.all_gather_object(out, value)
    return out
