"""CUDA without a GPU: tensors that say `cuda:0` and hold their numbers on the CPU.

Code for CUDA runs on them to the end, and the arithmetic is the CPU's. What a GPU refuses is refused: an operation on
tensors of two devices, and NumPy's look into a tensor of the device. What it computes in another way (orders of sums,
norms, TF32) is not seen.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

__all__ = ["FREE_BYTES", "OnCuda", "fake_cuda", "on_cuda"]

FREE_BYTES = 8 << 30

_ACROSS = ("copy_", "_to_copy")
"""Operations from device to device."""


class OnCuda(torch.Tensor):
    """A tensor whose numbers are those of `held`, on the CPU, where Torch's own kernels take it to be."""

    held: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> OnCuda:
        with torch.inference_mode(False):  # an inference tensor cannot be seen in another shape from here
            return torch.Tensor._make_wrapper_subclass(
                cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype
            )

    def __init__(self, held: torch.Tensor) -> None:
        self.held = held

    @property
    def device(self) -> torch.device:
        return torch.device("cuda:0")

    @property
    def is_cuda(self) -> bool:
        return True

    def to(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        if device is None or device.type == "cuda":
            return self if dtype is None else super().to(dtype)
        return torch.ops.aten._to_copy(self, dtype=dtype, device=device)

    def cpu(self, memory_format: torch.memory_format = torch.preserve_format) -> torch.Tensor:
        return self.to("cpu")

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy: copy the tensor to host memory first"
        )

    def __repr__(self) -> str:
        return f"OnCuda({self.held!r})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.held.__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(op, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """Sees the functions that would make tensors on a real device before they dispatch anything."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in (torch.tensor, torch.as_tensor):
            device = kwargs.pop("device", None)
            made = function(*args, **kwargs)
            return made if device is None else made.to(device)
        if function is torch.nn.functional.one_hot and isinstance(args[0], OnCuda):
            return (args[0].unsqueeze(-1) == torch.arange(args[1], device="cuda")).long()
        return function(*args, **kwargs)


class _Factories(TorchDispatchMode):
    """Sees what makes tensors on the device, which no tensor of the device takes part in."""

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        to = kwargs.get("device")
        ours = any(isinstance(leaf, OnCuda) for leaf in tree_leaves((args, kwargs)))
        return (
            _run(op, args, kwargs) if ours or (to is not None and to.type == "cuda") else op(*args, **kwargs)
        )


def _run(op: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name, to = op.overloadpacket.__name__, kwargs.get("device")
    leaves = tree_leaves((args, kwargs))
    ours = [leaf for leaf in leaves if isinstance(leaf, OnCuda)]
    if any(isinstance(leaf, torch.Generator) for leaf in leaves):
        raise RuntimeError(f"{op}: expected a 'cuda' device type for generator but found 'cpu'")
    if ours and name not in _ACROSS:
        _check_devices(op, name, args, leaves)

    def bare(leaf: Any) -> Any:
        if isinstance(leaf, OnCuda):
            return leaf.held
        return torch.device("cpu") if isinstance(leaf, torch.device) else leaf

    result = op(*tree_map(bare, args), **tree_map(bare, kwargs))
    if (to is None and not ours) or (name == "copy_" and not isinstance(args[0], OnCuda)):
        return result
    if to is not None and to.type == "cpu":
        return result

    def told(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or isinstance(leaf, OnCuda):
            return leaf
        known = [one for one in ours if one.held is leaf]
        return known[0] if known else OnCuda(leaf)

    return tree_map(told, result)


def _check_devices(op: Any, name: str, args: Any, leaves: list[Any]) -> None:
    """As CUDA does: of the CPU are single numbers, and the indices of a tensor that is on the device."""
    if name in ("index", "index_put_") and isinstance(args[0], OnCuda):
        leaves = [args[0], *args[2:]]
    if name == "index_put":  # the gradient of `index` begins with zeros that Torch made itself
        leaves = [*args[1], *args[2:]]
    if any(isinstance(leaf, torch.Tensor) and not isinstance(leaf, OnCuda) and leaf.ndim for leaf in leaves):
        raise RuntimeError(
            f"{op}: expected all tensors to be on the same device, but found two: cuda:0 and cpu"
        )


@contextlib.contextmanager
def fake_cuda() -> Iterator[None]:
    """Torch has a GPU inside, with `FREE_BYTES` free; its random numbers are the CPU's."""
    torch._C._ensureCUDADeviceGuardSet()  # where there is none, `cuda` means the device 0
    cuda = {
        "_lazy_init": None,
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "is_current_stream_capturing": False,
        "mem_get_info": (FREE_BYTES, 2 * FREE_BYTES),
        "manual_seed_all": None,
        "set_rng_state": None,
    }
    with contextlib.ExitStack() as stack:
        for name, value in cuda.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, return_value=value))
        stack.enter_context(
            mock.patch.object(torch.cuda, "get_rng_state", lambda device: torch.get_rng_state())
        )
        # A module's parameters become other objects: the numbers of one of these are no part of its storage.
        kept = torch.__future__.get_overwrite_module_params_on_conversion()
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, kept)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.enter_context(_Functions())
        stack.enter_context(_Factories())
        yield


def on_cuda(*parts: torch.Tensor) -> bool:
    """Whether all of them are on the pretended device."""
    return all(isinstance(part, OnCuda) for part in parts)
