"""Requests over gRPC that no server should take, made at random: messages as bytes.

Each kind is wrong whatever is drawn: a server that answers one with scores has a fault.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

INFER = "/inference.GRPCInferenceService/ModelInfer"
SIZE = 32 * 32 * 3


def request(seed: int) -> tuple[bytes, str]:
    """The bytes of a message, and what is wrong with it."""
    generator = random.Random(seed)
    make = _KINDS[seed % len(_KINDS)]
    return make(generator), f"{make.__name__.strip('_')}, seed {seed}"


def well_formed() -> bytes:
    """A message with nothing wrong, made by the same means."""
    return _message().SerializeToString()


def negative_sides() -> bytes:
    """A message that server 2.51 hands on where a model takes images of any size."""
    return _message(shape=(1, -32, -32, 3)).SerializeToString()


def answer(channel: grpc.Channel, data: bytes, seconds: float = 20.0) -> grpc.StatusCode:
    """The status that a server answers with."""
    call = channel.unary_unary(INFER)  # without serialisers it sends and returns bytes
    try:
        call(data, timeout=seconds)
    except grpc.RpcError as error:
        return error.code()  # type: ignore[attr-defined]
    return grpc.StatusCode.OK


def _message(
    shape: tuple[int, ...] = (1, 32, 32, 3),
    kind: str = "UINT8",
    tensor: bytes = bytes(SIZE),
    name: str = "images",
) -> Any:
    whole = service_pb2.ModelInferRequest(model_name="odin")
    given = whole.inputs.add(name=name, datatype=kind)
    given.shape.extend(shape)
    whole.raw_input_contents.append(tensor)
    return whole


def _random_bytes(generator: random.Random) -> bytes:
    return b"\xff" + generator.randbytes(generator.randrange(4000))


def _cut_message(generator: random.Random) -> bytes:
    whole = well_formed()
    return whole[: generator.randrange(20, len(whole) - 1)]


def _wrong_shape(generator: random.Random) -> bytes:
    shapes: list[tuple[int, ...]] = [
        (1, 32, 32),
        (1, 32, 32, 4),
        (1, 3, 32, 32),
        (-1, 32, 32, 3),
        (1, -32, -32, 3),
        (2**31, 32, 32, 3),
        (2**62, 2**62, 2**62, 3),
        (1, generator.randrange(1, 31), 32, 3),
        (),
    ]
    return _message(shape=generator.choice(shapes)).SerializeToString()


def _wrong_type(generator: random.Random) -> bytes:
    kinds = ["FP32", "INT64", "BYTES", "BOOL", "FP16", "uint8", "", "TYPE_UINT8", "\x00"]
    return _message(kind=generator.choice(kinds)).SerializeToString()


def _wrong_tensor(generator: random.Random) -> bytes:
    """Too short or too long for its shape."""
    size = generator.choice([generator.randrange(SIZE), generator.randrange(SIZE + 1, 3 * SIZE)])
    return _message(tensor=generator.randbytes(size)).SerializeToString()


def _two_tensors(_: random.Random) -> bytes:
    """The pixels twice: as bytes, and as numbers."""
    whole = _message()
    whole.inputs[0].contents.uint_contents.extend([0] * SIZE)
    return whole.SerializeToString()


def _wrong_name(generator: random.Random) -> bytes:
    name = "".join(chr(generator.randrange(1, 0x2000)) for _ in range(generator.randrange(1, 300)))
    return _message(name=name).SerializeToString()


def _no_input(_: random.Random) -> bytes:
    return service_pb2.ModelInferRequest(model_name="odin").SerializeToString()


def _wrong_model(generator: random.Random) -> bytes:
    whole = _message()
    whole.model_name, whole.model_version = generator.choice(
        [("nobody", ""), ("odin", "9"), ("odin", "x"), ("", ""), ("odin", "-1"), ("../odin", "")]
    )
    return whole.SerializeToString()


def _wrong_output(_: random.Random) -> bytes:
    whole = _message()
    whole.outputs.add(name="nothing")
    return whole.SerializeToString()


_KINDS: tuple[Callable[[random.Random], bytes], ...] = (
    _random_bytes,
    _cut_message,
    _wrong_shape,
    _wrong_type,
    _wrong_tensor,
    _two_tensors,
    _wrong_name,
    _no_input,
    _wrong_model,
    _wrong_output,
)
