"""Whether labels are in a network's own numbering, by its accuracy on them."""

import pytest

from depthcomp.data.label_check import foreign_labels


@pytest.mark.parametrize(
    ("accuracy", "classes", "foreign"),
    [
        (0.5, 2, True), (0.59, 2, True), (0.61, 2, False), (1.0, 2, False),
        (0.4, 3, True), (0.45, 3, False),
        (0.0, 1000, True), (0.001, 1000, True), (0.002, 1000, False),
    ],
)  # fmt: skip
def test_labels_are_foreign_where_the_odds_are_hardly_better_than_those_of_guessing(accuracy, classes, foreign):
    assert bool(foreign_labels(accuracy, classes)) == foreign


def test_the_sentence_names_the_accuracy():
    assert "predicts the labels of 10.0% of the images" in foreign_labels(0.1, 10)
