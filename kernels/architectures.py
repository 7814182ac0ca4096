"""For which GPUs the CUDA files are compiled, and how."""

# Compute capabilities: Turing, A100, RTX 30, Jetson Orin, RTX 40, Hopper, Blackwell data centre, RTX 50.
ARCHITECTURES = (75, 80, 86, 87, 89, 90, 100, 120)

# No contraction into fused multiply-adds: the GPU rounds as the host and NumPy do.
NVCC_FLAGS = ("-std=c++17", "-O3", "-fmad=false")

THREADS_PER_BLOCK = 256

# stem -> the entry points of <stem>.cu; grid and arguments stand in the file's first comment
ENTRY_POINTS = {
    "gather": ("gather",),
    "accumulate": ("accumulate_f32", "accumulate_f16", "accumulate_bf16"),
    "finalise": ("finalise_u8", "finalise_u16"),
    "resample": tuple(f"resample{taps}_{voxel}" for taps in ("", "_one_tap") for voxel in ("f32", "i16", "u16", "u8")),
    "reduce": ("extremes", "histogram"),
    "statistics": ("statistics_u8", "statistics_u16"),
}
