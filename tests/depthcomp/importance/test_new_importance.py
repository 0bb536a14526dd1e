"""A new importance is one class: it is passed, scored and saved without a line of the product."""

from collections import defaultdict
from dataclasses import asdict, dataclass

import pytest
from tiny_network import EXAMPLE, images, tiny_net

from depthcomp.importance.protocol import Importance
from depthcomp.importance.registry import PRESETS, preset_name
from depthcomp.importance.scored import scored
from depthcomp.importance.scoring import parse_importance, score_choices
from depthcomp.importance.table import ImportanceTable
from depthcomp.preparation import prepare


@dataclass(frozen=True, slots=True)
class NodeCount(Importance):
    """Each choice costs as many units as its span has nodes."""

    unit: float = 1.0

    method = "nodes"

    @property
    def settings(self):
        return asdict(self)

    def rules(self, *, refit_kept):
        return "1"

    def score_all(self, context):
        journal = context.journal(1, repr(self))
        self.score_part(context, None)
        losses = {c.choice: self.unit * len(c.span.nodes) for c in context.candidates}
        return scored(context, losses, journal, method=self.method, settings=self.settings)

    def score_part(self, context, part):
        journal = context.journal(1, repr(self))
        for candidate in context.candidates:
            journal.add(str(candidate.choice), self.unit * len(candidate.span.nodes), 0.0)
        return len(context.candidates)


@pytest.fixture(scope="module")
def prepared():
    return prepare(tiny_net(), EXAMPLE, [images(6)], None, seed=0)


def test_it_is_passed_scored_saved_and_read(prepared, tmp_path):
    importance = parse_importance(NodeCount(unit=0.5))
    assert isinstance(importance, Importance)
    some = prepared.candidates[::9]
    found = score_choices(prepared, some, defaultdict(lambda: 1.0), importance, folder=tmp_path)
    assert dict(found.losses) == {c.choice: len(c.span.nodes) / 2 for c in some}
    assert (tmp_path / "importance.jsonl").read_text().count("\n") == len(some)
    table = ImportanceTable.load(found.table.save(tmp_path / "importance.json"))
    assert (table.method, table.settings, table.algorithm) == ("nodes", {"unit": 0.5}, "1")
    again = score_choices(prepared, some, defaultdict(lambda: 1.0), table)
    assert dict(again.losses) == dict(found.losses)
    assert again.notes == ()


def test_a_registered_preset_is_given_by_name(monkeypatch):
    list(PRESETS)  # all that the product has
    monkeypatch.setitem(PRESETS._known, "nodes", NodeCount(unit=2.0))
    assert parse_importance("nodes") == NodeCount(unit=2.0)
    assert preset_name(ImportanceTable({}, "nodes", {"unit": 2.0})) == "nodes"
