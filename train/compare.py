"""Other ways through a scan with the same PyTorch network, to be timed beside ours: MONAI's and nnU-Net's.

Each takes the scan already on the model's grid and normalised, and gives labels on the scan's own grid, in the model's
orientation: window placement, blending, interpolation of the K logits and arg-max are the other's own.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from numpy.typing import NDArray
from torch import Tensor, nn

from dropgen_rt.errors import UsageError
from dropgen_rt.kernels import Normalisation
from dropgen_rt.kernels.gather import gather_definition

Labels = NDArray[np.uint8]
Way = Callable[["Problem"], Labels]


@dataclass(frozen=True)
class Problem:
    """``image`` (C, z, y, x) float32 on the model's grid with its bounds; ``native_shape`` (z, y, x) of the scan."""

    image: NDArray[np.float32]
    bounds: Normalisation
    native_shape: tuple[int, int, int]
    window: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    native_spacing_mm: tuple[float, float, float]
    overlap: float
    blend: str

    def normalised(self) -> Tensor:
        """(1, C, z, y, x) float32 in 0 to 1."""
        start = np.zeros((1, 3), np.int32)
        return torch.from_numpy(gather_definition(self.image, start, self.image.shape[1:], self.bounds))


def monai_way(network: Callable[[Tensor], Tensor]) -> Way:
    """``sliding_window_inference`` over ``network`` and trilinear interpolation of its logits."""

    def run(problem: Problem) -> Labels:
        with torch.no_grad():
            logits = sliding_window_inference(
                problem.normalised(), problem.window, 1, network, overlap=problem.overlap, mode=problem.blend
            )
            assert isinstance(logits, Tensor)
            full = torch.nn.functional.interpolate(logits.float(), size=problem.native_shape, mode="trilinear")
        return full.argmax(1)[0].numpy().astype(np.uint8)

    return run


def bfloat16(network: nn.Module) -> nn.Module:
    """The network in channels-last memory under bf16 autocast, the fast way of PyTorch on a CPU."""

    class Autocast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

        def forward(self, windows: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                # A view of the image first becomes contiguous: a compiled network sees the same strides every time.
                return self.inner(windows.contiguous().to(memory_format=torch.channels_last_3d)).float()

    return Autocast()


def nnunet_way(network: nn.Module) -> Way:
    """nnU-Net's window steps, Gaussian and half sums around ``network``, and its resampling of logits (order 1)."""
    try:
        from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window
        from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
    except ImportError as error:
        raise UsageError(
            f"--against nnunet: {error}; install it with: pip install --no-deps -r benchmarks/requirements.txt"
        ) from error

    def run(problem: Problem) -> Labels:
        image = problem.normalised()
        gaussian = compute_gaussian(
            problem.window, sigma_scale=1 / 8, value_scaling_factor=10, device=torch.device("cpu")
        )
        short = [max(edge - size, 0) for edge, size in zip(problem.window, image.shape[2:], strict=True)]
        pad = [(miss // 2, miss - miss // 2) for miss in short]
        image = torch.nn.functional.pad(image, [side for axis in reversed(pad) for side in axis])
        steps = compute_steps_for_sliding_window(image.shape[2:], problem.window, 1 - problem.overlap)
        sums, counts = None, torch.zeros(image.shape[2:], dtype=torch.half)
        with torch.no_grad():
            for z in steps[0]:
                for y in steps[1]:
                    for x in steps[2]:
                        corner = zip((z, y, x), problem.window, strict=True)
                        place = tuple(slice(start, start + edge) for start, edge in corner)
                        logits = network(image[(slice(None), slice(None), *place)])[0]
                        if sums is None:
                            sums = torch.zeros((len(logits), *image.shape[2:]), dtype=torch.half)
                        sums[(slice(None), *place)] += logits * gaussian
                        counts[place] += gaussian
        assert sums is not None
        kept = tuple(slice(before, size - after) for (before, after), size in zip(pad, counts.shape, strict=True))
        scaled = (sums / counts)[(slice(None), *kept)]
        spacings = problem.spacing_mm[::-1], problem.native_spacing_mm[::-1]
        full = resample_data_or_seg_to_shape(scaled, problem.native_shape, *spacings, is_seg=False, order=1, order_z=0)
        return torch.as_tensor(full).argmax(0).numpy().astype(np.uint8)

    return run


@dataclass(frozen=True)
class Other:
    """One of the other ways. ``slow`` is PyTorch in fp32; ``best`` runs with the overlap and blend of ours.

    ``prepare`` puts one window of zeros through the network: what is compiled is compiled then.
    """

    name: str
    run: Way
    prepare: Callable[[], object]
    slow: bool = False
    best: bool = False


def published(name: str) -> tuple[float, str]:
    """Overlap and blend of the published method, or of nnU-Net's predictor."""
    return 0.5, "gaussian" if name.startswith("nnunet") else "constant"


def ways(network: nn.Module, names: tuple[str, ...], shape: tuple[int, ...]) -> list[Other]:
    """The ways named: monai (fp32, and channels-last bf16), torch (that one compiled), nnunet. fp32 comes first.

    ``shape`` is that of a window, (1, channels, z, y, x).
    """

    def one_window(run: Callable[[Tensor], Tensor]) -> Callable[[], object]:
        def prepare() -> None:
            with torch.no_grad():
                run(torch.zeros(shape))

        return prepare

    half = bfloat16(copy.deepcopy(network))  # the layout of weights belongs to the network
    found = [Other("monai fp32", monai_way(network), one_window(network), slow=True)]
    if "monai" in names:
        found.append(Other("monai bf16 channels-last", monai_way(half), one_window(half)))
        found.append(Other("monai bf16, our overlap", monai_way(half), lambda: None, best=True))
    if "torch" in names:
        compiled = bfloat16(copy.deepcopy(network))
        compiled.inner = torch.compile(compiled.inner)  # type: ignore[arg-type, assignment]
        found.append(Other("monai bf16 compiled", monai_way(compiled), one_window(compiled)))
    if "nnunet" in names:
        found.append(Other("nnunet fp32", nnunet_way(network), one_window(network), slow=True))
    return found
