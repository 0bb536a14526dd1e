"""Backends as a user may write them, named on the command line; tests put the class of their machine here."""

machine = None
made = []


def backend(threads):
    made.append(machine())
    return made[-1]


def throttled(threads):
    found = backend(threads)
    found.device_state = lambda: {"sm_clock_mhz": 900, "throttle_reasons": "gpu_idle sw_power_cap"}
    return found


def drifting(threads):
    """Every inference is slower than the one before."""
    found, calls = backend(threads), []
    build = found.build

    def slower(onnx_model):
        runner = build(onnx_model)
        steady = runner.time_ms
        runner.time_ms = lambda inner: steady(inner) * (1 + 0.1 * (calls.append(0) or len(calls)))
        return runner

    found.build = slower
    return found


def deaf(threads):
    """It builds nothing."""
    from depthcomp.errors import TableError

    found = backend(threads)

    def refuse(onnx_model):
        raise TableError("no kernel takes this.")

    found.build = refuse
    return found
