"""A plan, opened: its inputs and outputs, and running it on buffers and streams of the caller."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from odin_engines.errors import OdinError
from odin_engines.plan_messages import Messages, letting_go, make_logger
from odin_engines.plan_records import ENGINE_TITLES, Limits, Shape, shape_text

if TYPE_CHECKING:
    import tensorrt
    import tensorrt_rtx

# What TensorRT calls them, and numpy; numpy itself has no bfloat16.
_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "INT8": "int8",
    "BOOL": "bool",
}


@letting_go
def deserialized(trt: ModuleType, file: Path, content: bytes, engine: str) -> Plan:
    """Make a plan ready to run on the current CUDA device.

    Args:
        trt: the module `tensorrt` or `tensorrt_rtx`.
        file: where the plan was read from; errors name it.
        content: of the file.
        engine: "trt" or "rtx".

    Raises:
        OdinError: TensorRT refuses it, with what it logged.
    """
    title = ENGINE_TITLES[engine]
    remedy = f"odin-export {file.parent} --engine {engine}"
    messages = Messages()
    try:
        runtime: tensorrt.Runtime = trt.Runtime(make_logger(trt, messages))
    except (TypeError, RuntimeError) as error:  # how the bindings tell of a null pointer
        raise OdinError(f"{title} does not start: {messages.reason()}") from error
    opened: tensorrt.ICudaEngine = runtime.deserialize_cuda_engine(content)
    if opened is None:
        raise OdinError(
            f"{title} {trt.__version__} cannot open {file}: {messages.reason()}; build it again on "
            f"this machine with '{remedy}'"
        )
    return Plan(trt, file, opened, messages, remedy)


@dataclass(frozen=True)
class Tensor:
    """An input or output of a plan.

    Attributes:
        name: as in the graph.
        dtype: numpy's name of it, or "bfloat16", which numpy does not have.
        shape: -1 where it varies.
        limits: of an input whose shape varies.
    """

    name: str
    dtype: str
    shape: Shape
    limits: Limits | None = None


class Plan:
    """A plan, opened, with an execution context: what one run at a time needs but for memory.

    The memory that a run works in is the caller's, who may give the same to many contexts as long
    as their runs come one after the other.

    Not safe for several threads, nor for several streams at once: give each its own context, from
    `another`, which shares the weights.

    Its memory on the GPU is freed with the last reference to it, which has to be dropped while its
    CUDA context is current.

    Attributes:
        file: where it was read from.
        inputs, outputs: by name.
        work_bytes: of device memory that a run works in, for the largest shapes.
    """

    def __init__(
        self,
        trt: ModuleType,
        file: Path,
        engine: tensorrt.ICudaEngine,
        messages: Messages,
        remedy: str,
        fixed_shapes: bool = False,
    ) -> None:
        self.file = file
        self._trt, self._engine = trt, engine  # the engine keeps its runtime and logger alive
        self._messages, self._remedy = messages, remedy
        self._shapes: dict[str, Shape] = {}  # that the context was given
        self._work: int | None = None  # the memory that it was given
        self.inputs = {t.name: t for t in _tensors(trt, engine, trt.TensorIOMode.INPUT)}
        self.outputs = {t.name: t for t in _tensors(trt, engine, trt.TensorIOMode.OUTPUT)}
        self.work_bytes = int(engine.device_memory_size_v2)
        messages.clear()
        context: tensorrt.IExecutionContext | None = _context(trt, engine, fixed_shapes)
        if context is None:
            raise OdinError(
                f"no memory on the GPU to run {file} ({messages.reason()}); free some, or build it "
                f"for smaller batches with '{remedy} --maxShapes=...'"
            )
        self._context = context

    def another(self) -> Plan:
        """The same plan with a context of its own, to be run at the same time or captured.

        It is for few shapes: TensorRT for RTX compiles its kernels for each before the first run.

        Raises:
            OdinError: the GPU has no memory for it.
        """
        return Plan(self._trt, self.file, self._engine, self._messages, self._remedy, True)

    def output_shapes(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """Return the shapes of the outputs for inputs of these shapes.

        Raises:
            OdinError: as `enqueue`.
        """
        self._set_shapes(shapes)
        return {name: _shape(self._context.get_tensor_shape(name)) for name in self.outputs}

    def enqueue(
        self,
        addresses: Mapping[str, int],
        shapes: Mapping[str, Shape],
        work: int,
        stream_handle: int,
    ) -> None:
        """Run the plan on a stream; returns before it is done.

        Args:
            addresses: of device memory, for every input and output, by name.
            shapes: of the inputs whose shape varies, by name.
            work: address of `work_bytes` of device memory, a multiple of 256; the run has it for
                itself until it is done.
            stream_handle: a CUstream or cudaStream_t; not the default stream, which would wait for
                all others.

        Raises:
            OdinError: a name is missing or unknown, a shape is out of the plan's limits, or
                TensorRT fails.
        """
        self._set_shapes(shapes)
        wanted = self.inputs.keys() | self.outputs.keys()
        if addresses.keys() != wanted:
            odd = ", ".join(sorted(addresses.keys() ^ wanted))
            raise OdinError(f"{self.file} takes one address for each tensor; look at {odd}")
        self._messages.clear()
        if work != self._work:
            self._work = None  # only the run tells of a refusal
            self._context.set_device_memory(work, self.work_bytes)
        for name, address in addresses.items():
            if not self._context.set_tensor_address(name, address):
                raise OdinError(
                    f"{self.file}: address {address:#x} of {name} is refused: "
                    f"{self._messages.reason()}"
                )
        if not self._context.execute_async_v3(stream_handle):
            raise OdinError(f"{self.file} does not run: {self._messages.reason()}")
        self._work = work

    def capturable(self, stream_handle: int) -> bool:
        """Whether a run like the last one can be captured as a CUDA graph.

        Only TensorRT for RTX tells.
        """
        context: tensorrt_rtx.IExecutionContext = self._context
        if not hasattr(context, "is_stream_capturable"):
            return True
        return bool(context.is_stream_capturable(stream_handle))

    def _set_shapes(self, shapes: Mapping[str, Shape]) -> None:
        varying = {name: t for name, t in self.inputs.items() if t.limits is not None}
        if shapes.keys() != varying.keys():
            odd = ", ".join(sorted(shapes.keys() ^ varying.keys()))
            raise OdinError(f"{self.file} takes shapes of {', '.join(varying)}; look at {odd}")
        for name, shape in shapes.items():
            self._check_limits(varying[name], tuple(shape))
        wanted = {name: tuple(shape) for name, shape in shapes.items()}
        if wanted == self._shapes:
            return
        self._shapes = {}  # until all are set
        self._messages.clear()
        for name, shape in wanted.items():
            if not self._context.set_input_shape(name, shape):
                raise OdinError(
                    f"{self.file}: shape {shape_text(shape)} of {name} is refused: "
                    f"{self._messages.reason()}"
                )
        self._infer_shapes()
        self._shapes = wanted

    def _infer_shapes(self) -> None:
        try:
            unknown = self._context.infer_shapes()
        except RuntimeError as error:  # the one call that raises
            raise OdinError(
                f"{self.file}: no shapes follow from those of its inputs: {self._messages.reason()}"
            ) from error
        if unknown:
            raise OdinError(f"{self.file}: no shape is known of {', '.join(unknown)}")

    def _check_limits(self, tensor: Tensor, shape: Shape) -> None:
        limits = tensor.limits
        assert limits is not None
        if limits.hold(shape):
            return
        asked = f"{tensor.name}:{shape_text(shape)}"
        if len(shape) != len(limits.minimum):
            remedy = f"give {len(limits.minimum)} sizes"
        elif 0 in shape:
            remedy = "what holds no image needs no run"
        elif any(size < least for size, least in zip(shape, limits.minimum, strict=True)):
            remedy = f"build it for that with '{self._remedy} --minShapes={asked}'"
        else:
            remedy = f"build it for that with '{self._remedy} --maxShapes={asked}'"
        raise OdinError(
            f"{self.file} takes {tensor.name} of {shape_text(limits.minimum)} to "
            f"{shape_text(limits.maximum)}, not {shape_text(shape)}; {remedy}"
        )


def _context(
    trt: ModuleType, engine: tensorrt.ICudaEngine, fixed_shapes: bool
) -> tensorrt.IExecutionContext | None:
    """Make an execution context without memory to work in; None if there is none for the rest.

    By itself each would take the memory that the largest shapes need.

    TensorRT for RTX compiles kernels for a shape while others, for any shape, are in use. That is
    right where shapes change all the time; but a CUDA graph would keep the others for ever, and a
    result could change in its last bits when they are exchanged.
    """
    managed = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    if not hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
        return engine.create_execution_context(managed)
    own: tensorrt_rtx.ICudaEngine = engine
    config: tensorrt_rtx.IRuntimeConfig = own.create_runtime_config()
    config.set_execution_context_allocation_strategy(managed)
    if fixed_shapes:
        strategy = trt.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = strategy.EAGER
    return own.create_execution_context(config)


def _tensors(
    trt: ModuleType, engine: tensorrt.ICudaEngine, mode: tensorrt.TensorIOMode
) -> list[Tensor]:
    tensors = []
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        if engine.get_tensor_mode(name) != mode:
            continue
        shape = _shape(engine.get_tensor_shape(name))
        limits = None
        if mode == trt.TensorIOMode.INPUT and -1 in shape:
            limits = Limits(*map(_shape, engine.get_tensor_profile_shape(name, 0)))
        dtype = engine.get_tensor_dtype(name).name
        tensors.append(Tensor(name, _DTYPES.get(dtype, dtype), shape, limits))
    return tensors


def _shape(dims: tensorrt.Dims) -> Shape:
    return tuple(dims[index] for index in range(len(dims)))
