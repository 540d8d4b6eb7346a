"""Reading and checking of BOLD and T1w images."""

import gzip

import nibabel as nib
import numpy as np
import pytest

from bids_app.errors import BadDataError, NoInputError
from bids_app.preprocess.io import volumes as on_disk
from bids_app.preprocess.io.images import examine_bold, read_anatomy
from bids_app.preprocess.io.volumes import ArrayVolumes, Volumes, chunks
from bids_app.preprocess.masking import prepare_bold
from tests.helpers.images import noise

META = {"RepetitionTime": 2.0}


def refused(path, out_dir, metadata=META) -> BadDataError:
    with pytest.raises(BadDataError) as error:
        examine_bold(path, metadata, out_dir)
    assert path.name in error.value.message
    assert error.value.hint
    assert error.value.exit_code == 65
    return error.value


def test_scaled_integers_come_back_in_chunks_of_volumes(tmp_path, write_nifti, monkeypatch):
    stored = np.random.default_rng(1).integers(-300, 300, (5, 6, 7, 25)).astype(np.int16)
    path = write_nifti(stored, scl_slope=0.5, scl_inter=1000.0)
    series = examine_bold(path, META, tmp_path)
    volumes = series.open()
    expected = nib.load(path).get_fdata(dtype=np.float32)
    monkeypatch.setattr(on_disk, "CHUNK_BYTES", 4 * 5 * 6 * 7 * 10)
    parts = list(chunks(volumes))
    assert [start for start, _ in parts] == [0, 10, 20]
    read = np.concatenate([part for _, part in parts])
    assert read.dtype == np.float32
    np.testing.assert_allclose(np.moveaxis(read, 0, 3), expected, rtol=1e-6)


def test_a_file_that_is_not_compressed_is_not_copied(tmp_path, write_nifti):
    path = write_nifti(noise(6, 6, 6, 25), "sub-01_task-rest_bold.nii")
    series = examine_bold(path, META, tmp_path)
    assert series.path == path
    assert not (tmp_path / "bold.nii").exists()


def test_trailing_axes_of_length_one_are_ignored(tmp_path, write_nifti):
    path = write_nifti(noise(6, 6, 6, 25, 1))
    assert examine_bold(path, META, tmp_path).open().shape == (6, 6, 6, 25)


def test_array_and_file_give_the_same_volumes(tmp_path, write_nifti):
    data = noise(5, 6, 7, 20)
    path = write_nifti(data, "x.nii")
    np.testing.assert_array_equal(Volumes(path).read(3, 8), ArrayVolumes(data, np.eye(4)).read(3, 8))


def test_data_mask_marks_voxels_that_vary(tmp_path, write_nifti):
    data = noise(6, 6, 6, 25)
    data[0] = 7
    series = examine_bold(write_nifti(data), META, tmp_path)
    mask = nib.load(series.data_mask).get_fdata()
    assert mask[0].max() == 0
    assert mask[1:].min() == 1


def test_missing_file(tmp_path):
    with pytest.raises(NoInputError, match="no such file"):
        examine_bold(tmp_path / "gone.nii.gz", META, tmp_path)


@pytest.mark.parametrize("shape", [(6, 6, 6), (6, 6, 6, 25, 2)])
def test_other_than_4d_is_refused(tmp_path, write_nifti, shape):
    assert "instead of 4D" in refused(write_nifti(noise(*shape)), tmp_path).message


def test_too_few_volumes(tmp_path, write_nifti):
    assert "19 volumes, too few" in refused(write_nifti(noise(6, 6, 6, 19)), tmp_path).message


def test_too_few_seconds(tmp_path, write_nifti):
    error = refused(write_nifti(noise(6, 6, 6, 25), tr=0.5), tmp_path, {"RepetitionTime": 0.5})
    assert "12.5 s of data" in error.message


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinite_values_are_refused(tmp_path, write_nifti, bad):
    data = noise(6, 6, 6, 25)
    data[2, 3, 4, 11] = bad
    assert "1 voxels, first in volume 11" in refused(write_nifti(data), tmp_path).message


def test_empty_series(tmp_path, write_nifti):
    assert "each volume is constant" in refused(write_nifti(np.zeros((6, 6, 6, 25), np.float32)), tmp_path).message


def test_empty_volumes(tmp_path, write_nifti):
    data = noise(6, 6, 6, 25)
    data[..., 20:] = 0
    assert "5 of 25 volumes are empty, the first is volume 20" in refused(write_nifti(data), tmp_path).message


def test_constant_series(tmp_path, write_nifti):
    data = np.repeat(noise(6, 6, 6, 1), 25, axis=3)
    assert "no voxel changes over time" in refused(write_nifti(data), tmp_path).message


@pytest.mark.parametrize("keep", [0.05, 0.6])
def test_truncated_gzip(tmp_path, write_nifti, keep):
    path = write_nifti(noise(6, 6, 6, 25))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    assert "unreadable or truncated" in refused(path, tmp_path).message
    assert not (tmp_path / "bold.nii").exists()


def test_truncated_image_in_a_valid_gzip_file(tmp_path, write_nifti):
    path = write_nifti(noise(6, 6, 6, 25))
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(content[: len(content) // 2]))
    assert "truncated" in refused(path, tmp_path).message


def test_truncated_without_gzip(tmp_path, write_nifti):
    path = write_nifti(noise(6, 6, 6, 25), "sub-01_task-rest_bold.nii")
    path.write_bytes(path.read_bytes()[:5000])
    assert "truncated" in refused(path, tmp_path).message


def test_a_text_file_is_refused(tmp_path):
    path = tmp_path / "sub-01_task-rest_bold.nii.gz"
    path.write_text("/annex/objects/MD5E-s123")
    assert "unreadable" in refused(path, tmp_path).message


def test_unknown_orientation(tmp_path, write_nifti):
    path = write_nifti(noise(6, 6, 6, 25), sform_code=0, qform_code=0)
    assert "orientation is unknown" in refused(path, tmp_path).message


def test_singular_affine(tmp_path, write_nifti):
    path = write_nifti(noise(6, 6, 6, 25), srow_y=[4, 0, 0, 0])
    assert "singular" in refused(path, tmp_path).message


def test_voxel_size_of_zero(tmp_path, write_nifti):
    path = write_nifti(noise(6, 6, 6, 25), pixdim=[1, 0, 4, 4, 2, 0, 0, 0])
    assert "voxel size of zero" in refused(path, tmp_path).message


def test_implausible_voxel_sizes_are_refused(tmp_path, write_nifti):
    path = write_nifti(noise(6, 6, 6, 25), affine=np.diag([0.1, 0.1, 0.1, 1]))
    assert "outside the range of human scans" in refused(path, tmp_path).message


def test_complex_voxels(tmp_path, write_nifti):
    path = write_nifti(noise(6, 6, 6, 25).astype(np.complex64))
    assert "colour or complex" in refused(path, tmp_path).message


def test_events_after_the_end_are_reported(tmp_path, write_nifti):
    path = write_nifti(noise(6, 6, 6, 25))
    warnings = examine_bold(path, META, tmp_path, events_end_s=61.0).warnings
    assert "the repetition time may be wrong" in warnings[0]
    assert examine_bold(path, META, tmp_path, events_end_s=49.0).warnings == ()


def test_too_many_dummy_scans_are_refused(tmp_path, write_nifti):
    path = write_nifti(noise(6, 6, 6, 25))
    assert prepare_bold(path, META, tmp_path, dummy_scans=4).n_dummy == 4
    with pytest.raises(BadDataError, match="only 15 volumes"):
        prepare_bold(path, META, tmp_path, dummy_scans=10)


def test_anatomy_must_be_3d(write_nifti):
    with pytest.raises(BadDataError, match="instead of three axes"):
        read_anatomy(write_nifti(noise(6, 6, 6, 3), "sub-01_T1w.nii.gz"))


@pytest.mark.parametrize(("n_finite", "accepted"), [(4000, True), (400, True), (200, False)])
def test_nan_in_a_t1w_is_set_to_zero_with_a_warning_if_a_brain_can_remain(write_nifti, n_finite, accepted):
    """A voxel has 1 mL; the background may be NaN."""
    data = noise(16, 16, 16)
    data.reshape(-1)[n_finite:] = np.nan
    path = write_nifti(data, "sub-01_T1w.nii.gz", affine=np.diag([10.0, 10.0, 10.0, 1.0]))
    if not accepted:
        with pytest.raises(BadDataError, match="3,896 of 4,096 voxels are NaN or infinite"):
            read_anatomy(path)
        return
    read, _, warnings = read_anatomy(path)
    assert np.isfinite(read).all()
    assert f"{4096 - n_finite:,} voxels are NaN" in warnings[0]


def test_empty_t1w_is_refused(write_nifti):
    with pytest.raises(BadDataError, match="empty"):
        read_anatomy(write_nifti(np.zeros((6, 6, 6), np.float32), "sub-01_T1w.nii.gz"))


def test_anatomy_of_unknown_orientation(write_nifti):
    with pytest.raises(BadDataError, match="left and right"):
        read_anatomy(write_nifti(noise(6, 6, 6), "sub-01_T1w.nii.gz", sform_code=0, qform_code=0))


def test_truncated_anatomy_is_named(write_nifti):
    path = write_nifti(noise(30, 30, 30), "sub-01_T1w.nii.gz")
    path.write_bytes(path.read_bytes()[:30_000])
    with pytest.raises(BadDataError, match=r"sub-01_T1w.nii.gz: unreadable or truncated"):
        read_anatomy(path)
