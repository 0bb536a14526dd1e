"""Tables of a network by hand for the solver's scripts, and the scripts themselves as modules."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
TIME = "id,st,end,time,stdev\n0,0,1,2.0,0.1\n1,0,2,5.0,0.1\n2,1,2,2.0,0.5\n"
OPT_TIME = 'id,st,end,time,stdev,breaks\n0,0,1,2.0,0.1,"0,1"\n1,0,2,4.0,0.1,"0,1,2"\n2,1,2,2.0,0.5,"1,2"\n'
IMPORTANCE = "st,end,st_act,end_act,imp\n0,1,1,1,0.2\n0,2,1,1,0.1\n1,2,1,1,0.1\n"
ANSWER = {
    "net": "mbv2_1.0", "importance": "importance_seed0.csv", "budget_ms": 4.0, "prec": 1, "value": 0.2 + 0.1,
    "time_ms": 4.0, "over_budget_pct": 0.0, "seconds": 0.1, "A": [1, 2], "S": [1, 2],
}  # fmt: skip
Answer = dict[str, object]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)  # as where the script is run; it imports its neighbour
        spec.loader.exec_module(module)
    return module


def write_tables(folder: Path, answer: Answer, opt_time: str = OPT_TIME) -> None:
    net = folder / "mbv2_1.0"
    net.mkdir()
    for name, text in (("time_a.csv", TIME), ("opt_time_a.csv", opt_time), ("importance_seed0.csv", IMPORTANCE)):
        (net / name).write_text(text)
    (folder / "reference_solutions.json").write_text(json.dumps([answer]))
