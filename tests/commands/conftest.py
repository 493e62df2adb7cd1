"""A network that takes a second to export, its bundle, image sets, and a way to run commands."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from commands.runs import COUNT, Command, Outcome
from odin_engines.bundle import read_bundle
from odin_export import cli as export
from odin_export.networks import NETWORKS, NetworkSpec


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Command:
    """A function: main, arguments -> what it printed and returned."""

    def call(main: Callable[[Sequence[str]], int], *arguments: object) -> Outcome:
        capsys.readouterr()
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # argparse
            status = int(stop.code or 0)
        return Outcome(status, *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def network(tiny_network: nn.Module) -> NetworkSpec:
    return NetworkSpec("tiny10", "Tiny CNN", 10, "cifar10", type(tiny_network), 63)


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: NetworkSpec) -> None:
    """Keep every test in its own folder, off the user's sets and caches."""
    monkeypatch.setitem(NETWORKS, "tiny10", network)
    monkeypatch.delenv("ODIN_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory, tiny_network: nn.Module) -> Path:
    """The tiny network's checkpoint."""
    file = tmp_path_factory.mktemp("weights") / "tiny.pth"
    torch.save(tiny_network.state_dict(), file)
    return file


@pytest.fixture(scope="session")
def bundle(
    tmp_path_factory: pytest.TempPathFactory, weights: Path, network: NetworkSpec
) -> Iterator[Path]:
    """A tunable bundle of the tiny network, as odin-export writes it; tests must not change it."""
    path = tmp_path_factory.mktemp("exported") / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS, "tiny10", network)
        arguments = ["tiny10", "--checkpoint", str(weights), "--output", str(path), "--tunable"]
        assert export.main(arguments) == 0
    yield path
    read_bundle(path)


@pytest.fixture(scope="session")
def sets(tmp_path_factory: pytest.TempPathFactory, raw_images: Callable[..., Any]) -> Path:
    """A folder with sets: in, with labels; near, far and more; large and small pictures."""
    folder = tmp_path_factory.mktemp("sets")
    labels = np.arange(COUNT) % 10
    np.savez(folder / "in.npz", x=raw_images(COUNT, seed=1), y=labels)
    np.savez(folder / "near.npz", x=raw_images(COUNT, seed=2))
    noise = np.random.default_rng(3).integers(0, 256, (COUNT, 32, 32, 3), np.uint8)
    np.savez(folder / "far.npz", x=noise)
    np.savez(folder / "more.npz", x=255 - noise)
    np.savez(folder / "large.npz", x=raw_images(COUNT, 72, 72, seed=4))
    np.savez(folder / "small.npz", x=raw_images(COUNT, 28, 28, seed=5))
    return folder
