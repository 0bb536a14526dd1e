"""The files for measuring on many machines, run here as far as a machine without GPUs, Slurm or Kubernetes can."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from latency_tables import LatencyTable, OperatorSignature
from latency_tables.fleet.work import Work

pytestmark = pytest.mark.whole

REPOSITORY = Path(__file__).parents[3]
FLEET = REPOSITORY / "scripts" / "fleet"
KEYS = [
    OperatorSignature(op="conv", batch=1, in_channels=3, out_channels=n, in_size=(7, 5), kernel=(3, 3)).key
    for n in (4, 5, 6)
]


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """Put a `depthcomp` first on PATH that writes down how it is called; return a function that tells."""
    log, command = tmp_path / "calls.txt", tmp_path / "bin" / "depthcomp"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\necho "${{CUDA_VISIBLE_DEVICES-none}}: $*" >>"{log}"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(command.parent), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("DEPTHCOMP", raising=False)
    return lambda: log.read_text().splitlines() if log.exists() else []


def bash(*arguments, check=True, **variables):
    environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
    return subprocess.run(["bash", *map(str, arguments)], env=environment, capture_output=True, text=True, check=check)


@pytest.mark.parametrize("name", ["all_gpus.sh", "slurm_array.sbatch"])
def test_the_scripts_are_sound_bash(name):
    bash("-n", FLEET / name)
    assert (FLEET / name).read_text().startswith("#!/usr/bin/env bash\n")


def test_two_shards_on_the_cpu_become_one_table(tmp_path):
    Work(dict.fromkeys(KEYS, ())).save(tmp_path / "work.json")
    (tmp_path / "run.py").write_text("from depthcomp.commands.main import main\nmain()\n")
    bash(
        FLEET / "all_gpus.sh", tmp_path / "work.json", tmp_path / "table.json",
        DEVICES="cpu cpu", BACKEND="onnxruntime", DEPTHCOMP=f"{sys.executable} {tmp_path / 'run.py'}",
        PYTHONPATH=f"{REPOSITORY}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    )  # fmt: skip
    assert set(LatencyTable.load(tmp_path / "table.json").entries) == set(KEYS)
    assert len(LatencyTable.load(tmp_path / "table.1.json")) == 1


def test_each_gpu_gets_a_shard_of_its_own(calls):
    bash(FLEET / "all_gpus.sh", "work.json", "out/table.json", DEVICES="0 2 5")
    *runs, merge = calls()
    assert sorted(runs) == [
        f"{device}: tables run work.json --shard {index}/3 --table out/table.{index}.json --backend auto"
        for index, device in enumerate((0, 2, 5))
    ]
    assert merge == "none: tables merge out/table.0.json out/table.1.json out/table.2.json --out out/table.json"


def test_a_failed_shard_is_named_and_nothing_is_merged(calls, tmp_path):
    command = tmp_path / "bin" / "depthcomp"
    command.write_text(command.read_text() + 'case "$*" in *1/3*) exit 2 ;; esac\n')
    done = bash(FLEET / "all_gpus.sh", "work.json", "table.json", check=False, DEVICES="0 1 2")
    assert done.returncode == 1
    assert "error: shards 1 of 3 failed" in done.stderr
    assert not any("merge" in call for call in calls())


@pytest.mark.usefixtures("calls")
def test_what_measures_ends_with_the_script(tmp_path):
    (tmp_path / "bin" / "depthcomp").write_text('#!/bin/sh\necho $$ >"$PIDS/$CUDA_VISIBLE_DEVICES"\nexec sleep 60\n')
    environment = {**os.environ, "DEVICES": "0 1", "PIDS": str(tmp_path)}
    script = subprocess.Popen(["bash", FLEET / "all_gpus.sh", "work.json", "table.json"], env=environment)
    notes = [tmp_path / "0", tmp_path / "1"]
    wait_for(lambda: all(note.exists() and note.read_text().strip() for note in notes))
    script.terminate()
    script.wait(timeout=10)
    wait_for(lambda: not any(Path("/proc", note.read_text().strip()).exists() for note in notes))


def wait_for(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize("name", ["all_gpus.sh", "slurm_array.sbatch"])
def test_missing_arguments_are_a_sentence(name):
    done = bash(FLEET / name, "work.json", check=False)
    assert done.returncode == 2
    assert "error: 1 arguments were given" in done.stderr


def slurm_task(task, first, step, **options):
    variables = {"ID": task, "MIN": first, "STEP": step, "COUNT": 4}
    names = {f"SLURM_ARRAY_TASK_{name}": value for name, value in variables.items() if value is not None}
    return bash(FLEET / "slurm_array.sbatch", "work.json", "tables", **names, **options)


@pytest.mark.parametrize(
    ("task", "first", "step", "index"), [(0, 0, 1, 0), (3, 0, 1, 3), (6, 5, None, 1), (6, 0, 2, 3), (7, 1, 3, 2)]
)
def test_a_slurm_task_measures_its_shard(calls, task, first, step, index):
    slurm_task(task, first, step)
    assert calls() == [f"none: tables run work.json --shard {index}/4 --table tables/shard.{index}.json --backend auto"]


@pytest.mark.parametrize(("task", "step"), [(9, 1), (3, 2)])
def test_a_slurm_array_that_is_no_range_is_refused(calls, task, step):
    done = slurm_task(task, 0, step, check=False)
    assert done.returncode == 2
    assert "error: --array must be a range such as 0-3 or 0-6:2" in done.stderr
    assert calls() == []


def test_slurm_reads_its_options_before_the_first_command():
    lines = (FLEET / "slurm_array.sbatch").read_text().splitlines()
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    options = [i for i, line in enumerate(lines) if line.startswith("#SBATCH ")]
    assert options
    assert max(options) < first_command


@pytest.fixture
def job():
    return yaml.safe_load((FLEET / "kubernetes_job.yaml").read_text())


def test_the_kubernetes_job_is_indexed_and_its_numbers_agree(job):
    spec = job["spec"]
    assert (job["apiVersion"], job["kind"], spec["completionMode"]) == ("batch/v1", "Job", "Indexed")
    (container,) = spec["template"]["spec"]["containers"]
    variables = {each["name"]: each["value"] for each in container["env"]}
    assert int(variables["SHARDS"]) == spec["completions"] == spec["parallelism"]
    assert spec["template"]["spec"]["restartPolicy"] == "Never"  # which an Indexed Job with limits per index needs
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in spec["template"]["spec"]["volumes"]}
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 1}


def test_a_pod_measures_its_shard(job, calls):
    (container,) = job["spec"]["template"]["spec"]["containers"]
    variables = {each["name"]: each["value"] for each in container["env"]}
    program = [*container["command"], *container["args"]]
    subprocess.run(program, env={**os.environ, **variables, "JOB_COMPLETION_INDEX": "2"}, check=True)
    assert calls() == ["none: tables run /tables/work.json --shard 2/4 --table /tables/shard.2.json --backend auto"]
