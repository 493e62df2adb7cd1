"""The results published for the released networks, to set beside one's own.

Source: Liang, Li, Srikant, ICLR 2018 (arXiv 1706.02690), tables of detection performance at
temperature 1000. They belong to the authors' checkpoints, and in-distribution to CIFAR-10 for
`densenet10` and `wideresnet10`, to CIFAR-100 for `densenet100` and `wideresnet100`.
"""

from __future__ import annotations

from dataclasses import dataclass

from odin_bench.metrics import Metrics


@dataclass(frozen=True)
class Published:
    """One published pair of results.

    magnitude: of the perturbation, in units of pixels in [0, 1]; baseline, odin: fractions.
    """

    magnitude: float
    baseline: Metrics
    odin: Metrics


def published(network: str, out_dataset: str) -> Published | None:
    """The published result for a network and an out-of-distribution set, None where there is none.

    network: a key of `RESULTS`, such as "densenet10"; out_dataset: such as "Imagenet_resize".
    """
    row = RESULTS.get(network, {}).get(out_dataset)
    if row is None:
        return None
    magnitude, baseline, odin = row
    return Published(magnitude, _fractions(baseline), _fractions(odin))


_Percent = tuple[float, float, float, float, float]


def _fractions(percent: _Percent) -> Metrics:
    fpr95, detection_error, auroc, aupr_in, aupr_out = (value / 100 for value in percent)
    return Metrics(fpr95, detection_error, auroc, aupr_in, aupr_out)


# network -> out-of-distribution set -> (magnitude, baseline, ODIN), the last two in percent as
# printed in the paper: FPR at 95 % TPR, detection error, AUROC, AUPR-In, AUPR-Out.
RESULTS: dict[str, dict[str, tuple[float, _Percent, _Percent]]] = {
    "densenet10": {
        "Imagenet": (0.0014, (34.7, 10.0, 95.3, 96.4, 93.8), (4.3, 4.7, 99.1, 99.1, 99.1)),
        "Imagenet_resize": (0.0014, (40.8, 11.5, 94.1, 95.1, 92.4), (7.5, 6.1, 98.5, 98.6, 98.5)),
        "LSUN": (0.0, (39.3, 10.2, 94.8, 96.0, 93.1), (8.7, 6.0, 98.2, 98.5, 97.8)),
        "LSUN_resize": (0.0014, (33.6, 9.7, 95.4, 96.4, 94.0), (3.8, 4.4, 99.2, 99.3, 99.2)),
        "iSUN": (0.0014, (37.2, 10.8, 94.8, 95.9, 93.1), (6.3, 5.5, 98.8, 98.9, 98.8)),
        "Uniform": (0.0014, (23.5, 5.3, 96.5, 97.8, 93.0), (0.0, 0.5, 99.9, 100.0, 99.9)),
        "Gaussian": (0.0014, (12.3, 4.7, 97.5, 98.3, 95.9), (0.0, 0.2, 100.0, 100.0, 100.0)),
    },
    "densenet100": {
        "Imagenet": (0.0014, (66.6, 27.1, 81.2, 82.9, 80.1), (28.0, 13.2, 94.3, 94.5, 94.4)),
        "Imagenet_resize": (0.0028, (82.5, 34.4, 71.5, 73.8, 68.9), (58.2, 23.0, 85.0, 85.5, 84.0)),
        "LSUN": (0.0028, (59.7, 23.3, 85.4, 86.9, 84.4), (17.3, 9.5, 96.7, 96.9, 96.5)),
        "LSUN_resize": (0.0028, (83.2, 35.2, 70.8, 74.0, 67.9), (60.5, 23.0, 85.3, 86.4, 83.7)),
        "iSUN": (0.0028, (84.9, 36.1, 69.6, 72.4, 66.6), (64.9, 24.0, 83.0, 85.1, 81.8)),
        "Uniform": (0.0028, (100.0, 35.7, 43.2, 63.2, 41.9), (99.8, 15.9, 83.0, 89.6, 68.9)),
        "Gaussian": (0.0028, (100.0, 41.4, 30.5, 53.3, 37.6), (100.0, 35.5, 45.9, 64.7, 43.0)),
    },
    "wideresnet10": {
        "Imagenet": (0.0005, (38.9, 12.5, 92.9, 92.5, 91.9), (23.4, 11.6, 94.2, 92.8, 94.7)),
        "Imagenet_resize": (0.0011, (45.6, 14.8, 91.0, 89.7, 89.9), (25.5, 13.4, 92.1, 89.0, 93.6)),
        "LSUN": (0.0, (35.0, 10.8, 94.5, 95.1, 93.1), (21.8, 9.8, 95.9, 95.8, 95.5)),
        "LSUN_resize": (0.0006, (35.0, 11.4, 93.9, 93.8, 92.8), (17.6, 9.7, 95.4, 93.8, 96.1)),
        "iSUN": (0.0008, (40.6, 13.2, 92.5, 91.7, 91.5), (21.3, 11.5, 93.7, 91.2, 94.9)),
        "Uniform": (0.0014, (1.6, 3.2, 99.2, 99.3, 98.9), (0.0, 0.2, 100.0, 100.0, 100.0)),
        "Gaussian": (0.0014, (0.3, 2.4, 99.5, 99.6, 99.3), (0.0, 0.1, 100.0, 100.0, 100.0)),
    },
    "wideresnet100": {
        "Imagenet": (0.0028, (67.1, 25.9, 82.4, 84.1, 80.7), (42.7, 16.0, 91.8, 92.5, 91.0)),
        "Imagenet_resize": (0.0028, (79.3, 32.2, 74.2, 75.4, 71.9), (51.6, 20.7, 87.8, 88.2, 87.2)),
        "LSUN": (0.0048, (74.0, 26.8, 80.6, 83.3, 77.5), (35.7, 16.0, 91.8, 91.8, 91.6)),
        "LSUN_resize": (0.002, (76.7, 29.2, 77.4, 79.1, 74.6), (46.5, 18.5, 89.5, 89.8, 89.2)),
        "iSUN": (0.0028, (79.8, 30.8, 75.7, 77.5, 72.7), (50.8, 19.5, 88.4, 88.9, 87.6)),
        "Uniform": (0.0028, (21.0, 7.2, 96.5, 97.6, 92.9), (0.0, 0.3, 100.0, 100.0, 99.9)),
        "Gaussian": (0.0028, (28.3, 6.1, 95.7, 97.4, 89.3), (0.0, 0.2, 99.9, 100.0, 99.8)),
    },
}
