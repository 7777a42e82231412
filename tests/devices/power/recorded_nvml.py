"""In the place of `pynvml`: the answers of a file in tests/fixtures/nvml, each of which says where they are from."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

FIXTURES = Path(__file__).parents[2] / "fixtures" / "nvml"


class NVMLError(Exception):
    """Root of the library's errors."""


ERRORS = {
    "NotSupported": "Not Supported",
    "FunctionNotFound": "Function Not Found",
    "LibraryNotFound": "NVML Shared Library Not Found",
    "GpuIsLost": "GPU is lost",
}


class RecordedNvml:
    """The answers of some machines' GPUs; `asked` counts the calls, and `answers` may be changed while it runs."""

    NVMLError = NVMLError

    def __init__(self, *names: str, init: str | None = None) -> None:
        records = [json.loads((FIXTURES / f"{name}.json").read_text()) for name in names]
        self.driver = [path for record in records for path in record["driver"]]
        self.answers: list[dict[str, Any]] = [gpu for record in records for gpu in record["gpus"]]
        self.asked: Counter[str] = Counter()
        self._init = init

    def lay_out(self, root: Path) -> Path:
        """Makes the files that the driver would show."""
        for path in self.driver:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).touch()
        return root

    def nvmlInit(self) -> None:  # noqa: N802
        if self._init is not None:
            raise NVMLError(ERRORS[self._init])

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.answers)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def answer(handle: int, *_: int) -> Any:
            self.asked[name] += 1
            said = self.answers[handle][name]
            if isinstance(said, str) and said in ERRORS:
                raise NVMLError(ERRORS[said])
            return SimpleNamespace(**said) if isinstance(said, dict) else said

        if not any(name in gpu for gpu in self.answers):
            raise AttributeError(f"module 'pynvml' has no attribute {name!r}")
        return answer
