"""Budgets: every spelling, and a refusal that teaches the spelling."""

import math

import pytest

from depthcomp import Budget
from depthcomp.errors import BudgetError, DepthCompError


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("70%", 70.0, "%"),
        ("  70 % ", 70.0, "%"),
        ("99.9%", 99.9, "%"),
        ("1.8ms", 1.8, "ms"),
        ("1.8 ms", 1.8, "ms"),
        (".5ms", 0.5, "ms"),
        ("250ms", 250.0, "ms"),
        ("1.4x", 1.4, "x"),
        ("2x", 2.0, "x"),
        ("1.01 x", 1.01, "x"),
    ],
)
def test_spellings(text, value, unit):
    assert Budget.parse(text) == Budget(value, unit)


def test_a_budget_is_parsed_to_itself():
    budget = Budget(1.4, "x")
    assert Budget.parse(budget) is budget


@pytest.mark.parametrize("text", ["70%", "1.8ms", "1.4x"])
def test_printing_and_parsing_agree(text):
    assert str(Budget.parse(text)) == text
    assert Budget.parse(str(Budget.parse(text))) == Budget.parse(text)


@pytest.mark.parametrize(
    "given",
    [0.7, 70, math.nan, None, True, b"70%", "", "70", "0.7", "%", "ms", "70%%", "70 percent", "-1ms", "-70%", "nanms",
     "infms", "1e-3ms", "1,8ms", "1.8s", "1.8MS", "70% or 1ms", "\u0667\u0660%"],
)  # fmt: skip
def test_no_known_unit(given):
    with pytest.raises(BudgetError, match=r'no known unit; write "70%" of the measured original, "1.8ms"'):
        Budget.parse(given)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("120%", "120% asks for no compression; give less than 100%"),
        ("100%", "100% asks for no compression"),
        ("0.9x", "0.9x asks for no speed-up; give more than 1x"),
        ("1x", "1x asks for no speed-up"),
        ("0x", "0x must be a positive finite number"),
        ("0%", "0% must be a positive finite number"),
        ("0ms", "0ms must be a positive finite number"),
        (f"{'9' * 400}ms", "infms must be a positive finite number"),
    ],
)
def test_out_of_range(text, reason):
    with pytest.raises(BudgetError, match=reason):
        Budget.parse(text)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, 0.0])
def test_direct_construction_checks_the_value(value):
    with pytest.raises(BudgetError, match="must be a positive finite number"):
        Budget(value, "ms")


@pytest.mark.parametrize("value", ["70", True, None])
def test_direct_construction_checks_the_type(value):
    with pytest.raises(BudgetError, match="must be a number"):
        Budget(value, "%")


def test_direct_construction_checks_the_unit():
    with pytest.raises(BudgetError, match=r"unit .='s'. must be one of '%', 'ms', 'x'"):
        Budget(2.0, "s")


def test_errors_are_value_errors_and_ours():
    assert issubclass(BudgetError, DepthCompError)
    assert issubclass(BudgetError, ValueError)


@pytest.mark.parametrize(("text", "target_ms"), [("70%", 5.6), ("1.8ms", 1.8), ("20ms", 20.0), ("1.6x", 5.0)])
def test_target(text, target_ms):
    assert Budget.parse(text).target_ms(8.0) == pytest.approx(target_ms, rel=1e-12)


@pytest.mark.parametrize("text", ["1%", "99.9%", "1.001x", "100x"])
def test_relative_targets_are_below_the_original(text):
    assert 0 < Budget.parse(text).target_ms(3.0) < 3.0
