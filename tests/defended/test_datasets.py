"""Data sets: what is loaded, what is left out, what is held out, and what is refused."""

import itertools
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from defended import datasets


def write(folder, name="cifar10", size=12, **changed):
    rng = np.random.default_rng(0)
    arrays = {
        "x_train": rng.integers(0, 256, (size, 32, 32, 3)).astype("uint8"), "y_train": np.arange(size) % 10,
        "x_test": rng.integers(0, 256, (4, 32, 32, 3)).astype("uint8"), "y_test": np.arange(4),
    }  # fmt: skip
    arrays.update(changed)
    np.savez(folder / f"{name}.npz", **arrays)
    return arrays


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DEFENDED_DATA", str(tmp_path))
    return tmp_path


def test_images_that_are_not_lossless_are_left_out_with_their_labels(folder):
    kept = np.array([True, False, True, True])
    arrays = write(folder, lossless_test=kept, lossless_train=np.arange(12) != 5)
    data = datasets.load("cifar10")
    np.testing.assert_array_equal(data.y_test, [0, 2, 3])
    np.testing.assert_allclose(data.x_test * 255, arrays["x_test"][kept], atol=1e-4)
    assert len(data.x_train) == len(data.y_train) == 11
    assert 5 not in data.y_train


def test_tracks_follow_their_images(folder):
    write(folder, "gtsrb", track_train=np.arange(12) // 3, lossless_train=np.arange(12) != 0)
    data = datasets.load("gtsrb")
    np.testing.assert_array_equal(data.track_train, np.arange(1, 12) // 3)


def test_classes_have_names(folder):
    write(folder, "gtsrb")
    assert datasets.load("gtsrb").class_names[14] == "stop"
    assert len(datasets.load("gtsrb").class_names) == 43
    assert datasets.load("digits").class_names == tuple("0123456789")
    write(folder, "mine", class_names=np.array(list("abcdefghij")))
    assert datasets.load(folder / "mine.npz").class_names == tuple("abcdefghij")
    write(folder, "other")
    assert datasets.load(folder / "other.npz").class_names is None


class TestScale:
    """What numbers are divided by: images of whole numbers by 255, by default, and nothing else."""

    def load(self, folder, x, scale="auto"):
        np.savez(folder / "mine.npz", x_train=x, y_train=np.zeros(len(x), int), x_test=x, y_test=np.zeros(len(x), int))
        data = datasets.load(folder / "mine.npz", scale)
        assert data.x_train.dtype == data.x_test.dtype == np.float32
        return data

    @pytest.mark.parametrize("dtype", ["uint8", "int64"])
    def test_images_of_whole_numbers(self, folder, dtype):
        x = np.arange(256, dtype=dtype).reshape(4, 8, 8)
        data = self.load(folder, x)
        assert (data.x_train.shape, data.x_train.max()) == ((4, 8, 8, 1), 1)
        assert data.scaling == f"images of {dtype}: divided by 255"
        for scale, by, said in (("none", 1, "taken as they are"), ("255", 255, "by 255"), (64.0, 64, "by 64")):
            data = self.load(folder, x, scale)
            np.testing.assert_array_equal(data.x_train[..., 0], x.astype("float32") / np.float32(by))
            assert data.scaling.endswith(said)

    def test_tables_are_taken_as_they_are(self, folder):
        x = np.array([[-3, 200_000], [40, 7]])
        np.testing.assert_array_equal(self.load(folder, x).x_train, x)
        assert self.load(folder, x).scaling == "a table of int64: taken as they are"
        data = self.load(folder, x / 3)
        np.testing.assert_array_equal(data.x_train, (x / 3).astype("float32"))
        assert data.scaling is None
        assert self.load(folder, x.astype("uint8")).x_train.max() > 1

    def test_floats_are_divided_on_request_only(self, folder):
        x = np.linspace(0, 255, 64).reshape(1, 8, 8, 1)
        with pytest.raises(ValueError, match=r"floats in \[0, 1\]; the scale `none` takes.*reach from 0 to 255"):
            self.load(folder, x)
        assert self.load(folder, x, "none").x_train.max() == 255
        assert self.load(folder, x, 255).x_train.max() == 1
        assert self.load(folder, x, 255).scaling == "images of float64: divided by 255"
        assert self.load(folder, x / 255).scaling is None

    def test_digits_say_it_too(self):
        assert datasets.load("digits").scaling == "images of shades 0 to 16: divided by 16"
        assert datasets.load("digits", "none").x_train.max() == 16

    @pytest.mark.parametrize("scale", ["0", "-1", "nan", "inf", "much", None, ""])
    def test_what_is_no_scale(self, scale):
        with pytest.raises(ValueError, match='`scale` must be "auto", "none", or a positive number'):
            datasets.load("digits", scale)

    @pytest.mark.parametrize("scale", ["auto", "none", 2])
    def test_what_is_not_finite(self, folder, scale):
        with pytest.raises(ValueError, match="finite"):
            self.load(folder, np.array([[1.0, np.nan]]), scale)
        with pytest.raises(ValueError, match="finite"):
            self.load(folder, np.array([[1.0, 1e300]]), scale)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x_test": np.zeros((4, 28, 28, 1), "uint8")}, r"images of gtsrb are 32x32x3, .* \(28, 28, 1\)"),
        ({"y_test": np.array([0, 1, 2, 43])}, "labels of gtsrb are 0 to 42, and these are 0 to 43"),
        ({"y_train": np.arange(11)}, "12 images but 11 labels"),
        ({"track_train": np.arange(11)}, r"track_train has shape \(11,\) for 12 images"),
        ({"lossless_test": np.ones(3, bool)}, r"lossless_test has shape \(3,\) for 4 images"),
        ({"class_names": np.array(["stop", "yield"])}, "labels are 0 to 9, but there are 2 class_names"),
    ],
)
def test_a_file_that_cannot_be_the_data_set_is_refused(folder, changed, message):
    write(folder, "gtsrb", **changed)
    with pytest.raises(ValueError, match=message):
        datasets.load("gtsrb")


def test_road_signs_that_are_missing_say_where_they_can_be_had(folder, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"gtsrb\.npz\. GTSRB .* https://"):
        datasets.load("gtsrb")
    monkeypatch.delenv("DEFENDED_DATA")
    with pytest.raises(FileNotFoundError, match="DEFENDED_DATA is not set"):
        datasets.load("gtsrb")


class TestSplit:
    def test_without_tracks_the_last_images_are_held_out(self, folder):
        write(folder)
        kept, held_out = datasets.load("cifar10").split(0.25)
        np.testing.assert_array_equal(kept, np.arange(9))
        np.testing.assert_array_equal(held_out, np.arange(9, 12))

    def test_whole_tracks_of_every_class_are_held_out(self, folder):
        labels, tracks = np.repeat(np.arange(6), 200), np.tile(np.repeat(np.arange(20), 10), 6)
        images = np.zeros((1200, 32, 32, 3), "uint8")
        write(folder, "gtsrb", x_train=images, y_train=labels, track_train=tracks)
        data = datasets.load("gtsrb")
        kept, held_out = data.split(0.1)
        assert sorted([*kept, *held_out]) == list(range(1200))
        films = [{(data.y_train[i], data.track_train[i]) for i in part} for part in (kept, held_out)]
        assert not films[0] & films[1]
        np.testing.assert_array_equal(np.bincount(data.y_train[held_out]), np.full(6, 20))
        np.testing.assert_array_equal(data.split(0.1)[1], held_out)

    def test_a_class_of_one_track_is_trained_on(self, folder):
        write(folder, "gtsrb", track_train=np.zeros(12, int))
        assert len(datasets.load("gtsrb").split(0.5)[1]) == 0

    def test_nothing_is_held_out_of_nothing_asked(self, folder):
        write(folder, "gtsrb", track_train=np.arange(12))
        assert len(datasets.load("gtsrb").split(0.0)[1]) == 0
        with pytest.raises(ValueError, match="`share` must lie in"):
            datasets.load("gtsrb").split(1.0)


class TestRoadSignsFromTheirArchives:
    def written(self, folder):
        """43 classes of two films with one picture each, and two test pictures, one of them half red."""
        for label, track in itertools.product(range(43), range(2)):
            path = folder / "Training" / f"{label:05}" / f"{track:05}_00000.ppm"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 50), (label, track, 255)).save(path)
        path = folder / "Test" / "Images"
        path.mkdir(parents=True)
        Image.new("RGB", (32, 32), (1, 2, 3)).save(path / "00000.ppm")
        half = np.zeros((64, 64, 3), "uint8")
        half[:, 32:] = 255, 0, 0
        Image.fromarray(half).save(path / "00001.ppm")
        (folder / "GT-final_test.csv").write_text("Filename;Width;ClassId\n00001.ppm;64;7\n00000.ppm;32;41\n")

    def made(self, monkeypatch, folder, out):
        script = Path(__file__).parents[2] / "benchmarks" / "gtsrb.py"
        monkeypatch.setattr("sys.argv", [str(script), str(folder), str(out)])
        runpy.run_path(str(script), run_name="__main__")

    def test_images_labels_and_tracks(self, folder, monkeypatch):
        self.written(folder)
        (folder / "out").mkdir()
        self.made(monkeypatch, folder, folder / "out" / "gtsrb.npz")
        data = datasets.load(folder / "out" / "gtsrb.npz")
        assert (len(data.x_train), data.num_classes, data.class_names[14]) == (86, 43, "stop")
        seen = np.rint(255 * data.x_train[:, 16, 16])
        np.testing.assert_array_equal(seen, np.stack([data.y_train, data.track_train, np.full(86, 255)], axis=1))
        np.testing.assert_array_equal(data.y_test, [7, 41])
        np.testing.assert_array_equal(data.x_test[0, :, :16].max(), 0)
        np.testing.assert_array_equal(data.x_test[0, :, 16:, 0].min(), 1)

    def test_what_is_missing_is_said(self, folder, monkeypatch):
        with pytest.raises(SystemExit, match="no training images of the classes"):
            self.made(monkeypatch, folder, folder / "gtsrb.npz")
        self.written(folder)
        (folder / "Test" / "Images" / "00001.ppm").unlink()
        with pytest.raises(SystemExit, match=r"lacks 1 of 2 test images, such as 00001\.ppm"):
            self.made(monkeypatch, folder, folder / "gtsrb.npz")


def test_the_road_signs_themselves(real_data):
    data = real_data("gtsrb")
    assert (len(data.x_train), len(data.x_test), data.num_classes) == (39_209, 12_630, 43)
    kept, held_out = data.split(0.1)
    films = [{(data.y_train[i], data.track_train[i]) for i in part} for part in (kept, held_out)]
    assert not films[0] & films[1]
    assert 0.08 < len(held_out) / 39_209 < 0.12
    assert len(np.unique(data.y_train[held_out])) == 43


def test_cifar10_itself(real_data):
    data = real_data("cifar10")
    assert (len(data.x_train), len(data.x_test), data.num_classes) == (49_923, 9_980, 10)
    np.testing.assert_allclose(data.x_train.mean((0, 1, 2), dtype=np.float64), [0.4914, 0.4822, 0.4465], atol=2e-3)
