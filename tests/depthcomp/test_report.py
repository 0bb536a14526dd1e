import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict, replace
from html.parser import HTMLParser

import matplotlib
import pytest
import torch
from torch import fx, nn

from depthcomp.budget import Budget
from depthcomp.frontier_plot import frontier_svg
from depthcomp.importance.config import KIM23
from depthcomp.importance.table import ImportanceTable
from depthcomp.preparation import Refusal
from depthcomp.report import write_report
from depthcomp.result import CompressionResult, FrontierPoint, SpanRecord
from depthcomp.training.finetune import FinetuneRecord
from fx_passes import Plan, SpanChoice
from latency_tables import Calibration, Entry, Environment, LatencyTable, Method, Timing

ATTACK = "<script>alert('x')</script>"
VOID = {"meta", "br"}


def make_result(**changes):
    """A result as a small network on one CPU would give it; `changes` replaces fields."""
    gm = fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU()).eval())
    fit = SpanChoice("features_2_add", "features_4_add", "fit", (3, 3))
    merge = SpanChoice("stem_act", "features_1_project_bn", "merge", (5, 5))
    drop = SpanChoice("features_6_add", "features_7_add", "drop")
    here = Environment.here(
        backend="onnxruntime", backend_version="1.31.0", device="AMD EPYC (family 25, model 17)", threads=1
    )
    method = Method(
        estimator="minimum of round medians", rounds=5, samples_per_round=3, sample_ms=3.0, warmup_ms=20.0,
        seed=0, overhead_ms=0.004,
    )  # fmt: skip
    points = [(6.9, 4.1), (7.6, 2.2), (8.3, 0.9), (9.62, 0.31), (10.7, 0.12), (11.9, 0.03)]
    plans = [
        Plan((merge, fit, drop)),
        *[Plan((fit, drop))] * 2,
        Plan((merge, fit)),
        Plan((fit,)),
        Plan((merge,)),
    ]
    frontier = [FrontierPoint(ms, loss, plan) for (ms, loss), plan in zip(points, plans, strict=True)]
    fields = {
        "model": gm,
        "trainable": gm,
        "plan": Plan((merge, fit)),
        "frontier": (*frontier, FrontierPoint(12.7, 0.0, Plan())),
        "budget": Budget.parse("80%"),
        "budget_ms": 10.272,
        "original_timing": Timing((12.80, 12.79, 12.84, 12.88, 13.1), 15),
        "measured_timing": Timing((9.78, 9.76, 9.80, 9.84, 9.88), 15),
        "predicted_ms": 9.62,
        "loss": 0.287,
        "rank_correlation": 0.925,
        "original_depth": 52,
        "depth": 43,
        "spans": (SpanRecord(fit, 6, 2.5, 0.9, 0.28), SpanRecord(merge, 3, 1.75, 0.271, 0.03)),
        "refusals": (
            Refusal("a", "b", "pool_1: a max-pool is not affine"),
            Refusal("c", "d", "pool_2: a max-pool is not affine"),
            Refusal("e", "f", "it shares its weights with another part of the network"),
        ),
        "warnings": ("No data was given, so importance rests on synthetic images.",),
        "environment": here,
        "table": LatencyTable(here, method, {"k": Entry(ms=0.5, spread=0.01, n=15)}),
        "example_inputs": (torch.zeros(1, 3, 7, 11),),
        "seed": 41,
        "seconds": {"capture": 0.8, "measuring": 34.2},
    }
    return CompressionResult(**{**fields, **changes})


class Page(HTMLParser):
    """Checks that tags are nested, and gathers tags, attributes, text and rows of tables."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.rows, self.words = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes.extend(attributes)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes.extend(attributes)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data


def page_of(result, folder):
    write_report(result, folder)
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def rows_after(page, heading):
    start = next(index for index, row in enumerate(page.rows) if row[0].startswith(heading))
    return page.rows[start + 1 :]


def test_headline_says_what_was_gained_and_where(tmp_path):
    text = page_of(make_result(), tmp_path).text
    assert (
        "1.31x as fast: 9.80 ms instead of 12.84 ms, measured side by side on "
        "ONNX Runtime 1.31.0, AMD EPYC (family 25, model 17), 1 thread, fp32, batch 1"
    ) in text


def test_before_and_after_carry_spread_samples_and_prediction_error(tmp_path):
    rows = {row[0]: row[1:] for row in page_of(make_result(), tmp_path).rows}
    assert rows["Latency, measured"] == ["12.84 ms (spread 0.5 %, n = 15)", "9.80 ms (spread 0.6 %, n = 15)"]
    assert rows["Latency, predicted"] == ["12.70 ms (measured: +1.1 %)", "9.62 ms (measured: +1.9 %)"]
    assert rows["Speed-up, round by round"] == ["—", "1.31x to 1.33x"]
    assert rows["Budget (80%)"] == ["10.27 ms", "met, 0.472 ms to spare"]
    assert rows["Convolutions on the longest path"] == ["52", "43"]
    assert rows["Parameters"] == ["—", "140"]
    assert rows["Loss against the original on images left out of the fits"] == ["0", "0.287"]


def test_missed_budget_is_said(tmp_path):
    page = page_of(make_result(budget_ms=9.0), tmp_path)
    assert "missed by 0.800 ms" in page.text
    assert ("class", "missed") in page.attributes


def test_spans_stand_in_plan_order_with_totals(tmp_path):
    merged, fitted, total = rows_after(page_of(make_result(), tmp_path), "Span")[:3]
    assert merged == [
        "stem_act → features_1_project_bn",
        "merged 5x5",
        "3",
        "1.750",
        "0.271",
        "1.479",
        "0.03",
    ]
    assert fitted == ["features_2_add → features_4_add", "fitted 3x3", "6", "2.500", "0.900", "1.600", "0.28"]
    assert total == ["Total of 2 spans", "9", "4.250", "1.171", "3.079", "0.31"]


def test_refusals_are_grouped_by_reason_whatever_node_causes_them(tmp_path):
    text = page_of(make_result(), tmp_path).text
    assert "2 spans: a max-pool is not affine" in text
    assert "a → b (at pool_1)" in text
    assert "1 span: it shares its weights" in text


def test_provenance_and_loading(tmp_path):
    text = page_of(make_result(), tmp_path).text
    for said in ("Seed 41", "5 interleaved rounds", "minimum of round medians", "35.0", "synthetic images"):
        assert said in text
    assert f"depthcomp.load('{tmp_path.name}')" in text


@pytest.mark.parametrize(("correlation", "said"), [(0.5, "tried is 0.50."), (None, "fewer than three whole plans")])
def test_trust_in_importance_is_said(tmp_path, correlation, said):
    assert said in page_of(make_result(rank_correlation=correlation), tmp_path).text


def test_how_the_plan_was_chosen_is_said(tmp_path):
    losses = dict.fromkeys(make_result().plan, 0.1)
    kinds = {
        "kim23, 2 choices scored in 70 s: a surrogate": ImportanceTable(losses, "finetuned", asdict(KIM23), seconds=70),
        "finetuned, 2 choices": ImportanceTable(losses, "finetuned", asdict(replace(KIM23, steps=7))),
        "calibrated, 2 choices": ImportanceTable(losses, "calibrated", {"memory_mib": 512}),
        "None, the method asks for no losses of choices.": ImportanceTable({}, "none"),
    }
    for said, table in kinds.items():
        text = page_of(make_result(importance=table, method="layermerge"), tmp_path).text
        assert f"Importance {said}" in text
        assert "Chosen by the method layermerge." in text


def test_each_tuning_is_said_and_the_loss_is_that_before(tmp_path):
    first = FinetuneRecord("epoch 2", "accuracy", 0.5, 0.25, 0.875, 0.9375, 3, 9, 12.0)
    assert "ine-tuned" not in page_of(make_result(), tmp_path).text
    second = replace(first, loss_before=0.25, loss_after=0.125, metric="loss")
    page = page_of(make_result(finetuned=second, tuned_before=(first,)), tmp_path)
    one = "Fine-tuned, by the validation data from loss 0.5 to 0.25, accuracy 0.875 to 0.9375 (best: epoch 2; 3 epochs"
    assert one in page.text
    assert "Then fine-tuned, by the validation data from loss 0.25 to 0.125 (best" in page.text
    rows = {row[0]: row[1:] for row in page.rows}
    assert rows["Loss against the original on images left out of the fits, before fine-tuning"] == ["0", "0.287"]


def test_the_residual_of_the_line_stands_below_what_it_predicts(tmp_path):
    plain = make_result()
    assert "Residual of the predicting line" not in [row[0] for row in page_of(plain, tmp_path).rows if row]
    table = replace(plain.table, calibration=Calibration(0.1, 0.9, 0.1541, 5))
    rows = {row[0]: row[1:] for row in page_of(make_result(table=table), tmp_path).rows if row}
    assert rows["Residual of the predicting line"][1] == "1.2 % over 5 networks"


def test_rounds_in_which_the_machine_drifted_are_counted(tmp_path):
    steady = "in 5 interleaved rounds, the one having a turn before and after that of the other in each;"
    assert steady in page_of(make_result(), tmp_path).text
    assert "that are counted" not in page_of(make_result(), tmp_path).text
    drifted = Timing((9.78, 9.76, 9.80, 9.84, 9.88), 15, drifted=2)
    page = page_of(make_result(measured_timing=drifted), tmp_path)
    assert "explains, were done again as far as their number allowed, but for 2 that are" in page.text


def test_free_merges_are_said_and_the_original_is_then_not_predicted(tmp_path):
    free = Plan((SpanChoice("x", "act", "merge", (3, 3)),) * 2)
    page = page_of(make_result(free_merges=free), tmp_path)
    assert "before anything else: 2 spans were one convolution already" in page.text
    rows = {row[0]: row[1:] for row in page.rows}
    assert rows["Latency, predicted"][0] == "\N{EM DASH}"
    assert "before anything else" not in page_of(make_result(), tmp_path).text


def test_nothing_to_report_is_said(tmp_path):
    result = make_result(spans=(), plan=Plan(), refusals=(), warnings=(), frontier=(), seconds={})
    text = page_of(result, tmp_path).text
    assert "Nothing was rewritten." in text
    assert "No span was refused." in text
    assert "Warnings" not in text


def test_rounds_that_were_not_shared_give_no_speedup_by_round(tmp_path):
    page = page_of(make_result(measured_timing=Timing((9.8, 9.9, 9.7), 9)), tmp_path)
    assert ["Speed-up, round by round", "—", "—"] in page.rows
    assert "3 and 5 interleaved rounds" in page.text


def test_no_markup_comes_through_from_names_warnings_or_device(tmp_path):
    choice = SpanChoice(ATTACK, ATTACK, "drop")
    here = replace(make_result().environment, device=ATTACK, backend=ATTACK)
    result = make_result(
        plan=Plan((choice,)),
        spans=(SpanRecord(choice, 1, 1.0, 0.0, 0.1),),
        refusals=(Refusal(ATTACK, ATTACK, ATTACK),),
        warnings=(ATTACK,),
        environment=here,
        seconds={ATTACK: 1.0},
    )
    page = page_of(result, tmp_path)
    assert "script" not in page.tags
    assert page.text.count("<script>") >= 8
    assert "<script" not in (tmp_path / "frontier.svg").read_text(encoding="utf-8")


def test_page_is_self_contained(tmp_path):
    page = page_of(make_result(), tmp_path)
    assert not {"link", "img", "script", "iframe", "object"} & set(page.tags)
    links = [value for name, value in page.attributes if name in ("href", "src", "xlink:href")]
    assert all(link.startswith("#") for link in links)
    assert "@import" not in page.text
    assert re.findall(r"url\((?!#)", page.text) == []


def test_report_and_picture_are_the_same_every_time(tmp_path):
    write_report(make_result(), tmp_path)
    first = [(tmp_path / name).read_bytes() for name in ("report.html", "frontier.svg")]
    with matplotlib.rc_context({"axes.facecolor": "black", "svg.fonttype": "path"}):
        write_report(make_result(), tmp_path)
    assert first == [(tmp_path / name).read_bytes() for name in ("report.html", "frontier.svg")]


def test_svg_keeps_text_and_says_what_is_drawn():
    svg = ElementTree.fromstring(frontier_svg(make_result()))
    text = [node.text for node in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert {"latency of the whole network (ms)", "budget 10.27 ms", "frontier, predicted (7 plans)"} <= set(text)
    assert {"chosen plan, predicted 9.62 ms", "chosen plan, measured 9.80 ms"} <= set(text)
    assert {"original, measured 12.84 ms"} <= set(text)
    assert any("ONNX Runtime 1.31.0" in line for line in text)


@pytest.mark.parametrize(("largest", "label"), [(4.1, "losses)"), (4000.0, "losses, log scale)")])
def test_loss_axis_turns_logarithmic_where_the_chosen_plan_would_vanish(largest, label):
    result = make_result()
    frontier = (replace(result.frontier[0], loss=largest), *result.frontier[1:])
    assert f"importance (sum of {label}" in frontier_svg(replace(result, frontier=frontier))


def test_many_plans_stay_small():
    points = tuple(FrontierPoint(5 + i / 1000, 3 / (1 + i), Plan()) for i in range(5000))
    assert len(frontier_svg(make_result(frontier=points))) < 200_000


def test_dollar_signs_are_not_taken_for_formulas():
    here = replace(make_result().environment, device="A$B_1$ C")
    assert "A$B_1$ C" in frontier_svg(make_result(environment=here))


def test_import_loads_neither_matplotlib_nor_jinja2_nor_rich():
    code = "import sys, depthcomp.report, depthcomp.console;print({'matplotlib', 'jinja2', 'rich'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
