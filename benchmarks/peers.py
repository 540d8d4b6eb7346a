"""Functions of other packages that correspond to a step of `preprocess.py`; each reads its input from files.

SimpleITK is in an extra of its own: ``pip install -e ".[peers]"``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def nibabel_load(bold: Path) -> None:
    """Load the whole series in float32."""
    import nibabel as nib

    nib.nifti1.load(bold).get_fdata(dtype=np.float32)


def simpleitk_motion(bold: Path) -> np.ndarray:
    """Register each volume to the middle one: rigid, squared differences, two levels."""
    import SimpleITK as sitk

    series = sitk.ReadImage(str(bold), sitk.sitkFloat32)
    n_volumes = series.GetSize()[3]
    volumes = [sitk.Extract(series, [*series.GetSize()[:3], 0], [0, 0, 0, t]) for t in range(n_volumes)]
    reference = volumes[n_volumes // 2]
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMeanSquares()
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(0.5, 1e-3, 50)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([2, 1])
    method.SetSmoothingSigmasPerLevel([3, 1.7])
    found = []
    for volume in volumes:
        start = sitk.Euler3DTransform()
        start.SetCenter((0.0, 20.0, 10.0))
        method.SetInitialTransform(start, inPlace=False)
        transform = method.Execute(reference, volume)
        matrix = np.eye(4)
        matrix[:3, 3] = transform.TransformPoint((0, 0, 0))
        for axis in range(3):
            unit = [0.0, 0.0, 0.0]
            unit[axis] = 1.0
            matrix[:3, axis] = np.array(transform.TransformPoint(unit)) - matrix[:3, 3]
        found.append(LPS @ matrix @ LPS)
    return np.stack(found)


def antspyx_motion(bold: Path) -> np.ndarray:
    """Run `ants.motion_correction` with its defaults for BOLD."""
    import ants
    from scipy.io import loadmat

    series = ants.image_read(str(bold))
    reference = ants.slice_image(series, axis=3, idx=series.shape[3] // 2)
    result = ants.motion_correction(series, fixed=reference, type_of_transform="BOLDRigid")
    found = []
    for files in result["motion_parameters"]:
        content = loadmat(files[0])
        values, centre = content["AffineTransform_float_3_3"].ravel(), content["fixed"].ravel()
        matrix = np.eye(4)
        matrix[:3, :3] = values[:9].reshape(3, 3)
        matrix[:3, 3] = values[9:] + centre - matrix[:3, :3] @ centre
        found.append(LPS @ matrix @ LPS)
    return np.stack(found)


def nipy_motion(bold: Path) -> np.ndarray:
    """Run `Realign4d` without slice timing, within one run."""
    import nipy
    from nipy.algorithms.registration import Realign4d

    realigner = Realign4d(nipy.load_image(str(bold)), tr=1.0)
    realigner.estimate(refscan=None)
    return np.stack([transform.as_affine() for transform in realigner._transforms[0]])


def antspyx_mask(bold: Path, boldref: Path) -> None:
    """Run N4 and `ants.get_mask`."""
    import ants

    image = ants.n4_bias_field_correction(ants.image_read(str(boldref)))
    ants.get_mask(image)


def antspyx_bias_field(t1w: Path) -> None:
    """Run N4 with its defaults at the resolution of the image."""
    import ants

    ants.n4_bias_field_correction(ants.image_read(str(t1w)))


def simpleitk_bias_field(t1w: Path) -> None:
    """Run N4 on the image shrunk by a factor of 3, within a mask by Otsu's threshold."""
    import SimpleITK as sitk

    image = sitk.Shrink(sitk.ReadImage(str(t1w), sitk.sitkFloat32), [3, 3, 3])
    sitk.N4BiasFieldCorrectionImageFilter().Execute(image, sitk.OtsuThreshold(image, 0, 1, 200))


def antspyx_normalisation(t1w: Path, template: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Run `ants.registration` of type SyN (with affine) with its defaults, and return the map from template to T1w.

    The defaults stop at half the resolution of the 2 mm image.
    """
    import ants
    import pandas as pd

    found = ants.registration(ants.image_read(str(template)), ants.image_read(str(t1w)), "SyN")

    def apply(points: np.ndarray) -> np.ndarray:
        table = pd.DataFrame(points * (-1, -1, 1), columns=["x", "y", "z"])
        moved = ants.apply_transforms_to_points(3, table, found["fwdtransforms"])
        return moved[["x", "y", "z"]].to_numpy() * (-1, -1, 1)

    return apply


def simpleitk_rigid(boldref: Path, t1w: Path) -> None:
    """Register rigidly with mutual information: three levels, one start."""
    import SimpleITK as sitk

    fixed, moving = (sitk.ReadImage(str(path), sitk.sitkFloat32) for path in (boldref, t1w))
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(48)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.5, seed=1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-3, 100)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([3, 2, 1])
    method.SetSmoothingSigmasPerLevel([3, 2, 0])
    start = sitk.CenteredTransformInitializer(fixed, moving, sitk.Euler3DTransform())
    method.SetInitialTransform(start, inPlace=False)
    method.Execute(fixed, moving)


def antspyx_rigid(boldref: Path, t1w: Path) -> None:
    """Run `ants.registration` of type Rigid with its defaults."""
    import ants

    ants.registration(ants.image_read(str(boldref)), ants.image_read(str(t1w)), "Rigid")


def scipy_confounds(carpet: Path) -> None:
    """Compute standard deviation, DVARS and an SVD of every tenth voxel, in memory in float64."""
    from scipy import linalg

    values = np.load(carpet).astype(np.float64)
    values.std(axis=0)
    np.sqrt((np.diff(values, axis=0) ** 2).mean(axis=1))
    few = values[:, ::10] - values[:, ::10].mean(axis=0)
    linalg.svd(few, full_matrices=False)


def antspyx_resampling(bold: Path) -> None:
    """Resample linearly to the 2 mm grid with an affine only."""
    import ants

    series = ants.image_read(str(bold))
    target = ants.make_image((91, 109, 91), spacing=(2, 2, 2), origin=(-90, -90, -72))
    for t in range(series.shape[3]):
        ants.resample_image_to_target(ants.slice_image(series, axis=3, idx=t), target, interp_type="linear")


def scipy_resampling(bold: Path) -> None:
    """Resample cubically to the 2 mm grid with an affine only, in one thread."""
    import nibabel as nib
    from scipy import ndimage

    image = nib.nifti1.load(bold)
    series = image.get_fdata(dtype=np.float32)
    pull = np.linalg.inv(image.affine) @ np.diag([2.0, 2.0, 2.0, 1.0])
    pull[:3, 3] = 0
    for t in range(series.shape[3]):
        ndimage.affine_transform(series[..., t], pull[:3, :3], pull[:3, 3], (91, 109, 91), order=3)
