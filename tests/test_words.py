import numpy as np
import pytest

from dropgen_rt.words import by


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((256, 256, 1_234_567), "256 x 256 x 1234567"),
        (np.array([1_234_567, 2]), "1234567 x 2"),
        ((1.0, 1.0, 1.2), "1 x 1 x 1.2"),
        (np.array([0.7499999999, 2.5]), "0.75 x 2.5"),
        ((), ""),
    ],
)
def test_sizes_and_spacings_for_people(values, expected):
    assert by(values) == expected
