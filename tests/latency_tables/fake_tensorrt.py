"""A stand-in for the module tensorrt that builds on a GPU of its own: every build learns one tactic for its network."""

from types import ModuleType, SimpleNamespace

GPU = "GPU-1"


class Cache:
    def __init__(self, gpu, tactics):
        self.gpu, self.tactics = gpu, tactics

    def serialize(self):
        return f"timings:{self.gpu}:{','.join(sorted(self.tactics))}".encode()

    def combine(self, other, ignore_mismatch):
        self.tactics |= other.tactics
        return True


class Config:
    def __init__(self, builder):
        self.builder, self.cache, self.flags = builder, None, set()
        self.set_flag, self.clear_flag = self.flags.add, self.flags.discard

    def create_timing_cache(self, data):
        if not data:
            return Cache(GPU, set())
        kind, _, rest = data.decode(errors="replace").partition(":")
        if kind != "timings" or ":" not in rest:
            self.builder.complain("Deserialization of the timing cache failed.\n")
            return None
        gpu, _, tactics = rest.partition(":")
        return Cache(gpu, set(tactics.split(",")))

    def set_timing_cache(self, cache, ignore_mismatch):
        if cache.gpu != GPU and not ignore_mismatch:
            return False
        self.cache = cache
        return True

    def get_timing_cache(self):
        return self.cache


class Builder:
    configs = ()

    def __init__(self, log):
        self.log = log

    def complain(self, text):
        self.log.log(SimpleNamespace(name="ERROR"), text)

    def create_network(self, flags):
        return SimpleNamespace(num_layers=1, num_inputs=0, num_outputs=1, flags=flags)

    def create_builder_config(self):
        Builder.configs = (*Builder.configs, Config(self))
        return Builder.configs[-1]

    def build_serialized_network(self, network, config):
        self.known = set(config.cache.tactics) if config.cache is not None else None
        if config.cache is not None:
            config.cache.tactics.add(network.model)
        return b"engine"


class Parser:
    num_errors = 0

    def __init__(self, network, log):
        self.network = network

    def parse(self, data):
        self.network.model = f"tactic{len(data)}"
        return True


class Base:
    def __init__(self):
        pass


def fake_tensorrt(version="11.4.0", name="tensorrt"):
    """Return the module; `module.configs()` are the builder configurations that were made, oldest first."""
    module = ModuleType(name)
    Builder.configs = ()
    vars(module).update(
        __version__=version, ILogger=Base, IProgressMonitor=Base, Builder=Builder, OnnxParser=Parser,
        ProfilingVerbosity=SimpleNamespace(DETAILED="detailed"), BuilderFlag=SimpleNamespace(TF32="TF32"),
        NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=1), configs=lambda: Builder.configs,
    )  # fmt: skip
    return module
