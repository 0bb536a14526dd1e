"""The state of a GPU, read through NVML and never set: latencies are only as steady as its clocks."""

from typing import Any

from latency_tables.backends.capabilities import DeviceState

__all__ = ["DeviceState", "read_device_state", "slowdowns"]

_REASONS = {
    0x001: "gpu_idle",
    0x002: "applications_clocks_setting",
    0x004: "sw_power_cap",
    0x008: "hw_slowdown",
    0x010: "sync_boost",
    0x020: "sw_thermal_slowdown",
    0x040: "hw_thermal_slowdown",
    0x080: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
}
"""The bits of nvmlClocksThrottleReason*, in nvml.h."""
_HARMLESS = ("gpu_idle", "applications_clocks_setting", "display_clock_setting")  # chosen, or between two kernels


def read_device_state(index: int = 0) -> DeviceState | None:
    """Return driver, clocks in MHz, temperature in degrees Celsius, power in mW and reasons to throttle.

    The reasons are NVML's names with a space between them; "none" where there are none.

    What a GPU does not tell is left out. None where nvidia-ml-py is not installed or there is no driver.

    Args:
        index: of the GPU, as nvidia-smi counts.
    """
    try:
        import pynvml  # type: ignore[import-untyped, import-not-found, unused-ignore]
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        return _read(pynvml, pynvml.nvmlDeviceGetHandleByIndex(index))
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()


def slowdowns(state: DeviceState | None) -> tuple[str, ...]:
    """Return the reasons in a state for which latencies are longer than the GPU can do; idling is none of them."""
    reasons = str((state or {}).get("throttle_reasons", "")).split()
    return tuple(reason for reason in reasons if reason not in (*_HARMLESS, "none"))


def _names(bits: int) -> str:
    known = [name for bit, name in _REASONS.items() if bits & bit]
    rest = bits & ~sum(_REASONS)
    return " ".join([*known, *([hex(rest)] if rest else [])]) or "none"


def _read(nvml: Any, gpu: Any) -> DeviceState:
    questions = {
        "driver": nvml.nvmlSystemGetDriverVersion,
        "sm_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM),
        "memory_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_MEM),
        "max_sm_clock_mhz": lambda: nvml.nvmlDeviceGetMaxClockInfo(gpu, nvml.NVML_CLOCK_SM),
        "temperature_celsius": lambda: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU),
        "power_mw": lambda: nvml.nvmlDeviceGetPowerUsage(gpu),
        "throttle_reasons": lambda: _names(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu)),
    }
    state: DeviceState = {}
    for name, ask in questions.items():
        try:
            state[name] = ask()
        except nvml.NVMLError:
            continue  # not every GPU tells everything
    return state
