"""Hippocampus from scratch: the last 52 ids validate; the same Dice must come out of export and infer.

python benchmarks/hippocampus.py --work WORK --out benchmarks/results/hippocampus_image_first.json -- --preset tiny

What follows ``--`` are options of ``dropgen-rt train``. The run in WORK/run goes on where it was stopped; ``--so-far``
trains no further and scores the best that it has; ``--fold 0`` to ``4`` hold out every fifth scan in place of the last.
"""

from from_scratch import from_scratch

if __name__ == "__main__":
    from_scratch(__doc__, "hippocampus")
