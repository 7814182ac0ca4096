"""What runs a network: one small contract, one file per engine behind it."""

from dropgen_rt.engines.contract import Engine, open_engine

__all__ = ["Engine", "open_engine"]
