"""How much of the hardware a training uses: floating point operations of a step, over what a matrix product reaches."""

import copy
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def training_flops(model: nn.Module, loss: Callable, batch: Mapping[str, Tensor]) -> float:
    """Floating point operations of a forward and a backward pass of loss(model, batch, generator), for one example.

    Matrix products, convolutions and attention are counted, a multiplication and an addition as two, by the shapes
    alone: on a copy of the model without data, so that nothing is computed and nothing changed.
    """
    with FlopCounterMode(display=False) as counter:
        _by_shapes(copy.deepcopy(model).to("meta"), loss, batch).backward()
    return counter.get_total_flops() / len(next(iter(batch.values())))


def matmul_peak(device: str | torch.device, dtype: torch.dtype, size: int = 8192, repeats: int = 20) -> float:
    """Floating point operations per second of a square matrix product, the best of three timings of some repeats.

    It is what shares are measured against.
    """
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))

    def timed() -> float:
        began = time.perf_counter()
        for _ in range(repeats):
            product = a @ b
        product[0, 0].item()  # waits for the device
        return time.perf_counter() - began

    timed()
    return 2 * size**3 * repeats / min(timed() for _ in range(3))


def training_memory(model: nn.Module, loss: Callable, batch: Mapping[str, Tensor]) -> tuple[int, float]:
    """Memory of a training in bytes: what it takes whatever the batch, and what every example adds.

    The first is weights, gradients, two moments of AdamW and the average: five numbers a parameter. The second is what the
    forward pass keeps for the backward pass, counted by the shapes alone. What a device needs besides (buffers of a
    product, fragments) is not in it.
    """
    twin = copy.deepcopy(model).to("meta")
    mine = {tensor.untyped_storage()._cdata for tensor in (*twin.parameters(), *twin.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}  # held, so that no address is used twice

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in mine:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        total = _by_shapes(twin, loss, batch)
    state = 5 * sum(p.numel() * p.element_size() for p in model.parameters())
    each = sum(storage.nbytes() for storage in kept.values()) / len(next(iter(batch.values())))
    del total
    return state, each


def _by_shapes(twin: nn.Module, loss: Callable, batch: Mapping[str, Tensor]) -> Tensor:
    """The loss of a model without data: nothing is computed."""
    return loss(twin, {name: value.to("meta") for name, value in batch.items()}, None).total
