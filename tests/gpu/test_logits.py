"""How many windows' logits wait for each other."""

import pytest

from dropgen_rt.gpu.logits import ALIGNMENT, waiting_windows, window_bytes, windows_of_layer
from dropgen_rt.windows import WindowPlan

PLAN = WindowPlan.cover((38, 33, 45), (16, 16, 16), 0.5)  # layers of 4 x 5 windows
WINDOW = 16**3 * 5 * 4


@pytest.mark.parametrize(("room", "batch", "waiting"), [
    (0, 4, 4), (3, 4, 4), (7, 4, 4), (8, 4, 8), (19, 4, 16), (20, 4, 20), (1000, 4, 20), (1000, 20, 20), (1000, 30, 30),
    (19, 3, 18), (-5, 4, 4),
])  # fmt: skip
def test_whole_batches_wait_up_to_a_layer_where_a_quarter_of_what_is_left_holds_them(room, batch, waiting):
    assert windows_of_layer(PLAN) == 20
    assert waiting_windows(PLAN, batch, 4 * room * WINDOW, WINDOW) == waiting


def test_none_wait_where_the_next_batch_would_not_be_aligned():
    assert waiting_windows(PLAN, 4, 10**12, WINDOW + ALIGNMENT // 2) == 4


@pytest.mark.parametrize(("logit_type", "size"), [("f32", 4), ("f16", 2), ("bf16", 2)])
def test_bytes_of_a_window(logit_type, size):
    assert window_bytes(logit_type, 14, 96**3) == 14 * 96**3 * size
