"""A test double of the parts of TensorRT's Python module that run a plan. It computes nothing.

Engines and contexts keep what they are told; `refuse` names the call that answers False or None.
That these names exist in the real module is what test_tensorrt_names.py checks.
"""

from __future__ import annotations

import enum
import functools
from types import SimpleNamespace
from typing import Any

__version__ = "11.4.0.106"


class TensorIOMode(enum.Enum):
    NONE, INPUT, OUTPUT = range(3)


class DataType(enum.Enum):
    FLOAT, HALF, BF16, INT64, UINT8 = range(5)


class ComputeCapability(enum.Enum):
    NONE, CURRENT, SM75, SM80, SM86, SM89, SM120, SM121 = range(8)


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)


class DynamicShapesKernelSpecializationStrategy(enum.Enum):
    LAZY, EAGER, NONE = range(3)


class ILogger:
    ERROR, INTERNAL_ERROR, WARNING, INFO = "error", "internal error", "warning", "info"


NOT_CAPTURABLE = 99  # a stream
# name: (mode, type, shape, profile)
TENSORS: dict[str, Any] = {
    "images": (
        TensorIOMode.INPUT,
        DataType.FLOAT,
        (-1, 3, -1, -1),
        [(1, 3, 32, 32), (4, 3, 32, 32), (8, 3, 40, 40)],
    ),
    "temperature": (TensorIOMode.INPUT, DataType.FLOAT, (), None),
    "score": (TensorIOMode.OUTPUT, DataType.FLOAT, (-1,), None),
    "label": (TensorIOMode.OUTPUT, DataType.INT64, (-1,), None),
    "gradient": (TensorIOMode.OUTPUT, DataType.BF16, (-1, 3, -1, -1), None),
}


def make(
    refuse: str = "",
    log: str = "Error Code 3: API Usage Error (this is why)",
    rtx: bool = False,
) -> Any:
    """Return the module, or that of TensorRT for RTX.

    Its `calls` holds what contexts were told, in order, and `configs` what they were made with: a
    strategy, or with TensorRT for RTX a configuration.
    """
    configs: list[Any] = []
    calls: list[tuple[Any, ...]] = []

    class Context:
        def __init__(self, number: int, logger: Any) -> None:
            self.number, self.logger, self.shapes = number, logger, {}
            self.memory: tuple[int, int] | None = None
            if rtx:
                self.is_stream_capturable = lambda stream: stream != NOT_CAPTURABLE

        def _answer(self, name: str, *arguments: Any) -> bool:
            calls.append((self.number, name, *arguments))
            if name != refuse:
                return True
            self.logger.log(ILogger.WARNING, "never mind")
            self.logger.log(ILogger.ERROR, log)
            return False

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            self.shapes[name] = shape
            return self._answer("set_input_shape", name, shape)

        def set_device_memory(self, memory: int, size: int) -> None:
            self.memory = memory, size
            self._answer("set_device_memory", memory, size)

        def set_tensor_address(self, name: str, memory: int) -> bool:
            return self._answer("set_tensor_address", name, memory)

        def execute_async_v3(self, stream_handle: int) -> bool:
            assert self.memory is not None and self.memory[1] >= Engine.device_memory_size_v2
            return self._answer("execute_async_v3", stream_handle) and refuse != "set_device_memory"

        def infer_shapes(self) -> list[str]:
            if not self._answer("infer_shapes"):
                raise RuntimeError("Shape inference failed")
            return ["temperature"] if refuse == "all shapes" else []

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            batch, _, height, width = self.shapes["images"]
            return {"gradient": (batch, 3, height, width)}.get(name, (batch,))

    class Engine:
        num_io_tensors = len(TENSORS)
        device_memory_size_v2 = 123_000_000

        def __init__(self, logger: Any) -> None:
            self.logger, self.contexts = logger, 0

        def create_runtime_config(self) -> Any:
            assert rtx
            config = SimpleNamespace(strategy=ExecutionContextAllocationStrategy.STATIC)
            config.set_execution_context_allocation_strategy = functools.partial(
                setattr, config, "strategy"
            )
            return config

        def create_execution_context(self, with_: Any = None) -> Context | None:
            configs.append(with_)
            strategy = with_.strategy if rtx else with_
            assert strategy is ExecutionContextAllocationStrategy.USER_MANAGED
            self.contexts += 1
            if refuse == f"context {self.contexts}":
                self.logger.log(ILogger.ERROR, "Error Code 2: OutOfMemory (Requested size was 5)")
                return None
            return Context(self.contexts, self.logger)

        def get_tensor_name(self, index: int) -> str:
            return list(TENSORS)[index]

        def get_tensor_mode(self, name: str) -> TensorIOMode:
            return TENSORS[name][0]

        def get_tensor_dtype(self, name: str) -> DataType:
            return TENSORS[name][1]

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return TENSORS[name][2]

        def get_tensor_profile_shape(self, name: str, profile_index: int) -> Any:
            assert profile_index == 0
            return TENSORS[name][3]

    class Runtime:
        def __init__(self, logger: Any) -> None:
            if refuse == "Runtime":
                raise TypeError("factory function returned nullptr")
            self.logger = logger

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> Engine | None:
            if refuse == "deserialize_cuda_engine":
                self.logger.log(ILogger.INTERNAL_ERROR, log)
                return None
            return Engine(self.logger)

    rtx_alone: dict[str, Any] = {
        "ComputeCapability": ComputeCapability,
        "DynamicShapesKernelSpecializationStrategy": DynamicShapesKernelSpecializationStrategy,
    }
    return SimpleNamespace(
        __version__=__version__,
        ILogger=ILogger,
        TensorIOMode=TensorIOMode,
        DataType=DataType,
        ExecutionContextAllocationStrategy=ExecutionContextAllocationStrategy,
        Runtime=Runtime,
        calls=calls,
        configs=configs,
        **(rtx_alone if rtx else {}),
    )
