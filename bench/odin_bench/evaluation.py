"""Scoring an in-distribution set against out-of-distribution sets, by the release's protocol."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from odin_bench.datasets import Dataset, Split, protocol_split
from odin_bench.metrics import Grid, Metrics, evaluate, reference_grids
from odin_engines.spec import Spec
from odin_runtime import Scorer, Scores


@dataclass(frozen=True)
class Result:
    """One in-distribution set against one out-of-distribution set.

    Attributes:
        in_dataset, out_dataset: canonical names.
        n_in, n_out: images scored on each side.
        magnitude, temperature: of the ODIN score.
        baseline, odin: metrics, as fractions.
        note: which images were scored, in words.
        accuracy: share of the scored in-distribution images classified rightly, if labels exist.
        scores: metrics of the further scores that the bundle gives, by name.
    """

    in_dataset: str
    out_dataset: str
    n_in: int
    n_out: int
    magnitude: float
    temperature: float
    baseline: Metrics
    odin: Metrics
    note: str
    accuracy: float | None
    scores: dict[str, Metrics] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """What is scored, and how it is judged.

    Attributes:
        temperature, magnitude: of the ODIN score.
        limit: at most this many images a side.
        protocol: "exact" or "reference", see `metrics.evaluate`.
    """

    temperature: float
    magnitude: float
    limit: int
    protocol: str = "exact"


class Evaluation:
    """Scores pairs of sets with one scorer, and the in-distribution images only once.

    Args:
        scorer: a bundle opened in an engine.
        in_set: the in-distribution set, whole.
        progress: called with a title and a number of images; returns what is called after each
            chunk with its number of images.
        size: height and width to which images are scaled; None leaves them as they are.
    """

    def __init__(
        self,
        scorer: Scorer,
        in_set: Dataset,
        progress: Callable[[str, int], Callable[[int], object]],
        size: tuple[int, int] | None = None,
    ) -> None:
        self.scorer = scorer
        self.in_set = in_set
        self.size = size
        self._progress = progress
        self._known: dict[tuple[int, float, float], Scores] = {}

    def run(self, out_set: Dataset, setting: Setting) -> Result:
        """Score the images that the protocol chooses, and judge the scores.

        Raises:
            OdinError: the sets or the images do not fit, or the metrics are not defined.
        """
        split = protocol_split(self.in_set, out_set, limit=setting.limit)
        ins = self._in_scores(split, setting)
        outs = self._score(split.out_set, setting)
        return self.judge(split, ins, outs, setting)

    def judge(self, split: Split, ins: Scores, outs: Scores, setting: Setting) -> Result:
        """Turn the scores of a split into metrics."""
        grids: tuple[Grid | None, Grid | None] = (None, None)
        if setting.protocol == "reference":
            grids = reference_grids(self.scorer.spec.classes, setting.temperature)
        labels = split.in_set.labels
        return Result(
            split.in_set.name,
            split.out_set.name,
            len(ins),
            len(outs),
            setting.magnitude,
            setting.temperature,
            evaluate(ins.baseline, outs.baseline, setting.protocol, grids[0]),
            evaluate(ins.score, outs.score, setting.protocol, grids[1]),
            split.note,
            None if labels is None else float((ins.label == labels).mean()),
            {name: evaluate(ins.extra[name], outs.extra[name]) for name in ins.extra},
        )

    def _in_scores(self, split: Split, setting: Setting) -> Scores:
        """Scores of the split's in-distribution images; each image is scored once."""
        key = (split.in_start, setting.temperature, setting.magnitude)
        known = self._known.get(key)
        count = len(split.in_set)
        if known is None or len(known) < count:
            self._known[key] = known = self._score(split.in_set, setting)
        return known.first(count)

    def _score(self, images: Dataset, setting: Setting) -> Scores:
        title = f"{images.name} ({len(images)} images)"
        pixels = images if self.size is None else images.resized(*self.size)
        return self.scorer.score(
            pixels.images,
            temperature=setting.temperature,
            magnitude=setting.magnitude,
            progress=self._progress(title, len(images)),
        )


def size_to_scale_to(spec: Spec, given: tuple[int, ...]) -> tuple[int, int] | None:
    """The size to which images of this height and width are scaled; None leaves them as they are.

    A network of a single size gets that; images too small for another one grow to its smallest.
    Images too large are not touched: whether to crop or to scale them is for the user to say.
    """
    (least_height, most_height), (least_width, most_width) = spec.height, spec.width
    height, width = given
    if (least_height, least_width) == (most_height, most_width):
        wanted = (least_height, least_width)
    else:
        wanted = (max(height, least_height), max(width, least_width))
    return None if wanted == (height, width) else wanted
