"""How well the demo model's label maps, laid onto an average head, agree with the tissue priors that score it.

    python benchmarks/label_map_limit.py --out benchmarks/results/label_map_limit.json      (needs ../shared/data)

Each label map is painted as a T1, laid onto the average T1 of 152 heads by SimpleITK, affinely and then by demons, and
its labels go along. It tells the Dice of the most frequent label of all maps with the priors thresholded at one half,
and what the maps hold where the prior of fluid is above one half. It is an estimate of what such labels allow, not a
bound: errors of laying on count in it. Cerebellum and brainstem are left out by the most frequent label, as
demo_model.py leaves them out by the model's.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813  the name its users know
from demo_model import DATA, MIXED, ROOT, TISSUES, dice, prior
from numpy.typing import NDArray
from recording import write

from dropgen_rt.dataset_labels import read_label_table
from dropgen_rt.train.synthesis import SynthesisConfig
from dropgen_rt.volume import read_label_map

CONTRASTS = DATA / "brain_contrasts"
EXAMPLE = ROOT / "examples" / "brain9"
BONE = ("bone", "marrow")
# Painted borders are sharp, those of an average of heads are not; labels are smoothed before coarser voxels take them.
BLUR_MM, LABEL_BLUR_MM = 2.0, 0.7
DEMONS_STEPS, DEMONS_SMOOTHING_VOXELS = 80, 1.5


def shares(path: Path) -> dict[str, NDArray[np.float16]]:
    """Per way of laying on: shares (of background, each label, bone; z, y, x) on the average's grid."""
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)  # one process per core
    synthesis = SynthesisConfig.read(EXAMPLE / "synthesis.toml")
    source = sitk.ReadImage(path)
    values = read_label_map(path)[0]
    fixed = sitk.ReadImage(CONTRASTS / "avg152T1.nii.gz", sitk.sitkFloat32)
    moving = sitk.SmoothingRecursiveGaussian(as_image(painted(values, synthesis), source), BLUR_MM)
    table = read_label_table(EXAMPLE / "dataset.json")
    labels = table.merge(values)
    bone = np.isin(values, [value for name in BONE for value in synthesis.tissues[name]])
    indicators = [*(labels == value for value in range(len(table.labels) + 1)), bone]
    ways = transforms(fixed, moving)
    laid: dict[str, list[NDArray[np.float16]]] = {name: [] for name in ways}
    for indicator in indicators:
        volume = sitk.SmoothingRecursiveGaussian(as_image(indicator.astype(np.float32), source), LABEL_BLUR_MM)
        for name, transform in ways.items():
            on_grid = sitk.Resample(volume, fixed, transform)
            laid[name].append(sitk.GetArrayFromImage(on_grid).astype(np.float16))
    return {name: np.stack(volumes) for name, volumes in laid.items()}


def painted(values: NDArray, synthesis: SynthesisConfig) -> NDArray[np.float32]:
    """A label map's T1: each tissue's mean."""
    image = np.zeros(values.shape, np.float32)
    for tissue, members in synthesis.tissues.items():
        image[np.isin(values, members)] = synthesis.means["t1"][tissue]
    return image


def as_image(array: NDArray[np.float32], like: sitk.Image) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.CopyInformation(like)
    return image


def transforms(fixed: sitk.Image, moving: sitk.Image) -> dict[str, sitk.Transform]:
    """From the average's millimetres to a head's: affine by mutual information, and demons after it."""
    affine = sitk.CenteredTransformInitializer(
        fixed, moving, sitk.AffineTransform(3), sitk.CenteredTransformInitializerFilter.MOMENTS
    )
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.2, seed=1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsGradientDescentLineSearch(1.0, 200, 1e-5, 8)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2, 1])
    method.SetSmoothingSigmasPerLevel([4, 2, 0])
    method.SetInitialTransform(affine, inPlace=True)
    method.Execute(fixed, moving)
    matched = sitk.HistogramMatching(sitk.Resample(moving, fixed, affine), fixed, 256, 10, True)
    demons = sitk.SymmetricForcesDemonsRegistrationFilter()
    demons.SetNumberOfIterations(DEMONS_STEPS)
    demons.SetStandardDeviations(DEMONS_SMOOTHING_VOXELS)
    field = sitk.Cast(demons.Execute(fixed, matched), sitk.sitkVectorFloat64)
    both = sitk.CompositeTransform([affine, sitk.DisplacementFieldTransform(field)])
    return {"affine": affine, "affine and demons": both}


def agreement(mean: NDArray[np.float64], values: dict[str, int]) -> dict[str, object]:
    """Dice per tissue of the most frequent label, and the mean shares under the prior of fluid.

    ``mean`` (shares as above, z, y, x): bone, the last, is a part of the background's share and has no vote.
    """
    most = np.argmax(mean[:-1], axis=0)
    pure = ~np.isin(most, [values[name] for name in MIXED])
    found = {}
    for tissue, members in TISSUES.items():
        ours = np.isin(most, [values[name] for name in members]) & pure
        found[tissue] = dice(ours, prior(CONTRASTS, tissue) & pure)
    fluid = prior(CONTRASTS, "csf") & pure
    under = {name: round(float(mean[value][fluid].mean()), 3) for name, value in values.items()}
    return {"dice": found, "shares_under_the_prior_of_fluid": under | {"bone": round(float(mean[-1][fluid].mean()), 3)}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    paths = sorted((DATA / "synthseg_label_maps").glob("training_seg_*.nii.gz"))
    values = {label.name: label.value for label in read_label_table(EXAMPLE / "dataset.json").labels}
    totals: dict[str, NDArray[np.float64]] = {}
    with ProcessPoolExecutor() as pool:
        for path, laid in zip(paths, pool.map(shares, paths), strict=True):
            print(path.name, flush=True)
            for name, head in laid.items():
                totals[name] = totals.get(name, 0) + head.astype(np.float64)
    ways = {name: agreement(total / len(paths), values) for name, total in totals.items()}
    for name, way in ways.items():
        print(f"{name}: {way}")
    write(arguments.out, {"label_maps": len(paths), "laid_on": ways})


if __name__ == "__main__":
    main()
