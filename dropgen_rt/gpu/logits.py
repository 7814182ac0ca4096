"""Logits on the device: what type they are, and how many windows' wait until they are added to the sums together."""

import numpy as np

from dropgen_rt.windows import WindowPlan

#: The number one as each type of logits stores it.
ONE: dict[str, np.generic] = {"f32": np.float32(1), "f16": np.uint16(0x3C00), "bf16": np.uint16(0x3F80)}

#: Of the memory that is left beside one batch of windows, the part that logits may take which wait for those of further
#: windows. The rest is the network's, which is not told here.
WAITING_SHARE = 1 / 4

#: Bytes: TensorRT takes logits at multiples of this, and those of a batch may begin behind others that wait.
ALIGNMENT = 256


def window_bytes(logit_type: str, classes: int, voxels: int) -> int:
    """What the logits of one window take."""
    return ONE[logit_type].itemsize * classes * voxels


def windows_of_layer(plan: WindowPlan) -> int:
    """The windows of one z."""
    return len(plan) // len(plan.axis_starts[0])


def waiting_windows(plan: WindowPlan, batch: int, left: int, of_window: int) -> int:
    """The windows whose logits of ``of_window`` bytes are added together where ``left`` bytes are: whole batches, up to
    a layer."""
    of_layer, fitting = windows_of_layer(plan), int(WAITING_SHARE * left) // of_window
    if of_window % ALIGNMENT or of_layer <= batch:
        return batch
    return of_layer if fitting >= of_layer else max(fitting // batch, 1) * batch
