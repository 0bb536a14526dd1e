"""The timing cache of `tensorrt`: kept whole, used where it fits, and never in the way of a build."""

import sys
import warnings

import pytest
from fake_tensorrt import GPU, fake_tensorrt
from onnx_models import chain_model

from latency_tables.backends.tensorrt import BuildSpec, build_engine
from latency_tables.backends.tensorrt import backend as measuring
from latency_tables.backends.tensorrt.backend import TensorRtBackend

pytestmark = pytest.mark.whole

SPEC = BuildSpec(flavour="tensorrt")


@pytest.fixture
def trt(monkeypatch):
    module = fake_tensorrt()
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return module


@pytest.fixture
def path(tmp_path):
    return tmp_path / "desktop.timing_cache"


def build(path, *operators):
    return build_engine(chain_model(*operators), SPEC, timing_cache=path)


def known_tactics(trt):
    """Return what the latest build knew before it began."""
    return trt.configs()[-1].builder.known


def test_a_second_build_knows_what_the_first_has_learnt_and_adds_to_it(trt, path):
    build(path, "Relu")
    first = path.read_bytes()
    assert first.startswith(f"timings:{GPU}:tactic".encode())
    build(path, "Relu", "Relu")
    assert known_tactics(trt) == {first.decode().rpartition(":")[2]}
    assert path.read_bytes().count(b"tactic") == 2
    assert sorted(file.name for file in path.parent.iterdir()) == [path.name, f"{path.name}.lock"]


def test_nothing_new_is_not_written_again(trt, path):
    build(path, "Relu")
    before = path.stat().st_ino
    build(path, "Relu")
    assert path.stat().st_ino == before


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\xff\x00 garbage", r"Deserialization of the timing cache failed"),
        (f"timings:{GPU}".encode(), "Deserialization of the timing cache failed"),
        (b"timings:GPU-2:tactic1", "it is broken, or of another GPU or version"),
    ],
    ids=["garbage", "truncated", "another GPU"],
)
def test_a_file_that_does_not_fit_is_ignored_with_a_warning_and_replaced(trt, path, content, reason):
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=rf"timing cache \S+ is ignored \({reason}\); the build times its") as caught:
        assert build(path, "Relu").data == b"engine"
    assert len(caught) == 1
    assert known_tactics(trt) == set()
    assert b"timings:GPU-1:tactic" in path.read_bytes()
    build(path, "Relu")
    assert known_tactics(trt)


def test_an_exception_of_the_bindings_is_a_warning(trt, path, monkeypatch):
    def null_pointer(config, data):
        if data:
            raise TypeError("factory function returned nullptr")
        return original(config, data)

    build(path, "Relu")
    original = type(trt.configs()[0]).create_timing_cache
    monkeypatch.setattr(type(trt.configs()[0]), "create_timing_cache", null_pointer)
    with pytest.warns(UserWarning, match=r"is ignored \(factory function returned nullptr\)"):
        assert build(path, "Relu").data == b"engine"


def test_what_another_process_has_learnt_meanwhile_is_kept(trt, path, monkeypatch):
    def finish_first(builder, network, config):
        path.write_bytes(f"timings:{GPU}:theirs".encode())
        return original(builder, network, config)

    original = trt.Builder.build_serialized_network
    monkeypatch.setattr(trt.Builder, "build_serialized_network", finish_first)
    build(path, "Relu")
    assert b"theirs" in path.read_bytes()
    assert b"tactic" in path.read_bytes()


def test_a_cache_that_cannot_be_written_or_read_costs_a_warning_only(trt, tmp_path):
    with pytest.warns(UserWarning, match=r"timing cache \S+ is not kept \(.*folder does not exist.*\); the engine is"):
        assert build(tmp_path / "missing" / "cache", "Relu").data == b"engine"
    with pytest.warns(UserWarning, match="Is a directory") as caught:
        assert build(tmp_path, "Relu").data == b"engine"
    assert "is ignored (Is a directory)" in str(caught[0].message)
    assert "is not kept (Is a directory)" in str(caught[1].message)


def test_a_full_disk_leaves_the_old_file_and_no_draft(trt, path, monkeypatch):
    build(path, "Relu")
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.warns(UserWarning, match=r"is not kept \(No space left on device\)"):
        build(path, "Relu", "Relu")
    assert path.read_bytes() == before
    assert not [file for file in path.parent.iterdir() if file.suffix == ".tmp"]


@pytest.mark.usefixtures("trt")
def test_a_failed_build_writes_nothing(path, monkeypatch, trt):
    monkeypatch.setattr(trt.Builder, "build_serialized_network", lambda *_: None)
    with pytest.raises(Exception, match="cannot build the engine"):
        build(path, "Relu")
    assert not path.exists()


def test_without_a_path_the_builder_is_left_alone(trt):
    build(None, "Relu")
    assert trt.configs()[-1].cache is None


def test_tensorrt_rtx_has_none(tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_engine(chain_model("Relu"), BuildSpec(targets=(89,)), timing_cache=tmp_path / "cache")
    assert not list(tmp_path.iterdir())


def test_the_library_itself_takes_the_calls():
    """tensorrt_rtx shares the names with tensorrt, and empties what it is given."""
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed")
    from latency_tables.backends.tensorrt.library import new_log

    config = trt.Builder(new_log(trt)).create_builder_config()
    cache = config.create_timing_cache(b"")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert config.set_timing_cache(cache, False)
        assert isinstance(cache.combine(config.create_timing_cache(b""), False), bool)
        assert bytes(cache.serialize())


def test_networks_of_10_are_strongly_typed_and_the_specification_arrives(trt, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt("10.3.0"))
    build_engine(chain_model("Relu"), BuildSpec(flavour="tensorrt", aux_streams=0))
    config = sys.modules["tensorrt"].configs()[-1]
    assert (config.max_aux_streams, config.avg_timing_iterations, config.flags) == (0, 8, {"TF32"})


class Runner:
    def __init__(self, trt, data, batch=None):
        self.data, self.batch = data, batch


@pytest.fixture
def backend(trt, monkeypatch, environment):
    monkeypatch.setattr(measuring, "cuda", lambda: None)
    monkeypatch.setattr(measuring, "TensorRtRunner", Runner)
    monkeypatch.setattr(TensorRtBackend, "environment", lambda self: environment)
    return TensorRtBackend("tensorrt")


@pytest.fixture
def environment():
    from fake_backend import ENVIRONMENT

    return ENVIRONMENT


def test_a_table_has_the_cache_beside_it_one_for_each_environment(backend, environment, tmp_path):
    backend.keep_timings_beside(tmp_path / "table.json.journal.jsonl")
    assert backend.build(chain_model("Relu")).data == b"engine"
    name = f"tensorrt-{environment.fingerprint()}.timing_cache"
    assert (tmp_path / name).is_file()
    backend.keep_timings_beside(tmp_path / "elsewhere" / "table.json")
    assert backend.timing_cache == tmp_path / name, "the first place stays"


def test_tensorrt_rtx_keeps_nothing_beside_a_table(tmp_path):
    backend = TensorRtBackend("tensorrt_rtx")
    backend.keep_timings_beside(tmp_path / "table.json")
    assert backend.timing_cache is None
