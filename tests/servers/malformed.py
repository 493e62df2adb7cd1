"""Requests that no server should take, made at random, over HTTP as bytes.

Each kind is wrong whatever is drawn: a server that answers one with scores has a fault.
"""

from __future__ import annotations

import gzip
import json
import random
import socket
import zlib
from collections.abc import Callable
from typing import Any

INFER = "/v2/models/odin/infer"
SIZE = 32 * 32 * 3
Request = tuple[bytes, str]


def request(seed: int) -> Request:
    """The bytes of a request, and what is wrong with it."""
    generator = random.Random(seed)
    make = _KINDS[seed % len(_KINDS)]
    return make(generator), f"{make.__name__.strip('_')}, seed {seed}"


def is_refusal(status: int, seed: int) -> bool:
    """Whether the request of this seed got an error; what is no whole HTTP may get no answer."""
    return status >= 400 or (status == 0 and _KINDS[seed % len(_KINDS)] in _UNANSWERED)


def well_formed() -> bytes:
    """A request with nothing wrong, made by the same means."""
    return _binary(_sized(SIZE), bytes(SIZE))


def answer(port: int, data: bytes, seconds: float = 20.0) -> int:
    """The status that a server answers with; 0 where it closes the connection without one."""
    with socket.create_connection(("127.0.0.1", port), seconds) as connection:
        received = b""
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while b"\r\n" not in received and (part := connection.recv(4096)):
                received += part
        except ConnectionError:  # it may hang up as soon as it has seen enough
            return _status(received)
    return _status(received)


def _status(received: bytes) -> int:
    words = received.split(b"\r\n", 1)[0].split()
    return int(words[1]) if len(words) > 1 and words[1].isdigit() else 0


def _post(body: bytes, headers: dict[str, Any] | None = None, path: str = INFER) -> bytes:
    lines = {"Host": "localhost", "Content-Length": len(body), "Connection": "close"}
    lines |= headers or {}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body


def _description(shape: list[Any], kind: str = "UINT8", **changes: Any) -> dict[str, Any]:
    tensor = {"name": "images", "shape": shape, "datatype": kind}
    return {"inputs": [{**tensor, **changes}]}


def _binary(description: dict[str, Any], tensor: bytes, **headers: Any) -> bytes:
    head = json.dumps(description).encode()
    length = {"Inference-Header-Content-Length": len(head)}
    return _post(head + tensor, {**length, **{k.replace("_", "-"): v for k, v in headers.items()}})


def _sized(size: int) -> dict[str, Any]:
    return _description([1, 32, 32, 3], parameters={"binary_data_size": size})


def _random_body(generator: random.Random) -> bytes:
    return _post(b"\xff" + generator.randbytes(generator.randrange(4000)))


def _cut_json(generator: random.Random) -> bytes:
    whole = json.dumps(_description([1, 32, 32, 3], data=[0] * SIZE)).encode()
    return _post(whole[: generator.randrange(1, len(whole) - 2)])


def _changed_json(generator: random.Random) -> bytes:
    """One field of a right request is of another kind, or gone."""
    whole = _description([1, 32, 32, 3], data=[7] * SIZE)
    field = generator.choice(["name", "shape", "datatype", "data"])
    if generator.random() < 0.3:
        del whole["inputs"][0][field]
    else:
        wrong = [None, {}, True, "NOTHING", -1.5, [[]], ["x"], [None], {"a": [1]}]
        whole["inputs"][0][field] = generator.choice(wrong)
    return _post(json.dumps(whole).encode())


def _wrong_shape(generator: random.Random) -> bytes:
    shapes = [
        [1, 32, 32],
        [1, 32, 32, 4],
        [1, 3, 32, 32],
        [1, 0, 32, 3],  # [0, 32, 32, 3] is one image to this server's ensembles
        [-1, 32, 32, 3],
        [1, -32, -32, 3],
        [2**31, 32, 32, 3],
        [2**62, 2**62, 2**62, 3],
        [1, generator.randrange(1, 31), 32, 3],
        [],
    ]
    tensor = bytes(SIZE)
    size = {"binary_data_size": len(tensor)}
    return _binary(_description(generator.choice(shapes), parameters=size), tensor)


def _wrong_type(generator: random.Random) -> bytes:
    kinds = ["FP32", "INT64", "BYTES", "BOOL", "FP16", "uint8", "", "TYPE_UINT8"]
    size = {"binary_data_size": SIZE}
    kind = generator.choice(kinds)
    return _binary(_description([1, 32, 32, 3], kind, parameters=size), bytes(SIZE))


def _cut_tensor(generator: random.Random) -> bytes:
    return _binary(_sized(SIZE), generator.randbytes(generator.randrange(SIZE)))


def _cut_tensor_that_says_so(generator: random.Random) -> bytes:
    size = generator.choice([*range(1, 100), *range(SIZE - 100, SIZE)])
    return _binary(_sized(size), bytes(size))


def _wrong_size(generator: random.Random) -> bytes:
    size = generator.choice([-1, -(2**31), 2**31, 2**63, SIZE + 1, "many", None, 0.5])
    return _binary(_sized(size), bytes(SIZE))  # type: ignore[arg-type]


def _wrong_header_length(generator: random.Random) -> bytes:
    length = generator.choice([-1, 1, 10, 2**31, 2**63, 2**70, "x", "0x10"])
    return _binary(_sized(SIZE), bytes(SIZE), Inference_Header_Content_Length=length)


def _cut_connection(generator: random.Random) -> bytes:
    whole = _binary(_sized(SIZE), bytes(SIZE))
    return whole[: generator.randrange(1, len(whole) - 1)]


def _wrong_encoding(generator: random.Random) -> bytes:
    """Said to be compressed, and it is not; or it is, and cut."""
    name = generator.choice(["gzip", "deflate"])
    body = json.dumps(_description([1, 32, 32, 3], data=[1] * SIZE)).encode()
    packed = gzip.compress(body) if name == "gzip" else zlib.compress(body)
    cut = packed[: generator.randrange(4, len(packed) // 2)]
    wrong = generator.choice([cut, b"\x00" + generator.randbytes(60)])
    return _post(wrong, {"Content-Encoding": name})


def _random_headers(generator: random.Random) -> bytes:
    letters = "abcdefghijklmnopqrstuvwxyz-"
    headers = {
        "X-" + "".join(generator.choices(letters, k=generator.randrange(1, 40))): "".join(
            chr(generator.randrange(33, 255)) for _ in range(generator.randrange(200))
        )
        for _ in range(generator.randrange(1, 30))
    }
    return _post(generator.randbytes(50) + b"\xff", headers)


def _unknown_path(generator: random.Random) -> bytes:
    paths = ["/v2/models/nobody/infer", "/v2/models/odin/versions/9/infer", "/v2/models//infer"]
    paths += ["/v2/models/odin/versions/x/infer", "/v3/models/odin/infer", "/" + "a" * 3000, "/%"]
    body = json.dumps(_description([1, 32, 32, 3], data=[0] * SIZE)).encode()
    return _post(body, path=generator.choice(paths))


def _no_http(generator: random.Random) -> bytes:
    return b"\x16\x03" + generator.randbytes(generator.randrange(1, 500)) + b"\r\n\r\n"


_KINDS: tuple[Callable[[random.Random], bytes], ...] = (
    _random_body,
    _cut_json,
    _changed_json,
    _wrong_shape,
    _wrong_type,
    _cut_tensor,
    _cut_tensor_that_says_so,
    _wrong_size,
    _wrong_header_length,
    _cut_connection,
    _wrong_encoding,
    _random_headers,
    _unknown_path,
    _no_http,
)
# Those of which the server may close the connection without a word.
_UNANSWERED = (_cut_connection, _no_http)
