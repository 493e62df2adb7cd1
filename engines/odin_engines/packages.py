"""Which Python packages are installed, found without importing them."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata


def version_of(distribution: str) -> str | None:
    """Return the version of an installed distribution, by the name that pip knows; None if absent.

    A distribution is what pip installs: several may install the same module.
    """
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def install_command() -> str:
    """What installs everything that exporting and measuring needs.

    The extra `cpu` would overwrite onnxruntime-gpu with the onnxruntime of the CPU.
    """
    extra = "bench" if version_of("onnxruntime-gpu") else "cpu"
    return f"pip install 'odin-ood[{extra}]'"


def installed(distributions: Iterable[str]) -> dict[str, str]:
    """Return the versions of those that are installed, by name."""
    found = {name: version_of(name) for name in distributions}
    return {name: version for name, version in found.items() if version is not None}
