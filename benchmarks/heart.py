"""Heart MRI from scratch: few thick slices, a body far larger than the heart; the last twelve patients validate.

python benchmarks/heart.py --work WORK --out benchmarks/results/heart_tilted_less.json -- --preset tiny

Options as of hippocampus.py. The model works on finer slices and coarser voxels than the scans, so Dice on the working
grid (``validation``) and on the scans' own (``infer_mean_dice``) differ.
"""

from from_scratch import from_scratch

if __name__ == "__main__":
    from_scratch(__doc__, "heart_acdc")
