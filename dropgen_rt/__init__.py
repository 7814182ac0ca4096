"""dropgen-rt: DropGen 3D segmentation models, from a scan file to labels on the scan's own grid.

The public names, one a line; docs/api.md tells of each. Importing this never imports torch.
"""

from importlib.metadata import PackageNotFoundError, version

from dropgen_rt.channels import read_channels
from dropgen_rt.engines import Engine, open_engine
from dropgen_rt.errors import DropgenError
from dropgen_rt.geometry import Geometry
from dropgen_rt.manifest import Label, Manifest
from dropgen_rt.model import Model, read_model
from dropgen_rt.record import Record
from dropgen_rt.segment import Segmentation, segment
from dropgen_rt.settings import Settings
from dropgen_rt.store import open_named
from dropgen_rt.volume import Volume, read_scan
from dropgen_rt.windows import WindowPlan

try:
    __version__ = version("dropgen-rt")
except PackageNotFoundError as error:
    raise ImportError("dropgen-rt is not installed; in a checkout run: pip install -e .") from error

__all__ = [
    "DropgenError",
    "Engine",
    "Geometry",
    "Label",
    "Manifest",
    "Model",
    "Record",
    "Segmentation",
    "Settings",
    "Volume",
    "WindowPlan",
    "open_engine",
    "open_named",
    "read_channels",
    "read_model",
    "read_scan",
    "segment",
]
