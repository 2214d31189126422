"""Random changes of training images: what they keep, how far they go, and that each image gets its own."""

import numpy as np
import pytest

from defended.training.augmentation import RandomAffine, RandomElastic, RandomExposure, RandomMirror

NOTHING = {"turn": 0.0, "shear": 0.0, "zoom": 0.0, "shift": 0.0}


@pytest.fixture
def images():
    """Smooth blobs in the middle, so that a small change is a small difference."""
    rows, columns = np.mgrid[:21, :21]
    blob = np.exp(-((rows - 10) ** 2 + (columns - 10) ** 2) / 18)
    return np.repeat(blob[None, :, :, None], 64, axis=0).astype("float32")


def centres(images):
    weights = images[..., 0] / images[..., 0].sum(axis=(1, 2), keepdims=True)
    rows, columns = np.mgrid[: images.shape[1], : images.shape[2]]
    return np.stack([(weights * rows).sum(axis=(1, 2)), (weights * columns).sum(axis=(1, 2))], axis=1)


def test_without_changes_images_stay_as_they_are(images):
    for changes in (NOTHING, {"share": 0.0}):
        np.testing.assert_allclose(RandomAffine(**changes)(images), images, atol=1e-6)
        np.testing.assert_allclose(RandomElastic(**{"bend": 0.0, **changes})(images), images, atol=1e-6)
    np.testing.assert_allclose(RandomElastic(bend=3.0, share=0.0)(images), images, atol=1e-6)


@pytest.mark.parametrize("shift", [0.5, 2.0])
def test_images_move_as_far_as_is_allowed_and_no_further(images, shift):
    moved = np.asarray(RandomAffine(**{**NOTHING, "shift": shift, "share": 1.0, "seed": 0})(images))
    away = np.abs(centres(moved) - 10)
    assert away.max() <= shift + 0.02
    assert away.max() > 0.8 * shift
    assert len(np.unique(away[:, 0].round(4))) > 32


@pytest.mark.parametrize("change", [{"turn": 0.3}, {"shear": 0.3}, {"zoom": 0.3}])
def test_turns_shears_and_scales_keep_the_centre(change):
    rng = np.random.default_rng(0)
    image = np.zeros((32, 28, 20, 2), "float32")
    image[:, 8:20, 6:14] = rng.random((12, 8, 2))  # not symmetric, so that each change shows
    changed = np.asarray(RandomAffine(**{**NOTHING, **change, "share": 1.0, "seed": 1})(image))
    assert changed.shape == image.shape
    assert changed.dtype == np.float32
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert np.abs(changed - image).max() > 0.1
    flat = np.zeros((8, 21, 21, 1), "float32")
    flat[:, 10, 10] = 1.0
    middle = np.asarray(RandomAffine(**{**NOTHING, **change, "share": 1.0, "seed": 2})(flat))
    np.testing.assert_allclose(middle[:, 10, 10, 0], 1.0, atol=1e-5)


def test_a_share_of_the_images_is_changed(images):
    changed = np.asarray(
        RandomAffine(**{**NOTHING, "shift": 2.0, "share": 0.25, "seed": 3})(np.tile(images, (8, 1, 1, 1)))
    )
    share = np.mean(np.abs(changed - images[:1]).max(axis=(1, 2, 3)) > 1e-4)
    assert share == pytest.approx(0.25, abs=0.06)


def test_a_seed_repeats_the_changes(images):
    first, second, other = (np.asarray(RandomAffine(seed=seed)(images)) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("wrong", [{"turn": -0.1}, {"shift": np.nan}, {"shear": np.inf}, {"zoom": 1.0}, {"share": 1.5}])
def test_limits_that_are_none_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RandomAffine(**wrong)


@pytest.mark.parametrize("shape", [(64, 17, 30, 1), (64, 20, 12, 3)])
def test_an_elastic_change_without_a_bend_is_the_affine_one(shape):
    images = np.random.default_rng(0).random(shape, "float32")
    affine = RandomAffine(turn=0.4, shear=0.2, zoom=0.3, shift=5.0, seed=4)(images)
    elastic = RandomElastic(bend=0.0, turn=0.4, shear=0.2, zoom=0.3, shift=5.0, seed=4)(images)
    np.testing.assert_allclose(elastic, affine, atol=1e-5)


def test_a_bend_moves_near_pixels_alike_and_far_ones_apart():
    # The channels of a pixel hold its column and its row, so what comes out says where it came from.
    rows, columns = np.mgrid[:41, :41].astype("float32") + 1
    images = np.repeat(np.stack([columns, rows], axis=-1)[None], 200, axis=0)
    bent = np.asarray(RandomElastic(**{**NOTHING, "bend": 0.8, "nodes": 5, "share": 1.0, "seed": 5})(images))
    moved = (bent - images)[:, 8:-8, 8:-8]
    assert 0.4 < moved.std() < 0.9
    assert abs(moved.mean()) < 0.05
    near = np.corrcoef(moved[:, 12, 12].ravel(), moved[:, 12, 13].ravel())[0, 1]
    far = np.corrcoef(moved[:, 0, 0].ravel(), moved[:, 24, 24].ravel())[0, 1]
    assert near > 0.95
    assert abs(far) < 0.25


@pytest.mark.parametrize("wrong", [{"bend": -1.0}, {"bend": np.inf}, {"nodes": 1}, {"share": 2.0}])
def test_bends_that_are_none_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RandomElastic(**wrong)


SAME_EXPOSURE = {"brightness": 0.0, "contrast": 0.0, "blur": 0.0, "share": 1.0}


class TestExposure:
    def test_without_changes_images_stay_as_they_are(self, images):
        for changes in (SAME_EXPOSURE, {"share": 0.0}):
            np.testing.assert_allclose(RandomExposure(**changes)(images), images, atol=1e-6)

    def test_brightness_adds_one_number_to_an_image(self, images):
        grey = 0.25 + images / 2
        found = np.asarray(RandomExposure(**{**SAME_EXPOSURE, "brightness": 0.2, "seed": 0})(grey)) - grey
        assert np.ptp(found, axis=(1, 2, 3)).max() < 1e-5
        added = found[:, 0, 0, 0]
        assert np.abs(added).max() <= 0.2
        assert np.ptp(added) > 0.3

    def test_contrast_scales_what_lies_about_the_mean(self, images):
        grey = 0.4 + images / 10
        found = np.asarray(RandomExposure(**{**SAME_EXPOSURE, "contrast": 0.5, "seed": 0})(grey))
        np.testing.assert_allclose(found.mean(axis=(1, 2, 3)), grey.mean(axis=(1, 2, 3)), atol=1e-5)
        scales = np.log(found.std(axis=(1, 2, 3)) / grey.std(axis=(1, 2, 3)))
        assert np.abs(scales).max() <= 0.5 + 1e-4
        assert np.ptp(scales) > 0.8

    def test_blur_keeps_flat_images_and_flattens_others(self, images):
        blur = RandomExposure(**{**SAME_EXPOSURE, "blur": 1.0, "seed": 0})
        flat = np.full((8, 9, 9, 3), 0.3, "float32")
        np.testing.assert_allclose(blur(flat), flat, atol=1e-6)
        noise = np.random.default_rng(0).uniform(size=(64, 9, 9, 1)).astype("float32")
        deviations = np.asarray(blur(noise)).std(axis=(1, 2, 3)) / noise.std(axis=(1, 2, 3))
        assert deviations.max() <= 1 + 1e-6
        assert deviations.min() < 0.6

    def test_results_stay_in_the_unit_interval(self, images):
        found = np.asarray(RandomExposure(brightness=0.9, contrast=2.0, seed=0)(images))
        assert found.min() >= 0
        assert found.max() <= 1

    @pytest.mark.parametrize("wrong", [{"brightness": -0.1}, {"contrast": np.inf}, {"blur": np.nan}, {"share": 1.1}])
    def test_limits_that_are_none_are_refused(self, wrong):
        with pytest.raises(ValueError, match=f"`{next(iter(wrong))}`"):
            RandomExposure(**wrong)


class TestMirror:
    def test_images_and_labels_are_those_of_the_mirror(self):
        images = np.random.default_rng(0).random((400, 3, 4, 2)).astype("float32")
        labels = np.arange(400) % 4
        seen, named = RandomMirror(4, {1: 1, 2: 3, 3: 2}, share=0.25, seed=0)(images, labels)
        turned = np.array([np.array_equal(a, b[:, ::-1]) for a, b in zip(seen, images, strict=True)])
        kept = np.array([np.array_equal(a, b) for a, b in zip(seen, images, strict=True)])
        assert np.all(turned ^ kept)
        assert kept[labels == 0].all(), "a class that nothing is said about stays as it is"
        assert np.array_equal(named, np.where(turned, np.array([0, 1, 3, 2])[labels], labels))
        # 300 images with a share of a quarter: four standard deviations are a tenth.
        assert np.mean(turned[labels != 0]) == pytest.approx(0.25, abs=0.1)

    @pytest.mark.parametrize("mirrored", [{0: 1}, {0: 1, 1: 2, 2: 0}, {4: 4}])
    def test_what_leads_nowhere_is_refused(self, mirrored):
        with pytest.raises(ValueError, match="lead from classes below 4 to each other and back"):
            RandomMirror(4, mirrored)
