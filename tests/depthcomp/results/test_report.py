import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict, replace
from html.parser import HTMLParser

import matplotlib
import pytest
from made_result import make_result

from depthcomp.importance.estimate_check import EstimateCheck
from depthcomp.importance.finetuned_importance import KIM23
from depthcomp.importance.table import ImportanceTable
from depthcomp.preparation import Refusal
from depthcomp.results.findings import FrontierPoint, SpanRecord
from depthcomp.results.frontier_plot import frontier_svg
from depthcomp.results.report import write_report
from depthcomp.training.finetune import FinetuneRecord
from fx_passes import Drop, Merge, Plan
from latency_tables import Calibration, Timing

pytestmark = pytest.mark.whole

ATTACK = "<script>alert('x')</script>"
VOID = {"meta", "br"}


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


def test_the_effort_is_told_where_it_was_counted(tmp_path):
    said = (
        "302 choices save time; 234 of them were scored, with 213 fits, and the losses of 95 are true ones. 23 plans "
        "were compared, 9 were refitted to be compared, and 6 networks were measured."
    )
    assert said in page_of(make_result(), tmp_path).text
    assert "Effort" not in page_of(make_result(effort=None), tmp_path).text


def test_the_foretold_time_stands_beside_the_time_it_took(tmp_path):
    assert re.search(r"Foretold after the operators were measured\s+347", page_of(make_result(), tmp_path).text)
    unknown = replace(make_result().effort, foretold_seconds=None)
    assert "Foretold" not in page_of(make_result(effort=unknown), tmp_path).text


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
        "features.1",
        "merged 5x5",
        "3",
        "1.750",
        "0.271",
        "1.479",
        "0.03",
    ]
    assert fitted == ["features.3 to features.4", "fitted 3x3", "6", "2.500", "0.900", "1.600", "0.28"]
    assert total == ["Total of 2 spans", "9", "4.250", "1.171", "3.079", "0.31"]


def test_refusals_are_grouped_by_reason_whatever_module_causes_them(tmp_path):
    page = page_of(make_result(), tmp_path)
    assert "2 spans: a max-pool is not affine stem.1 to pools.0 (at pools.0) pools.1 1 span" in page.text
    assert "1 span: it shares its weights with another part of the network twins.1" in page.text


def test_spans_are_told_by_modules_and_not_by_nodes(tmp_path):
    result = make_result()
    page = page_of(result, tmp_path)
    told = [span.modules for span in (*result.spans, *result.refusals)]
    assert [modules for modules in told if modules not in page.text] == []
    places = (*result.plan, *result.refusals)
    nodes = {name for place in places for name in (place.entry, place.exit)}
    assert [name for name in nodes if name in (tmp_path / "report.html").read_text(encoding="utf-8")] == []


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
        "kim23, 2 choices scored in 70 s. It is": ImportanceTable(losses, "finetuned", asdict(KIM23), seconds=70),
        "finetuned, 2 choices": ImportanceTable(losses, "finetuned", asdict(replace(KIM23, steps=7))),
        "calibrated, 2 choices": ImportanceTable(losses, "calibrated", {"memory_mib": 512}),
        "curvature, 2 choices scored in 0 s. On 36 choices the estimates are 1.10 times the true losses in the median "
        "(four fifths lie between 0.80 and 1.50), and their rank correlation with them is 0.97": ImportanceTable(
            losses, "curvature", check=EstimateCheck(36, 0.97, 1.1, 0.8, 1.5)
        ),
        "None: the method needs no losses of choices.": ImportanceTable({}, "none"),
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
    assert "Fine-tuned from loss 0.5 to 0.25, accuracy 0.875 to 0.9375 on the validation data (best: epoch" in page.text
    assert "Then fine-tuned from loss 0.25 to 0.125 on the validation data (best" in page.text
    rows = {row[0]: row[1:] for row in page.rows}
    assert rows["Loss against the original on images left out of the fits, before fine-tuning"] == ["0", "0.287"]


def test_the_residual_of_the_line_stands_below_what_it_predicts(tmp_path):
    plain = make_result()
    assert "Residual of the predicting line" not in [row[0] for row in page_of(plain, tmp_path).rows if row]
    table = replace(plain.table, calibration=Calibration(0.1, 0.9, 0.1541, 5))
    rows = {row[0]: row[1:] for row in page_of(make_result(table=table), tmp_path).rows if row}
    assert rows["Residual of the predicting line"][1] == "1.2 % over 5 networks"


def test_rounds_in_which_the_machine_drifted_are_counted(tmp_path):
    steady = "in 5 interleaved rounds. In each round one network ran before and after the other."
    assert steady in page_of(make_result(), tmp_path).text
    assert "still differ, and are counted" not in page_of(make_result(), tmp_path).text
    drifted = Timing((9.78, 9.76, 9.80, 9.84, 9.88), 15, drifted=2)
    page = page_of(make_result(measured_timing=drifted), tmp_path)
    assert "after all repeats 2 of the rounds still differ, and are counted" in page.text


def test_free_merges_are_said_and_the_original_is_then_not_predicted(tmp_path):
    free = Plan((Merge("x", "act", (3, 3)),) * 2)
    page = page_of(make_result(free_merges=free), tmp_path)
    assert "First, 2 spans were merged for free" in page.text
    rows = {row[0]: row[1:] for row in page.rows}
    assert rows["Latency, predicted"][0] == "\N{EM DASH}"
    assert "merged for free" not in page_of(make_result(), tmp_path).text


def test_nothing_to_report_is_said(tmp_path):
    result = make_result(spans=(), plan=Plan(), refusals=(), warnings=(), frontier=(), seconds={})
    text = page_of(result, tmp_path).text
    assert "No span was rewritten." in text
    assert "No span was refused." in text
    assert "Warnings" not in text


def test_rounds_that_were_not_shared_give_no_speedup_by_round(tmp_path):
    page = page_of(make_result(measured_timing=Timing((9.8, 9.9, 9.7), 9)), tmp_path)
    assert ["Speed-up, round by round", "—", "—"] in page.rows
    assert "3 and 5 interleaved rounds" in page.text


def test_no_markup_comes_through_from_names_warnings_or_device(tmp_path):
    choice = Drop(ATTACK, ATTACK)
    here = replace(make_result().environment, device=ATTACK, backend=ATTACK)
    result = make_result(
        plan=Plan((choice,)),
        spans=(SpanRecord(choice, ATTACK, 1, 1.0, 0.0, 0.1),),
        refusals=(Refusal("a", "b", f"{ATTACK} to b", ATTACK, ATTACK),),
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
    modules = "depthcomp.results.report, depthcomp.commands.console"
    code = f"import sys, {modules};print({{'matplotlib', 'jinja2', 'rich'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
