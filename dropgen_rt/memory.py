"""How much memory a scan will take, before it is taken, and what there is.

What exists already (the interpreter, the scan, the network and its workspace) is measured; what the road will add is
counted. The peak is the sum.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from dropgen_rt.components import BYTES_PER_VOXEL, Components
from dropgen_rt.errors import MemoryLimitError, UsageError
from dropgen_rt.rolling import ring_depth
from dropgen_rt.windows import WindowPlan

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
FLOAT = 4


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes: ``resident`` exist already, ``parts`` are to come; they add up to the most at any time."""

    resident: int
    parts: dict[str, int]

    @property
    def peak(self) -> int:
        """Bytes at the same time."""
        return self.resident + sum(self.parts.values())

    def line(self) -> str:
        """One line for a person."""
        largest = sorted(self.parts.items(), key=lambda part: -part[1])[:3]
        told = ", ".join(f"{name} {in_words(size)}" for name, size in largest)
        return f"memory: {in_words(self.peak)} at most, of which {in_words(self.resident)} now ({told})"

    def require(self, limit: int | None, available: int | None = None) -> None:
        """Raise MemoryLimitError if the peak exceeds the limit, or what is to come exceeds what is available."""
        if limit is not None and self.peak > limit:
            raise MemoryLimitError(
                f"this scan needs {in_words(self.peak)} of memory, --memory allows {in_words(limit)}; "
                f"give --memory {in_option(self.peak)} or more, or a model with a smaller window"
            )
        if available is not None and sum(self.parts.values()) > available:
            raise MemoryLimitError(
                f"this scan needs {in_words(self.peak)} of memory, of which {in_words(self.resident)} are in use; only "
                f"{in_words(available)} more are free; close other programs, or give a model with a smaller window"
            )


def plan_memory(
    plan: WindowPlan, native_shape: tuple[int, int, int], *, channels: int, classes: int, batch: int,
    probabilities: bool, resident: int, skips_air: bool = True, components: Components = "all",
) -> MemoryPlan:  # fmt: skip
    """What the road will hold on the CPU for the scan of ``native_shape`` (z, y, x) under this window plan."""
    depth, height, width = plan.shape
    window = plan.window[0] * plan.window[1] * plan.window[2]
    native = native_shape[0] * native_shape[1] * native_shape[2]
    label = 1 if classes <= 256 else 2
    rolling = {
        "image on the model's grid": FLOAT * channels * depth * height * width,
        "sums": FLOAT * classes * ring_depth(plan) * height * width,
        "windows": FLOAT * channels * window * batch,
        "logits of air": FLOAT * classes * window * skips_air,
    }
    found = {"labels": label * native, "probabilities": FLOAT * native * probabilities}
    # Afterwards, in the place of what rolled: turning what was found to the scan's own axes takes as much again,
    # finding components more than that.
    after = {"labels turned to the scan's axes": sum(found.values())}
    if components == "largest":
        after = {"components": max(BYTES_PER_VOXEL * native, sum(found.values()))}
    beyond = {name: max(size - sum(rolling.values()), 0) for name, size in after.items()}
    return MemoryPlan(resident, rolling | found | beyond)


def resident_bytes() -> int:
    """Bytes of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def peak_resident_bytes() -> int:
    """The most that this process ever had in memory, or has had since ``reset_peak``."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0


def reset_peak() -> None:
    """Let ``peak_resident_bytes`` start again."""
    Path("/proc/self/clear_refs").write_text("5")


def available_bytes() -> int | None:
    """Memory that a new allocation can have without swapping; None where the system does not say."""
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def parse_bytes(text: str) -> int:
    """``4G``, ``1.5GB``, ``800M`` or plain bytes. Raises UsageError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)I?B?\s*", text.upper())
    if not found or float(found[1]) <= 0:
        raise UsageError(f"memory {text!r}: accepted is a number with K, M, G or T, such as 4G")
    return int(float(found[1]) * _UNITS[found[2]])


def in_words(size: int) -> str:
    """``3.42 GB``; 1 GB is 2**30 bytes."""
    return f"{size / 2**30:.2f} GB" if size >= 2**30 else f"{size / 2**20:.0f} MB"


def in_option(size: int) -> str:
    """The size rounded up, as --memory takes it."""
    return f"{-(-size // 2**20)}M"
