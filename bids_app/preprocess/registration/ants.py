"""Image registration by ANTs, and similarity measures. See `transforms.py` for conventions.

ANTs runs on files of the work folder with a fixed seed and a fixed number of threads, so that results are reproducible
to the bit: one for linear registrations, whose sampled metrics would not be, and `SYN_THREADS` for SyN.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nibabel.affines import voxel_sizes

from bids_app.bids.full_disk import is_full, no_space, says_full
from bids_app.errors import InputOutputError, RegistrationError
from bids_app.preprocess.io.images import save_image
from bids_app.preprocess.registration.ants_program import processors, run_ants
from bids_app.preprocess.registration.native_messages import quiet_if_full
from bids_app.preprocess.registration.separable import are_parallel, resample_parallel
from bids_app.preprocess.registration.transforms import (
    Chain,
    Linear,
    apply_matrix,
    grid_points,
    open_hdf5,
    read_itk_composite,
    resample_to,
    rigid,
    sample,
    write_itk_text,
)

FWHM_PER_SIGMA = 2.3548
SYN_THREADS = 2
"""Threads of SyN on any machine. Its result depends on their number in the last bits."""
AT_A_TIME = 2
"""Linear registrations that run at the same time, if there are several starts and as many processors."""
CHECK_OVERLAP = "Open both images side by side: most often they do not overlap, or a header has a wrong orientation."


@dataclass(frozen=True)
class Image:
    """A 3D image in memory.

    Parameters
    ----------
    data : numpy.ndarray, (X, Y, Z)
    affine : numpy.ndarray, (4, 4)
        Voxel indices to RAS mm.
    """

    data: np.ndarray
    affine: np.ndarray

    def at(self, points: np.ndarray, order: int = 1) -> np.ndarray:
        """Interpolate at points (N, 3) mm; 0 outside."""
        return sample(self.data, self.affine, points, order=order)

    def inside(self, points: np.ndarray) -> np.ndarray:
        """Return which points (N, 3) mm are in the field of view, (N,) bool."""
        voxels = apply_matrix(np.linalg.inv(self.affine), points)
        return np.all((voxels >= -0.5) & (voxels <= np.array(self.data.shape) - 0.5), axis=1)


@dataclass(frozen=True)
class Stage:
    """One stage of a registration: the kind of transform, and the settings of each resolution level."""

    kind: str
    """Transform and step size in ANTs' notation: ``Rigid[0.1]``, ``Affine[0.1]``, ``SyN[0.2,3,0]``."""
    iterations: tuple[int, ...]
    shrinks: tuple[int, ...]
    sigmas: tuple[float, ...]
    metric: str = "MI[{fixed},{moving},1,32,Regular,0.25]"
    convergence: str = "1e-6,10"

    @property
    def is_syn(self) -> bool:
        """True if its transform is a deformation, whose metric is computed in each voxel."""
        return self.kind.startswith("SyN")


@dataclass(frozen=True)
class Registration:
    """A transform from the fixed to the moving image's space, its inverse, and their ITK files."""

    chain: Chain
    inverse: Chain
    forward_file: Path
    inverse_file: Path

    @property
    def matrix(self) -> np.ndarray:
        """The transform as one matrix (4, 4), if all its stages are linear."""
        matrix = np.eye(4)
        for step in self.chain.steps:
            if not isinstance(step, Linear):
                raise TypeError("The registration is not linear.")
            matrix = step.matrix @ matrix
        return matrix


def register(
    fixed: Image,
    moving: Image,
    fixed_mask: np.ndarray | None,
    stages: Sequence[Stage],
    out_dir: Path,
    *,
    start: np.ndarray | None = None,
    seed: int = 1,
    name: str = "registration",
    restrict: Sequence[float] | None = None,
    moving_mask: np.ndarray | None = None,
) -> Registration:
    """Register two images with ANTs.

    Parameters
    ----------
    fixed, moving : Image
        Affines must be orthogonal (`isotropic`).
    fixed_mask : numpy.ndarray, bool, optional
        Mask of the metric, on the fixed image's grid.
    stages : sequence of Stage
    out_dir : pathlib.Path
        Folder for the two transform files.
    start : numpy.ndarray, (4, 4), optional
        Initial transform, fixed to moving, RAS mm.
    seed : int
        Seed of the metric's sampling.
    name : str
        Prefix of the files.
    restrict : sequence of float, optional
        Weights of the deformation along each axis, 0 to 1.
    moving_mask : numpy.ndarray, bool, optional
        Mask of the metric on the moving image's grid, for example without a lesion.

    Returns
    -------
    Registration

    Raises
    ------
    RegistrationError
        ANTs failed, mostly because the images do not overlap.
    InputOutputError
        ANTs failed and the disk is full, or its transforms cannot be read.
    """
    folder = out_dir / f"{name}_scratch"
    folder.mkdir(parents=True, exist_ok=True)
    files = {"fixed": folder / "fixed.nii", "moving": folder / "moving.nii"}
    save_image(files["fixed"], np.asarray(fixed.data, dtype=np.float32), fixed.affine)
    save_image(files["moving"], np.asarray(moving.data, dtype=np.float32), moving.affine)
    mask = "NA"
    if fixed_mask is not None:
        mask = str(save_image(folder / "mask.nii", fixed_mask.astype(np.uint8), fixed.affine))
    moving_side = "NA"
    if moving_mask is not None:
        moving_side = str(save_image(folder / "moving_mask.nii", moving_mask.astype(np.uint8), moving.affine))
    first = write_itk_text(folder / "start.txt", np.eye(4) if start is None else start)
    arguments = ["-d", "3", "--float", "1", "--random-seed", str(seed), "-r", str(first)]
    for stage in stages:
        arguments += ["-m", stage.metric.format(**files), "-t", stage.kind]
        arguments += ["-g", _joined(restrict)] if restrict else []
        arguments += ["-c", f"[{_joined(stage.iterations)},{stage.convergence}]"]
        arguments += [
            "-f",
            _joined(stage.shrinks),
            "-s",
            f"{_joined(stage.sigmas)}vox",
            "-x",
            f"[{mask},{moving_side}]",
        ]
    prefix = out_dir / f"{name}_"
    arguments += ["-u", "0", "-z", "1", "-a", "1", "-o", str(prefix)]
    try:
        run_ants("antsRegistration", arguments, SYN_THREADS if all(stage.is_syn for stage in stages) else 1)
    except RuntimeError as error:
        if is_full(out_dir):  # before the scratch files are deleted
            raise no_space(out_dir, f"registration {name}") from error
        shutil.rmtree(folder)
        raise RegistrationError(f"{name}: ANTs failed ({error}).", CHECK_OVERLAP) from error
    forward, backward = Path(f"{prefix}Composite.h5"), Path(f"{prefix}InverseComposite.h5")
    try:
        with quiet_if_full(out_dir):
            for file in (forward, backward):
                strip_timestamps(file)
        found = Registration(read_itk_composite(forward), read_itk_composite(backward), forward, backward)
    except OSError as error:  # ANTs does not raise errors of writing
        if says_full(error) or is_full(out_dir):
            raise no_space(out_dir, f"transforms of {name}") from error
        if forward.exists():
            raise InputOutputError(
                f"{out_dir}: the transforms that ANTs wrote cannot be read ({name}: {error}).",
                "If the disk was full, free some space, or give --work-dir on another disk. Then repeat the command: "
                "finished steps are kept.",
            ) from error
        raise RegistrationError(f"{name}: ANTs wrote no transforms.", CHECK_OVERLAP) from error
    finally:
        shutil.rmtree(folder)
    return found


def strip_timestamps(path: Path) -> None:
    """Rewrite an HDF5 file without creation times, so that equal content gives equal bytes."""
    import h5py

    fresh = path.with_name(f".{path.name}")
    with open_hdf5(path) as source, open_hdf5(fresh, "w") as target:

        def copy(name: str, item: h5py.Group | h5py.Dataset) -> None:
            if isinstance(item, h5py.Group):
                target.create_group(name)
                return
            layout = item.id.get_create_plist()
            layout.set_obj_track_times(False)
            dataset = h5py.h5d.create(target.id, name.encode(), item.id.get_type(), item.id.get_space(), layout)
            h5py.Dataset(dataset)[...] = item[...]

        source.visititems(copy)
    fresh.replace(path)


def best_start(
    fixed: Image,
    moving: Image,
    fixed_mask: np.ndarray,
    stages: Sequence[Stage],
    starts: Sequence[np.ndarray],
    score: Callable[[np.ndarray], float],
    out_dir: Path,
    seed: int,
    moving_mask: np.ndarray | None = None,
) -> np.ndarray:
    """Register from several starts with linear stages, and return the matrix with the highest score.

    Raises
    ------
    RegistrationError
        ANTs failed from every start.
    """
    seeds = range(seed, seed + len(starts))
    fits = fit_linear(fixed, moving, fixed_mask, stages, starts, out_dir, seeds, moving_mask)
    found = [fit for fit in fits if not isinstance(fit, RegistrationError)]
    if not found:
        raise fits[-1]  # type: ignore[misc]
    return max(found, key=score)  # the first of equals


def fit_linear(
    fixed: Image,
    moving: Image,
    fixed_mask: np.ndarray,
    stages: Sequence[Stage],
    starts: Sequence[np.ndarray],
    out_dir: Path,
    seeds: Sequence[int],
    moving_mask: np.ndarray | None = None,
) -> list[np.ndarray | RegistrationError]:
    """Register from each of several starts with linear stages, `AT_A_TIME`; return the matrices, or why ANTs failed."""

    def fit(number: int) -> np.ndarray | RegistrationError:
        try:
            found = register(
                fixed,
                moving,
                fixed_mask,
                stages,
                out_dir,
                start=starts[number],
                seed=seeds[number],
                name=f"start{number}",
                moving_mask=moving_mask,
            )
        except RegistrationError as error:
            return error
        found.forward_file.unlink()
        found.inverse_file.unlink()
        return found.matrix

    with ThreadPoolExecutor(min(AT_A_TIME, processors())) as pool:
        return list(pool.map(fit, range(len(starts))))


def _joined(values: Sequence[float]) -> str:
    return "x".join(f"{v:g}" for v in values)


def isotropic(image: Image, size_mm: float, order: int = 1) -> Image:
    """Resample an image to an isotropic, orthogonal grid of its field of view, smoothed to that resolution.

    Parameters
    ----------
    image : Image
    size_mm : float
    order : int
        Spline order; 3 preserves more detail of images with larger voxels, but takes longer.
    """
    from scipy import ndimage

    sizes = voxel_sizes(image.affine)
    left, _, right = np.linalg.svd(image.affine[:3, :3] / sizes)
    affine = np.eye(4)
    affine[:3, :3] = left @ right * size_mm
    corners = grid_points((2, 2, 2), np.diag([*(np.array(image.data.shape)), 1.0])) - 0.5
    along = apply_matrix(image.affine, corners) @ (left @ right)
    low, extent = along.min(axis=0), np.ptp(along, axis=0)
    shape = tuple(int(n) for n in np.maximum(np.ceil(extent / size_mm - 1e-3), 1))
    first = low + (extent - (np.array(shape) - 1) * size_mm) / 2
    affine[:3, 3] = left @ right @ first
    sigma = np.sqrt(np.maximum(size_mm**2 - sizes**2, 0)) / FWHM_PER_SIGMA / sizes
    pull = np.linalg.inv(image.affine) @ affine
    if order == 1 and are_parallel(pull, shape):
        return Image(resample_parallel(image.data, pull, shape, sigma=sigma), affine)
    smooth = ndimage.gaussian_filter(image.data, sigma) if sigma.any() else image.data
    resampled = ndimage.affine_transform(smooth, pull[:3, :3], pull[:3, 3], shape, order=order)
    return Image(np.clip(resampled, smooth.min(), smooth.max()) if order > 1 else resampled, affine)


def centre_of_mass(image: Image, weights: np.ndarray | None = None) -> np.ndarray:
    """Compute the centre of an image's intensity (or of given weights), (3,) RAS mm."""
    from scipy import ndimage

    return apply_matrix(image.affine, np.array(ndimage.center_of_mass(image.data if weights is None else weights)))


def mutual_information(a: np.ndarray, b: np.ndarray, bins: int = 48) -> float:
    """Compute normalised mutual information, ``2 I(a; b) / (H(a) + H(b))``, 0 to 1.

    Parameters
    ----------
    a, b : numpy.ndarray, (N,)
    bins : int
        Bins per axis of the joint histogram; values beyond the percentiles 0.5 and 99.5 fall into the outer bins.
    """
    clipped = [np.clip(v, *np.percentile(v, [0.5, 99.5])) for v in (a, b)]
    joint = np.histogram2d(clipped[0], clipped[1], bins=bins)[0] / len(a)
    marginals = joint.sum(axis=1), joint.sum(axis=0)
    entropy_a, entropy_b = (float(-(p[p > 0] * np.log(p[p > 0])).sum()) for p in marginals)
    entropy_joint = float(-(joint[joint > 0] * np.log(joint[joint > 0])).sum())
    total = entropy_a + entropy_b
    return 2 * (total - entropy_joint) / total if total > 0 else 0.0


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Compute Pearson's correlation; 0 if one of the two is constant."""
    if a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Compute the Dice overlap of two masks."""
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else 0.0


def similarity(fixed: Image, where: np.ndarray, moving: Image, matrix: np.ndarray) -> float:
    """Compute the normalised mutual information of two images in a mask, for a matrix fixed to moving."""
    points = grid_points(fixed.data.shape, fixed.affine, where)
    moved = apply_matrix(matrix, points)
    inside = moving.inside(moved)
    if inside.sum() < 0.2 * len(points):
        return 0.0
    return mutual_information(fixed.data[where][inside], moving.at(moved[inside])) * float(inside.mean())


def optimum_margin(score: Callable[[np.ndarray], float], matrix: np.ndarray, centre: np.ndarray) -> float:
    """Compute the relative gain in similarity over alignments 8 mm or 8 degrees away; at most 0 if not an optimum.

    Parameters
    ----------
    score : callable
        Similarity for a matrix (4, 4), fixed to moving.
    matrix : numpy.ndarray, (4, 4)
    centre : numpy.ndarray, (3,)
        Centre of rotation, mm of the fixed image.
    """
    best = score(matrix)
    steps = np.vstack([np.eye(6), -np.eye(6)]) * np.array([np.radians(8)] * 3 + [8.0] * 3)
    neighbours = [score(matrix @ rigid(step[:3], step[3:], centre)) for step in steps]
    return 1 - max(neighbours) / best if best > 0 else 0.0


def resample_mask(
    mask: np.ndarray, affine: np.ndarray, shape: Sequence[int], onto: np.ndarray, chain: Chain
) -> np.ndarray:
    """Resample a mask to another grid, bool."""
    return resample_to(mask.astype(np.float32), affine, shape, onto, chain) > 0.5
