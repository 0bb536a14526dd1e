"""What the GPU is doing, read through NVML: latencies are only as steady as clocks are. Nothing is ever set."""

from typing import Any

__all__ = ["read_device_state"]

DeviceState = dict[str, str | int]


def read_device_state(index: int = 0) -> DeviceState | None:
    """Return driver, clocks in MHz, temperature in degrees Celsius, power in mW and reasons to throttle, as bits.

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


def _read(nvml: Any, gpu: Any) -> DeviceState:
    questions = {
        "driver": nvml.nvmlSystemGetDriverVersion,
        "sm_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM),
        "memory_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_MEM),
        "max_sm_clock_mhz": lambda: nvml.nvmlDeviceGetMaxClockInfo(gpu, nvml.NVML_CLOCK_SM),
        "temperature_celsius": lambda: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU),
        "power_mw": lambda: nvml.nvmlDeviceGetPowerUsage(gpu),
        "throttle_reasons": lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu),
    }
    state: DeviceState = {}
    for name, ask in questions.items():
        try:
            state[name] = ask()
        except nvml.NVMLError:
            continue  # not every GPU tells everything
    return state
