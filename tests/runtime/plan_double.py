"""A test double of TensorRT plans, for the test double of the driver: nothing here is a GPU.

A plan's work is queued as a launch of a kernel of its own, so that it has its place in the stream's
order and in captured graphs. When its turn comes, ONNX Runtime runs the ONNX file on the host
memory that stands for the device's. The other kernels are run by their host twins.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import struct
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drivers.double_library import IMAGE, NAME, Double, Launch
from drivers.kernel_backends import run_twins
from odin_engines.bundle import Bundle, read_bundle
from odin_engines.errors import OdinError
from odin_engines.plan import Tensor
from odin_engines.plan_records import Limits, PlanRecord
from odin_engines.plan_sets import form_graphs
from odin_runtime.driver import Driver, open_driver
from odin_runtime.gpu_forms import Device, Form
from odin_runtime.gpu_fused import Fused
from odin_runtime.gpu_pipeline import Pipeline
from odin_runtime.gpu_split import Split

GRAPHS = ("odin.onnx", "gradient.onnx", "forward.onnx")
MOST = 4
WORK_BYTES = {name: 1024 * size for size, name in enumerate(GRAPHS, 1)}
WORK = "the memory that it works in"
TWINS = Path("runtime") / "libodin_kernels.so"  # in a build folder, and in that of the tests
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
}


def shared_folder() -> Path:
    """What the tests have left for the scenarios: it lies beside the double."""
    return Path(os.environ["LD_LIBRARY_PATH"].split(os.pathsep)[0]) / "pipelines"


def memory(address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """The double's device memory as an array."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    space = (ctypes.c_uint8 * size).from_address(address)
    return np.ctypeslib.as_array(space).view(dtype).reshape(shape) if size else np.empty(shape)


class Taken:
    """Takes the place of the double where somebody wants to stand for its kernels."""

    def __init__(self, double: Double) -> None:
        self.declare, self.live = double.declare, double.live
        self.run: Callable[[Launch], object] = print

    def on_launch(self, do: Callable[[Launch], object]) -> None:
        self.run = do


class Machine:
    """The double's device: it runs plans and kernels. Close it before the driver."""

    def __init__(
        self, double: Double, driver: Driver, kernels: Callable[[Any], object] | None = None
    ) -> None:
        self.driver = driver
        self._kernels: Any = Taken(double)
        if kernels is not None:
            kernels(self._kernels)
        else:
            run_twins(self._kernels, shared_folder() / TWINS)
        self.library = ctypes.CDLL(NAME)
        self._double = double
        self._queued: list[tuple[Any, dict[str, int], dict[str, tuple[int, ...]]]] = []
        self.worked_in: set[int] = set()  # addresses of the memory that plans were given
        plans = {f"plan_{name.partition('.')[0]}": [8] for name in GRAPHS}
        double.declare(plans)
        double.on_launch(self._run)
        self._module = ctypes.c_void_p()
        with driver.current():
            self._primary = self._context()
            self._call("cuModuleLoadData", ctypes.byref(self._module), IMAGE)
        try:
            self.functions = {name: self._function(name) for name in plans}
        except OdinError:
            self.close()
            raise

    def _call(self, function: str, *arguments: Any) -> None:
        status = getattr(self.library, function)(*arguments)
        if status:
            raise OdinError(f"{function} of the plan's double: CUDA error {status}")

    def _function(self, name: str) -> ctypes.c_void_p:
        function = ctypes.c_void_p()
        with self.driver.current():
            self._call("cuModuleGetFunction", ctypes.byref(function), self._module, name.encode())
        return function

    def _context(self) -> int | None:
        """The current one."""
        context = ctypes.c_void_p()
        self._call("cuCtxGetCurrent", ctypes.byref(context))
        return context.value

    def freed(self, plan: FakePlan) -> None:
        """What TensorRT frees then, it frees in the context that is current."""
        if self._context() != self._primary:
            self._double.faults.append(f"{plan.file.name} is freed outside of its CUDA context")

    def close(self) -> None:
        with self.driver.current():
            self._call("cuModuleUnload", self._module)

    def is_capturing(self, stream: int) -> bool:
        status = ctypes.c_int()
        self._call("cuStreamIsCapturing", ctypes.c_void_p(stream), ctypes.byref(status))
        return status.value != 0

    def queue(self, plan: FakePlan, addresses: Any, shapes: Any, work: int, stream: int) -> None:
        """Queue a plan; the context has to be current, as for TensorRT."""
        assert self._context() == self._primary
        self.worked_in.add(work)
        self._queued.append((weakref.ref(plan), {**addresses, WORK: work}, dict(shapes)))
        ticket = ctypes.c_int64(len(self._queued) - 1)
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(ticket))
        function = self.functions[f"plan_{plan.file.name.partition('.')[0]}"]
        handle = ctypes.c_void_p(stream)
        self._call("cuLaunchKernel", function, 1, 1, 1, 1, 1, 1, 0, handle, pointers, None)

    def _run(self, launch: Launch) -> None:
        if not launch.name.startswith("plan_"):
            self._kernels.run(launch)
            return
        alive, addresses, shapes = self._queued[struct.unpack("q", launch.parameters)[0]]
        plan: FakePlan | None = alive()
        assert plan is not None, "a plan was freed before its run was done"
        work = memory(addresses[WORK], (plan.work_bytes,), np.uint8)
        work[...] = 0xA5  # before and after: it must hold neither what is read nor what is written
        feeds = {
            name: memory(addresses[name], shapes.get(name, tensor.shape), tensor.dtype).copy()
            for name, tensor in plan.inputs.items()
        }
        if feeds["images"].dtype == np.float32:  # a plan may lose NaN: max(NaN, 0) can be 0
            feeds["images"] = np.nan_to_num(feeds["images"], nan=0.0, posinf=0.0, neginf=0.0)
        names = list(plan.outputs)
        for name, values in zip(names, plan.session.run(names, feeds), strict=True):
            memory(addresses[name], values.shape, plan.outputs[name].dtype)[...] = values
        work[...] = 0xA5


@functools.cache
def session_of(file: Path) -> Any:
    """ONNX Runtime on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


class FakePlan:
    """See `odin_engines.plan.Plan`."""

    def __init__(self, machine: Machine, file: Path, batches: tuple[int, int]) -> None:
        self.file = file
        self._machine, self._batches = machine, batches
        self.session = session_of(file)
        self.work_bytes = WORK_BYTES[file.name]
        self.inputs = {one.name: self._tensor(one) for one in self.session.get_inputs()}
        self.outputs = {one.name: self._tensor(one) for one in self.session.get_outputs()}
        self._last: tuple[dict[str, tuple[int, ...]], int] | None = None

    def __del__(self) -> None:
        self._machine.freed(self)

    def _tensor(self, one: Any) -> Tensor:
        dtype = _DTYPES[one.type]
        if one.name != "images":
            return Tensor(one.name, dtype, tuple(one.shape))
        channels_last = dtype == "uint8"
        shapes = [
            (count, side, side, 3) if channels_last else (count, 3, side, side)
            for count, side in zip((self._batches[0], *self._batches), (32, 32, 40), strict=True)
        ]
        return Tensor("images", dtype, (-1,) * 4, Limits(*shapes))

    def another(self) -> FakePlan:
        return FakePlan(self._machine, self.file, self._batches)

    def output_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """A size that varies is that of the images along the same axis."""
        images = shapes["images"]
        return {
            one.name: tuple(
                size if isinstance(size, int) else images[axis]
                for axis, size in enumerate(one.shape)
            )
            for one in self.session.get_outputs()
        }

    def capturable(self, stream: int) -> bool:
        return self._last is not None

    def enqueue(
        self,
        addresses: Mapping[str, int],
        shapes: Mapping[str, tuple[int, ...]],
        work: int,
        stream: int,
    ) -> None:
        assert addresses.keys() == self.inputs.keys() | self.outputs.keys()
        limits = self.inputs["images"].limits
        assert shapes.keys() == {"images"} and limits is not None
        assert limits.hold(shapes["images"]), f"{shapes} is outside of {limits}"
        places = {**addresses, WORK: work}
        crooked = [name for name, address in places.items() if address % 256]
        assert not crooked, f"{crooked} are not aligned to 256 bytes"
        last, self._last = self._last, (dict(shapes), work)
        if self._machine.is_capturing(stream):
            assert last == self._last, "captured before this context ran so once"
        self._machine.queue(self, addresses, shapes, work, stream)


def fake_records(
    graphs: Mapping[str, bytes], forms: Sequence[str], batches: tuple[int, int] = (1, MOST)
) -> tuple[dict[str, bytes], tuple[PlanRecord, ...]]:
    """What a bundle says of plans of these forms, and files that stand for the plans."""
    limits = Limits((batches[0], 3, 32, 32), (batches[0], 3, 32, 32), (batches[1], 3, 40, 40))
    names = {"fused": GRAPHS[:1], "split": GRAPHS[1:]}
    records = tuple(
        PlanRecord(
            file=f"{graph.removesuffix('.onnx')}.trt.plan",
            form=form,
            engine="trt",
            version="0",
            device="",
            compute_capabilities=("9.0",),
            precision="fp32",
            profile={"images": limits},
            tf32=False,
            optimization_level=None,
            hardware_compatibility="none",
            graph=graph,
            graph_sha256=hashlib.sha256(graphs[graph]).hexdigest(),
        )
        for form in forms
        for graph in names[form]
    )
    return {record.file: b"plan" for record in records}, records


def fake_plans(
    machine: Machine, bundle: Bundle, form: str, batches: tuple[int, int]
) -> Callable[[Device], Form]:
    """What Pipeline takes: a function that makes the form."""

    def make(device: Device) -> Form:
        plans: dict[str, Any] = {
            name: FakePlan(machine, bundle.path / name, batches)
            for name in form_graphs(form, bundle.spec)
        }
        return Fused(device, plans["odin.onnx"]) if form == "fused" else Split(device, plans)

    return make


def bundle_of(kind: str) -> Bundle:
    """A bundle that the tests have left."""
    return read_bundle(shared_folder() / kind)


def example_images() -> dict[str, np.ndarray]:
    """The images that the tests have left: `raw`, `normalised`."""
    with np.load(shared_folder() / "images.npz") as file:
        return dict(file)


class Opened:
    """A pipeline on the double, with everything below it. Leaving it closes all."""

    def __init__(
        self,
        double: Double,
        driver: str,
        kind: str,
        form: str,
        *,
        batches: tuple[int, int] = (1, MOST),
        kernels: Callable[[Any], object] | None = None,
        **options: Any,
    ) -> None:
        self.driver = open_driver(driver)
        self.machine: Machine | None = None
        self.pipeline: Pipeline | None = None
        bundle = bundle_of(kind)
        try:
            self.machine = Machine(double, self.driver, kernels)
            make = fake_plans(self.machine, bundle, form, batches)
            self.pipeline = Pipeline(self.driver, IMAGE, bundle.spec, make, **options)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Pipeline:
        assert self.pipeline is not None
        return self.pipeline

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        try:
            if self.pipeline is not None:
                self.pipeline.close()
        finally:
            try:
                if self.machine is not None:
                    self.machine.close()
            finally:
                self.driver.close()


def as_lists(results: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """For JSON."""
    return {name: np.asarray(values).tolist() for name, values in results.items()}
