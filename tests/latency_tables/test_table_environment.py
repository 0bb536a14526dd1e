import warnings
from dataclasses import fields, replace
from pathlib import Path
from subprocess import CalledProcessError, CompletedProcess

import pytest
from fake_backend import ENVIRONMENT

from depthcomp_errors import TableMismatchError
from latency_tables import Environment
from latency_tables.tables.environment import KEY_FIELDS, SOFT_FIELDS, cpu_name, require_same_environment

pytestmark = pytest.mark.whole


def compare(changed: Environment) -> None:
    require_same_environment(changed, ENVIRONMENT, what="the table", remedy="measure anew")


@pytest.mark.parametrize("name", KEY_FIELDS)
def test_a_key_field_refuses_and_is_named(name: str) -> None:
    other = 4 if name == "threads" else "other"
    sentence = f"the table was measured with {name} {other!r}, but here {name} is .*{getattr(ENVIRONMENT, name)}"
    with pytest.raises(TableMismatchError, match=sentence):
        compare(replace(ENVIRONMENT, **{name: other}))


@pytest.mark.parametrize("name", SOFT_FIELDS)
def test_a_soft_field_only_warns(name: str) -> None:
    with pytest.warns(UserWarning, match=f"with {name} 'other', .* may differ a little"):
        compare(replace(ENVIRONMENT, **{name: "other"}))


@pytest.mark.parametrize("driver", [None, "0.1"])
def test_a_driver_that_one_place_does_not_tell_is_no_difference(driver: str | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        here = replace(ENVIRONMENT, driver=None if driver else "0.1")
        require_same_environment(replace(ENVIRONMENT, driver=driver), here, what="the table", remedy="measure anew")


def test_every_field_is_key_or_soft() -> None:
    assert {*KEY_FIELDS, *SOFT_FIELDS} == {field.name for field in fields(ENVIRONMENT)}


def test_the_same_environment_is_silent() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compare(replace(ENVIRONMENT))


def test_the_fingerprint_tells_apart_what_the_key_fields_tell_apart() -> None:
    changed = [replace(ENVIRONMENT, **{name: 4 if name == "threads" else "other"}) for name in KEY_FIELDS]
    prints = [environment.fingerprint() for environment in (ENVIRONMENT, *changed)]
    assert len(set(prints)) == len(prints)
    assert all(len(digits) == 8 and int(digits, 16) >= 0 for digits in prints)
    for name in SOFT_FIELDS:
        assert replace(ENVIRONMENT, **{name: "other"}).fingerprint() == prints[0]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("cpu family\t: 26\nmodel\t\t: 2\nmodel name\t: AMD EPYC\n", "AMD EPYC (family 26, model 2)"),
        ("model name\t: Neoverse-N1\n", "Neoverse-N1"),
    ],
)
def test_the_processor_is_named_with_its_numbers(tmp_path: Path, text: str, name: str) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert cpu_name(tmp_path / "cpuinfo") == name


def test_processors_without_a_name_differ_by_their_numbers(tmp_path: Path) -> None:
    cores = ["CPU implementer\t: 0x41\nCPU part\t: 0xd08\n", "CPU implementer\t: 0x41\nCPU part\t: 0xd03\n"]
    (tmp_path / "cpuinfo").write_text("\n".join(cores))
    assert cpu_name(tmp_path / "cpuinfo").endswith(" (implementer 0x41, part 0xd03/0xd08)")


def test_a_system_without_cpuinfo_still_names_its_processor(tmp_path: Path) -> None:
    assert cpu_name(tmp_path / "absent")


def test_two_macs_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sysctl(command: list[str], **_: object) -> CompletedProcess[str]:
        assert command[1:] == ["-n", "machdep.cpu.brand_string"]
        return CompletedProcess(command, 0, stdout="Apple M2 Pro\n")

    monkeypatch.setattr("latency_tables.tables.environment.platform.system", lambda: "Darwin")
    monkeypatch.setattr("latency_tables.tables.environment.subprocess.run", sysctl)
    assert cpu_name(tmp_path / "absent") == "Apple M2 Pro"


@pytest.mark.parametrize("error", [FileNotFoundError(), CalledProcessError(1, "sysctl")])
def test_a_mac_that_does_not_tell_its_name_has_one_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def sysctl(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("latency_tables.tables.environment.platform.system", lambda: "Darwin")
    monkeypatch.setattr("latency_tables.tables.environment.subprocess.run", sysctl)
    assert cpu_name(tmp_path / "absent")
