"""The printed forms, character for character."""

from __future__ import annotations

import pytest

from odin_bench.metrics import Metrics
from odin_bench.tables import Row, display_name, release_block, summary_table

BASELINE = Metrics(0.348, 0.099, 0.953, 0.964, 0.938)
ODIN = Metrics(0.043, 0.046, 0.991, 0.992, 0.991)

RELEASE = """\
Neural network architecture:          DenseNet-BC-100
In-distribution dataset:                     CIFAR-10
Out-of-distribution dataset:     Tiny-ImageNet (crop)

                          Baseline         Our Method
FPR at TPR 95%:              34.8%               4.3%
Detection error:              9.9%               4.6%
AUROC:                       95.3%              99.1%
AUPR In:                     96.4%              99.2%
AUPR Out:                    93.8%              99.1%"""

SUMMARY = """\
Baseline/ODIN in percent; in-distribution is the positive class.

| Out-of-distribution          |  n in/out | Magnitude | FPR at TPR 95% | Detection error |\
     AUROC |   AUPR In |  AUPR Out |
| ---------------------------- | --------: | --------: | -------------: | --------------: |\
 --------: | --------: | --------: |
| Tiny-ImageNet (crop)         | 9000/9000 |     0.001 |       34.8/4.3 |         9.9/4.6 |\
 95.3/99.1 | 96.4/99.2 | 93.8/99.1 |
| published (magnitude 0.0014) |           |           |       34.7/4.3 |        10.0/4.7 |\
 95.3/99.1 | 96.4/99.1 | 93.8/99.1 |
| SVHN                         |  1500/800 |         0 |       34.8/4.3 |         9.9/4.6 |\
 95.3/99.1 | 96.4/99.2 | 93.8/99.1 |"""

ROWS = [
    Row("Imagenet", 9000, 9000, 0.001, BASELINE, ODIN),
    Row("SVHN", 1500, 800, 0.0, BASELINE, ODIN),
]


def table_of(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("|")]


def test_release_block_to_the_letter():
    assert release_block("DenseNet-BC-100", "cifar10", "Imagenet", BASELINE, ODIN) == RELEASE


def test_release_block_takes_display_names_too():
    block = release_block("DenseNet-BC-100", "CIFAR-10", "Tiny-ImageNet (crop)", BASELINE, ODIN)
    assert block == RELEASE


def test_release_block_extremes_keep_their_columns():
    ones, zeros = Metrics(1.0, 1.0, 1.0, 1.0, 1.0), Metrics(0.0, 0.0, 0.0, 0.0, 0.0)
    lines = release_block("WRN", "cifar100", "Gaussian", ones, zeros).splitlines()
    assert {len(line) for line in lines} == {0, 53}
    assert lines[5] == "FPR at TPR 95%:             100.0%               0.0%"


@pytest.mark.parametrize("length", [22, 23, 60])
def test_long_names_keep_the_right_edge_straight(length):
    name = "n" * length
    for names in [(name, "cifar10", "LSUN"), ("WRN", name, "LSUN"), ("WRN", "cifar10", name)]:
        lines = release_block(*names, BASELINE, ODIN).splitlines()
        assert {len(line) for line in lines} == {0, 31 + length}
        assert sum(line.endswith(" " + name) for line in lines) == 1
        assert lines[5].startswith("FPR at TPR 95%:              34.8% ")


def test_a_newline_in_a_name_does_not_tear_the_block():
    block = release_block("my\nnet", "cifar10", "a\tb", BASELINE, ODIN)
    assert len(block.splitlines()) == 10
    assert " my net\n" in block


@pytest.mark.parametrize(
    ("dataset", "shown"),
    [
        ("cifar10", "CIFAR-10"),
        ("cifar100", "CIFAR-100"),
        ("Imagenet", "Tiny-ImageNet (crop)"),
        ("Imagenet_resize", "Tiny-ImageNet (resize)"),
        ("LSUN", "LSUN (crop)"),
        ("LSUN_resize", "LSUN (resize)"),
        ("iSUN", "iSUN"),
        ("Uniform", "Uniform noise"),
        ("Gaussian", "Gaussian noise"),
        ("SVHN", "SVHN"),
        ("DTD", "DTD"),
    ],
)
def test_display_names(dataset, shown):
    assert display_name(dataset) == shown


def test_summary_to_the_letter():
    assert summary_table(ROWS, "densenet10") == SUMMARY


def test_summary_without_a_network_has_no_published_lines():
    text = summary_table(ROWS)
    assert "published" not in text
    assert len(table_of(text)) == 4


def test_summary_of_other_weights_has_a_footnote():
    text = summary_table(ROWS, "densenet10", "These weights are\nnot the authors'.")
    assert "| published (magnitude 0.0014) [1] |" in text
    assert text.endswith("|\n\n[1] These weights are not the authors'.")


def test_no_footnote_where_nothing_refers_to_it():
    assert "[1]" not in summary_table(ROWS[1:], "densenet10", "Not the authors' weights.")


def test_summary_stays_a_table_whatever_the_names():
    rows = [Row("a|b\nc", 1, 1, 1e-6, BASELINE, ODIN), Row("x" * 80, 10**7, 1, 0.5, ODIN, BASELINE)]
    lines = table_of(summary_table(rows))
    assert len(lines) == 4
    assert len({len(line) for line in lines}) == 1
    assert {line.replace("\\|", "").count("|") for line in lines} == {9}


def test_summary_of_nothing_is_a_head():
    assert len(table_of(summary_table([]))) == 2
