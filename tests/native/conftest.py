"""The fixtures of fixtures.py, for the tests of this folder."""

from __future__ import annotations

from native.fixtures import build_once, cuda_build, host_build, twins

__all__ = ["build_once", "cuda_build", "host_build", "twins"]
