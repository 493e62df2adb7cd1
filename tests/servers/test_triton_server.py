"""A real Triton server with our repository: HTTP and gRPC, many clients, wrong requests, restart.

    pytest --run-slow tests/servers

The first run makes the server's environment, which takes minutes.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from odin_engines.bundle import Bundle
from odin_export import triton
from odin_runtime.scorer import Scorer
from servers import environment
from servers.clients import Client, same
from servers.environment import Environment, Server

pytestmark = pytest.mark.slow

PROTOCOLS = ("http", "grpc")
CLIENTS = 16
# What the tests put in place of a backend that this server lacks.
_ONNX_RUNTIME = """
from pathlib import Path

import onnxruntime
import triton_python_backend_utils as triton


class TritonPythonModel:
    def initialize(self, args):
        file = Path(args["model_repository"], args["model_version"], "model.onnx")
        self._session = onnxruntime.InferenceSession(file)

    def execute(self, requests):
        names = [output.name for output in self._session.get_outputs()]
        inputs = [given.name for given in self._session.get_inputs()]
        answers = []
        for each in requests:
            feeds = {n: triton.get_input_tensor_by_name(each, n).as_numpy() for n in inputs}
            found = self._session.run(names, feeds)
            tensors = [triton.Tensor(n, v) for n, v in zip(names, found)]
            answers.append(triton.InferenceResponse(tensors))
        return answers
"""


@pytest.fixture(scope="module")
def known(local: Scorer, images: np.ndarray) -> dict[str, np.ndarray]:
    found = local.score(images).arrays()
    assert 0 < found["is_ood"].sum() < len(images)
    return found


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_scores_are_the_local_ones(
    server: Server, images: np.ndarray, known: dict[str, np.ndarray], protocol: str
) -> None:
    with Client(server, protocol) as client:
        for place in range(3):
            part = slice(place, place + 1)
            same(client.score(images[part]), known, part)
        for count in (2, 7, len(images)):
            same(client.score(images[:count]), known, slice(count))
        same(client.score(images[:5], model="odin_python"), known, slice(5))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_many_clients_at_once(
    server: Server, images: np.ndarray, known: dict[str, np.ndarray], protocol: str
) -> None:
    def work(number: int) -> int:
        generator = np.random.default_rng(number)
        with Client(server, protocol) as client:
            for _ in range(6):
                start = int(generator.integers(len(images) - 8))
                part = slice(start, start + int(generator.integers(1, 8)))
                same(client.score(images[part]), known, part)
        return number

    with ThreadPoolExecutor(CLIENTS) as pool:
        assert sorted(pool.map(work, range(CLIENTS))) == list(range(CLIENTS))


WRONG = {
    "no batch axis": (np.zeros((32, 32, 3), np.uint8), "unexpected shape|expected 4 dim"),
    "channels first": (np.zeros((1, 3, 32, 32), np.uint8), "unexpected shape"),
    "one channel": (np.zeros((2, 32, 32, 1), np.uint8), "unexpected shape"),
    "floats": (np.zeros((1, 32, 32, 3), np.float32), "data-type|datatype"),
    "whole numbers": (np.zeros((1, 32, 32, 3), np.int64), "data-type|datatype"),
    "too many": (np.zeros((65, 32, 32, 3), np.uint8), "batch-size must be <= 64"),
    "too small": (np.zeros((2, 8, 32, 3), np.uint8), "8 pixels high, where densenet10 takes 32"),
    "too large": (np.zeros((2, 32, 300, 3), np.uint8), "300 pixels wide"),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("case", WRONG)
def test_wrong_images_are_refused(server: Server, case: str, protocol: str) -> None:
    utils = pytest.importorskip("tritonclient.utils")
    array, message = WRONG[case]
    with (
        Client(server, protocol) as client,
        pytest.raises(utils.InferenceServerException, match=message),
    ):
        client.score(array)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_wrong_names_are_refused(server: Server, images: np.ndarray, protocol: str) -> None:
    utils = pytest.importorskip("tritonclient.utils")
    with Client(server, protocol) as client:
        for wrong in ({"name": "pixels"}, {"model": "nobody"}, {"outputs": ["scores"]}):
            with pytest.raises(utils.InferenceServerException):
                client.score(images[:1], **wrong)  # type: ignore[arg-type]


def test_a_wrong_size_harms_no_request_beside_it(
    server: Server, images: np.ndarray, known: dict[str, np.ndarray]
) -> None:
    utils = pytest.importorskip("tritonclient.utils")

    def work(number: int) -> bool:
        with Client(server) as client:
            for _ in range(4):
                if number % 2:
                    with pytest.raises(utils.InferenceServerException, match="9 pixels high"):
                        client.score(np.zeros((1, 9, 9, 3), np.uint8))
                else:
                    same(
                        client.score(images[number : number + 2]), known, slice(number, number + 2)
                    )
        return True

    with ThreadPoolExecutor(CLIENTS) as pool:
        assert all(pool.map(work, range(CLIENTS)))


def test_what_the_server_says_of_the_model(server: Server, bundle: Bundle) -> None:
    with Client(server) as client:
        metadata = client.connection.get_model_metadata("odin")
        config = client.connection.get_model_config("odin_python")
    outputs = {each["name"]: each["datatype"] for each in metadata["outputs"]}
    assert outputs["is_ood"] == "BOOL"
    assert outputs["label"] == "INT64"
    assert metadata["inputs"][0]["shape"] == [-1, -1, -1, 3]
    told = {key: value["string_value"] for key, value in config["parameters"].items()}
    assert told["odin.checkpoint_sha256"] == bundle.spec.checkpoint_sha256
    assert float(told["odin.threshold"]) == bundle.spec.threshold


def counts(server: Server) -> dict[str, float]:
    """Our metrics of odin_python, by name and, of a bucket, its end."""
    found = {}
    for line in server.page_of_metrics().splitlines():
        parsed = re.fullmatch(r"(odin_\w+)\{(.*)\} (\S+)", line)
        if parsed:
            labels = dict(re.findall(r'(\w+)="([^"]*)"', parsed[2]))
            assert labels.pop("model") == "odin_python"
            assert labels.pop("version") == "1"
            found[" ".join([parsed[1], *labels.values()])] = float(parsed[3])
    return found


def test_metrics(server: Server, images: np.ndarray, known: dict[str, np.ndarray]) -> None:
    utils = pytest.importorskip("tritonclient.utils")
    before = counts(server)
    with Client(server) as client:
        client.score(images[:10])
        client.score(images[10:30])
        with pytest.raises(utils.InferenceServerException):
            client.score(np.zeros((1, 9, 9, 3), np.uint8))
    after = counts(server)
    added = {name: after[name] - before[name] for name in after}
    scores, flagged = known["score"][:30], known["is_ood"][:30]
    assert added["odin_requests_total"] == 2
    assert added["odin_failed_requests_total"] == 1
    assert added["odin_images_total"] == 30
    assert added["odin_flagged_images_total"] == flagged.sum()
    assert added["odin_score_count"] == added["odin_score_bucket +Inf"] == 30
    assert added["odin_score_sum"] == pytest.approx(scores.astype(float).sum(), abs=1e-4)
    assert added["odin_request_seconds_count"] == added["odin_request_seconds_bucket +Inf"] == 2
    ends = [name.split()[1] for name in added if name.startswith("odin_score_bucket")]
    assert len(ends) > 5
    for end in ends:
        # A score on a bucket's very end may fall to either side.
        allowed = [(scores <= float(end) + move).sum() for move in (-1e-6, 1e-6)]
        assert allowed[0] <= added[f"odin_score_bucket {end}"] <= allowed[1]


def test_restart(
    triton_environment: Environment,
    repository: Path,
    images: np.ndarray,
    known: dict[str, np.ndarray],
    tmp_path: Path,
) -> None:
    """The same folder and ports, a new server; the clients need no change."""
    ports = environment.free_ports(3)
    for _ in range(2):
        with (
            environment.serving(triton_environment, repository, tmp_path, ports=ports) as server,
            Client(server) as client,
        ):
            same(client.score(images[:9]), known, slice(9))
        assert server.process.returncode == 0, server.log.read_text("utf-8")[-2000:]
        assert not server.is_ready()


def test_the_ensemble_of_onnx_graphs(
    triton_environment: Environment,
    bundle: Bundle,
    images: np.ndarray,
    known: dict[str, np.ndarray],
    tmp_path: Path,
) -> None:
    """odin_prepare -> odin_onnx -> odin_decide, with ONNX Runtime behind the Python backend.

    The server checks the ensemble's tensors and reshapes the outputs as it would for its own ONNX
    Runtime backend.
    """
    utils = pytest.importorskip("tritonclient.utils")
    folder = tmp_path / "models"
    triton.write(folder, triton.repository(bundle, "onnx", size=(32, 32)))
    for config in folder.glob("*/config.pbtxt"):
        text = config.read_text("utf-8")
        if 'backend: "onnxruntime"' in text:
            config.write_text(text.replace("onnxruntime", "python"), "utf-8")
            (config.parent / "1" / "model.py").write_text(_ONNX_RUNTIME, "utf-8")
    with (
        environment.serving(triton_environment, folder, tmp_path) as server,
        Client(server) as client,
    ):
        for count in (1, 5, len(images)):
            same(client.score(images[:count]), known, slice(count))
        same(
            client.score(images[3:4], model="odin", outputs=["score", "baseline", "label"]),
            known,
            slice(3, 4),
        )
        for array, _ in WRONG.values():
            with pytest.raises(utils.InferenceServerException, match=r"400|INVALID_ARGUMENT"):
                client.score(array)
