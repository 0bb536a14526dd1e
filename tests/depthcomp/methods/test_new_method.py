"""A new method is one registration: it is called by name, goes through a compression, and stands in the help."""

import pytest
from tiny_network import EXAMPLE, images, short_chain
from typer.testing import CliRunner

from depthcomp import compress_depth
from depthcomp.commands.main import app
from depthcomp.methods.baselines import disjoint, growing
from depthcomp.methods.method import Method
from depthcomp.methods.registry import METHODS
from fx_passes import SpanLimits

pytestmark = pytest.mark.whole


def largest_first(materials):
    """Yield the plans of the rewrite that saves most, of the two that save most, and so on."""
    yield from growing(disjoint(sorted(materials.candidates, key=lambda c: -materials.savings_ms[c.choice])))


GREEDY = Method(
    "greedy", "what saves most first", SpanLimits(layer_pruning=False, other_ends=()), draw=largest_first, scored=False
)


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    list(METHODS)  # all that the product has
    monkeypatch.setitem(METHODS._known, "greedy", GREEDY)


def test_it_compresses(arithmetic_backend):
    result = compress_depth(
        short_chain(), "90%", example_inputs=EXAMPLE, data=images(6), backend=arithmetic_backend(), method="greedy"
    )
    assert result.method == "greedy"
    assert result.measured_ms <= result.budget_ms
    assert len(result.plan) > 0
    assert result.importance.method == "none"


@pytest.mark.parametrize("command", [["compress"], ["importance"], ["tables", "plan"]])
def test_it_stands_in_the_help(command):
    found = CliRunner().invoke(app, [*command, "--help"])
    assert found.exit_code == 0
    shown = " ".join(found.output.replace("│", " ").split())
    assert "greedy (what saves most first), " in shown
    assert "depthcomp (all kinds of choices, exact frontier, plans refitted), depthshrinker (" in shown
