"""Scoring images with an odin-ood bundle."""

from odin_engines.errors import OdinError
from odin_runtime.scorer import Scorer
from odin_runtime.scores import Scores

__all__ = ["OdinError", "Scorer", "Scores"]
