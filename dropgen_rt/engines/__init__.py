"""What runs a network: one small contract, one file per engine behind it."""

from dropgen_rt.engines.choose import open_engine
from dropgen_rt.engines.contract import DeviceEngine, Engine

__all__ = ["DeviceEngine", "Engine", "open_engine"]
