"""A CT series of 400 slices of 512 x 512: read and gated against its raw bytes, and 30 structures written.

    python benchmarks/dicom_read.py --out benchmarks/results/dicom_read.json

The series is made in a temporary folder, uncompressed, with a private element of 64 KiB per slice as scanners add.
Reading is compared, run by run, with pydicom alone: dcmread of every file and its PixelData as bytes, kept until
all are read; no pixel decoded, nothing checked. Ours reads the headers in guarded children, gates, rescales to
float32 and takes the digest of all files. Peak memory is of this process and the largest child.
"""

import argparse
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
from recording import write

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from dicom_series import write as write_series

from dropgen_rt.dicom.job import WritingJob
from dropgen_rt.dicom.read import DicomScan, read_dicom
from dropgen_rt.dicom.segmentation import build, check
from dropgen_rt.dicom.sources import read_sources
from dropgen_rt.manifest import Label
from dropgen_rt.record import Record

SLICES, EDGE, STRUCTURES = 400, 512, 30


def timed(work: Callable[[], object]) -> tuple[float, object]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def make_series(folder: Path) -> None:
    """Smooth anatomy and noise, 12 bits."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:EDGE, :EDGE]
    body = np.where((x - 256) ** 2 / 220**2 + (y - 256) ** 2 / 160**2 < 1, 1060, 24)
    array = np.empty((SLICES, EDGE, EDGE), np.int16)
    for plane in array:
        plane[...] = body + random.integers(-20, 20, body.shape)

    def edit(dataset: pydicom.Dataset, number: int) -> None:
        dataset.add_new(0x00290010, "LO", "ACME HEADER")
        dataset.add_new(0x00291010, "OB", bytes(2**16))
        dataset.RescaleIntercept = "-1024"

    write_series(folder, array, edit=edit, spacing_mm=(0.7, 0.7, 1.0))


def structures() -> np.ndarray:
    """(slices, rows, columns) uint8: 30 ellipsoids through one another, as organs fill a body."""
    random = np.random.default_rng(1)
    labels = np.zeros((SLICES, EDGE, EDGE), np.uint8)
    z, y, x = np.ogrid[:SLICES, :EDGE, :EDGE]
    for value in range(1, STRUCTURES + 1):
        centre = random.uniform([40, 130, 80], [360, 380, 430])
        radii = random.uniform(20, 70, 3)
        inside = sum(((axis - c) / r) ** 2 for axis, c, r in zip((z, y, x), centre, radii, strict=True)) < 1
        labels[inside] = value
    return labels


def write_label_map(scan: DicomScan, labels: np.ndarray, path: Path, kind: str) -> None:
    """As infer does it: source headers, object, file, reading back and comparing."""
    names = tuple(Label(value, f"structure {value}", (value * 8, 255 - value * 8, 90)) for value in range(1, 31))
    record = Record(
        input={}, model={"name": "benchmark", "sha256": "0" * 64}, settings={}, windows=0, labels=(), timings_s={},
        engine={"name": "none", "version": "0", "precision": "fp32", "device": "cpu"}, versions={"dropgen-rt": "0"},
    )  # fmt: skip
    job = WritingJob(scan, labels, names, record, read_sources(scan))
    build(job, kind).save_as(path)
    check(path, job)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=7)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "series"
        make_series(folder)
        files = sorted(folder.iterdir())
        raw, ours, scan = [], [], read_dicom(folder)  # once before: the system has its memory to find first
        for _ in range(arguments.runs):
            seconds, content = timed(lambda: [pydicom.dcmread(path).PixelData for path in files])
            raw.append(seconds)
            del scan, content
            seconds, scan = timed(lambda: read_dicom(folder))
            ours.append(seconds)
        assert isinstance(scan, DicomScan) and scan.volume.array.shape == (1, SLICES, EDGE, EDGE)
        labels = structures()
        label_map, binary = Path(name) / "labelmap.dcm", Path(name) / "seg.dcm"
        started = time.process_time()
        map_s = [timed(lambda: write_label_map(scan, labels, label_map, "dicom-labelmap"))[0] for _ in range(5)]
        map_cpu_s = (time.process_time() - started) / 5
        binary_s = timed(lambda: write_label_map(scan, labels, binary, "dicom-seg"))[0]
        sizes = {"labelmap": label_map.stat().st_size, "binary": binary.stat().st_size}
    ratios = [mine / theirs for mine, theirs in zip(ours, raw, strict=True)]
    print(f"read and gated over raw bytes: median {statistics.median(ratios):.2f}, to {max(ratios):.2f}")
    print(f"30 structures: label map {min(map_s):.2f} s ({map_cpu_s:.2f} s of processor), binary {binary_s:.2f} s")
    peaks = {who: resource.getrusage(kind).ru_maxrss // 1024
             for who, kind in (("process", resource.RUSAGE_SELF), ("child", resource.RUSAGE_CHILDREN))}  # fmt: skip
    write(arguments.out, {
        "runs": arguments.runs, "raw_s": raw, "read_and_gated_s": ours, "ratio_median": statistics.median(ratios),
        "ratio_largest": max(ratios), "labelmap_write_and_check_s": map_s, "labelmap_processor_s": map_cpu_s,
        "binary_write_and_check_s": binary_s,
        "bytes": sizes, "peak_mib": peaks,
    })  # fmt: skip


if __name__ == "__main__":
    main()
