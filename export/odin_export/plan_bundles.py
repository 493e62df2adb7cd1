"""Plans built for a bundle, with a progress bar: one on disk, or one that is about to be written.

Needs neither torch nor onnx: a bundle gets its plans on the machine that will run it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from odin_engines import plan_sets
from odin_engines.bundle import Bundle, write_bundle
from odin_engines.plan_sets import PlanOptions, PlanSet
from odin_engines.spec import Spec

_NO_PLANS = PlanSet({}, (), frozenset())


@dataclass
class PlanMaker:
    """Builds the plans of a bundle.

    Attributes:
        spec: of the bundle.
        options: what plans; None for those of `existing` alone.
        existing: a bundle whose plans may be used again.
        reused: files of those, once the plans are made.
    """

    spec: Spec
    options: PlanOptions | None
    existing: Bundle | None
    reused: frozenset[str] = frozenset()

    def check(self) -> None:
        """Check, before any work, that what is asked for suits the network.

        Raises:
            OdinError: naming the flag.
        """
        if self.options is not None:
            plan_sets.wanted_plans(self.spec, self.options)

    def __call__(self, graphs: Mapping[str, bytes]) -> PlanSet:
        """Build them, with a progress bar on a terminal.

        Args:
            graphs: the bundle's ONNX files, by name.

        Raises:
            OdinError: as `plan_sets.make_plans`.
        """
        if self.options is None:
            plans = plan_sets.kept_plans(graphs, self.existing) if self.existing else _NO_PLANS
            self.reused = plans.reused
            return plans
        with _Bar() as bar:
            plans = plan_sets.make_plans(graphs, self.spec, self.options, self.existing, bar.show)
        self.reused = plans.reused
        return plans


def add_plans(
    bundle: Bundle, options: PlanOptions, target: Path | None = None
) -> tuple[Bundle, frozenset[str]]:
    """Build plans for a bundle on disk.

    Args:
        bundle: whose graphs stay as they are.
        options: what plans.
        target: where the bundle with its plans goes; None puts them into `bundle`.

    Returns:
        The bundle with its plans, and the files of those that it had already.

    Raises:
        OdinError: a plan cannot be built, or the bundle cannot be written; it is then as it was.
    """
    maker = PlanMaker(bundle.spec, options, bundle)
    graphs = bundle.graphs()
    plans = maker(graphs)
    if target is None and plans.records == bundle.plans and maker.reused == set(plans.contents):
        return bundle, maker.reused
    contents = graphs | plans.contents
    written = write_bundle(
        target or bundle.path, bundle.spec, contents, plans.records, bundle.calibration
    )
    return written, maker.reused


class _Bar:
    """A progress bar of the plan that is being built, on a terminal only."""

    def __enter__(self) -> _Bar:
        from tqdm import tqdm

        layout = "{desc:<44}|{bar:30}|{percentage:3.0f} % {elapsed}"
        self._bar = tqdm(total=1.0, bar_format=layout, leave=False, disable=None)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def show(self, file: str, phase: str, share: float) -> None:
        """Say how far the plan is."""
        what = phase.lower() or ("start" if share < 0.5 else "finish")
        self._bar.set_description_str(f"{file}: {what}"[:44], refresh=False)
        self._bar.n = share
        self._bar.refresh()
