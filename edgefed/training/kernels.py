"""Do the libraries' kernels run here? One small computation after the other, told on stdout as it begins and ends.

`python -m edgefed.training.kernels LIBRARY HARDWARE` is a program of its own because kernels that do not fit the
machine do not raise errors: they end the process, or never come back. On Jetson boards an import proves nothing:
builds for servers import well, and fail in the first kernel ("named symbol not found").

Lines are JSON objects: `{"about": …}`, `{"begin": kernel}`, `{"ran": kernel}`, `{"failed": kernel, "why": …}`,
`{"missing": …}`, and `{"end": true}` last.
"""

from __future__ import annotations

import importlib
import json
import struct
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["LIBRARIES", "main"]

LIBRARIES = ("torch", "bitsandbytes", "onnxruntime")

_SIZE = 128
_INT8_CAPABILITY, _NF4_CAPABILITY, _BF16_CAPABILITY = 7.5, 6.0, 8.0


def main(arguments: list[str]) -> int:
    """Runs the kernels of one library.

    Args:
        arguments: the library, and `auto`, `cpu` or `cuda`.
    """
    library, hardware = arguments
    try:
        _tell(begin=f"import {library}")
        module = importlib.import_module(library)
    except (ImportError, OSError, RuntimeError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name == library:
            _tell(missing=_said(error))
        else:
            _tell(failed=f"import {library}", why=_said(error))
    else:
        _tell(ran=f"import {library}")
        {"torch": _torch, "bitsandbytes": _bitsandbytes, "onnxruntime": _onnxruntime}[library](module, hardware)
    _tell(end=True)
    return 0


def _torch(torch: Any, hardware: str) -> None:
    place, capability = _place(hardware)
    _tell(about=f"torch {torch.__version__}")

    def product(dtype: Any) -> None:
        a = torch.ones(_SIZE, _SIZE, device=place, dtype=dtype, requires_grad=True)
        b = torch.full((_SIZE, _SIZE), 2.0, device=place, dtype=dtype)
        c = a @ b
        c.float().sum().backward()
        _check(c.float().sum().item(), 2.0 * _SIZE**3)
        _check(a.grad.float().sum().item(), 2.0 * _SIZE**3)

    _try(f"fp32 matrix product and its backward on {place}", lambda: product(torch.float32))
    if place == "cpu" or capability >= _BF16_CAPABILITY:
        _try(f"bf16 matrix product and its backward on {place}", lambda: product(torch.bfloat16))


def _bitsandbytes(bitsandbytes: Any, hardware: str) -> None:
    place, capability = _place(hardware)
    _tell(about=f"bitsandbytes {bitsandbytes.__version__}")
    if place == "cpu" or capability >= _NF4_CAPABILITY:
        _try(f"nf4: quantize_4bit, matrix product and backward on {place}", lambda: _nf4(bitsandbytes, place))
    if place == "cpu" or capability >= _INT8_CAPABILITY:
        _try(f"int8: Linear8bitLt forward and backward on {place}", lambda: _int8(bitsandbytes, place))


def _nf4(bitsandbytes: Any, place: str) -> None:
    import torch

    # NF4 has 1 and -1 among its values, so what is quantized here must come back as it was.
    weight = torch.ones(_SIZE, _SIZE, device=place)
    packed, state = bitsandbytes.functional.quantize_4bit(weight, quant_type="nf4")
    tokens = torch.ones(4, _SIZE, device=place, requires_grad=True)
    product = bitsandbytes.matmul_4bit(tokens, packed.t(), quant_state=state)
    product.sum().backward()
    assert tokens.grad is not None
    _check(product.sum().item(), 4.0 * _SIZE**2)
    _check(tokens.grad.sum().item(), 4.0 * _SIZE**2)


def _int8(bitsandbytes: Any, place: str) -> None:
    import torch

    layer = bitsandbytes.nn.Linear8bitLt(_SIZE, _SIZE, bias=False, has_fp16_weights=False, threshold=6.0)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    layer = layer.to(place).requires_grad_(False)
    dtype = torch.float32 if place == "cpu" else torch.float16
    tokens = torch.ones(4, _SIZE, device=place, dtype=dtype, requires_grad=True)
    product = layer(tokens)
    product.float().sum().backward()
    assert tokens.grad is not None
    _check(product.float().sum().item(), 4.0 * _SIZE**2)
    _check(tokens.grad.float().sum().item(), 4.0 * _SIZE**2)


def _onnxruntime(onnxruntime: Any, hardware: str) -> None:
    _tell(about=f"onnxruntime {onnxruntime.__version__}")
    providers = [name for name in onnxruntime.get_available_providers() if name in _PROVIDERS]
    if hardware == "cpu":
        providers = [name for name in providers if name == "CPUExecutionProvider"]
    for provider in providers:
        _try(f"matrix product by {provider}", lambda name=provider: _onnx_product(onnxruntime, name))  # type: ignore[misc]


_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")


def _onnx_product(onnxruntime: Any, provider: str) -> None:
    import numpy as np

    session = onnxruntime.InferenceSession(_onnx_model(), providers=[provider])
    if provider not in session.get_providers():
        raise RuntimeError("it cannot be loaded: the log above says why")
    a, b = np.ones((_SIZE, _SIZE), np.float32), np.full((_SIZE, _SIZE), 2.0, np.float32)
    (c,) = session.run(None, {"a": a, "b": b})
    _check(float(c.sum()), 2.0 * _SIZE**3)


def _onnx_model() -> bytes:
    """Returns an ONNX model that multiplies two matrices: few enough bytes to write without a library (onnx.proto)."""
    node = b"".join((_field(1, b"a"), _field(1, b"b"), _field(2, b"c"), _field(4, b"MatMul")))
    graph = b"".join(
        (_field(1, node), _field(2, b"product"), *(_field(11, _onnx_matrix(n)) for n in (b"a", b"b")))
    ) + _field(12, _onnx_matrix(b"c"))
    opset = _number(2, 13)
    return _number(1, 8) + _field(7, graph) + _field(8, opset)


def _onnx_matrix(name: bytes) -> bytes:
    dimension = _field(1, _number(1, _SIZE))
    tensor = _number(1, 1) + _field(2, dimension + dimension)  # element type 1: float
    return _field(1, name) + _field(2, _field(1, tensor))


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    digits = b""
    while value > 0x7F:
        digits += struct.pack("B", value & 0x7F | 0x80)
        value >>= 7
    return digits + struct.pack("B", value)


def _place(hardware: str) -> tuple[str, float]:
    """Returns where to compute, and the GPU's compute capability; says why it is not a GPU."""
    if hardware == "cpu":
        return "cpu", 0.0
    from edgefed.training.probe import read_gpu

    gpu, why = read_gpu()
    if gpu is None:
        if hardware == "cuda":
            _tell(failed="find a GPU", why=why)
        else:
            _tell(about=f"computes on the CPU: {why}")
        return "cpu", 0.0
    _tell(about=f"{gpu.name}, compute capability {gpu.compute_capability}")
    return "cuda", gpu.compute_capability


def _try(kernel: str, run: Callable[[], None]) -> None:
    _tell(begin=kernel)
    try:
        run()
    except (RuntimeError, NotImplementedError, ArithmeticError, AttributeError, AssertionError, ImportError) as error:
        _tell(failed=kernel, why=_said(error))
    else:
        _tell(ran=kernel)


def _check(found: float, expected: float) -> None:
    if abs(found - expected) > 0.01 * expected:
        raise ArithmeticError(f"the result is {found:g}, and should be {expected:g}")


def _said(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _tell(**line: object) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
