"""`regbench predict`: the classes of image files, which are prepared like the images that a model was trained on."""

import csv
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image
from scratch import ROOT

import regbench
from regbench.data import arrays
from regbench.errors import UserError
from regbench.evaluation import classify
from regbench.training import save

pytestmark = pytest.mark.slow


@pytest.fixture
def model(trained):
    return trained / "runs/l2-0/model.keras"


def softmax(logits):
    exponents = np.exp(np.asarray(logits, np.float64))
    return exponents / exponents.sum(axis=1, keepdims=True)


def test_a_file_is_prepared_as_its_image_was(trained, photos, model):
    """Test images, read from their files, give the same answers as the prepared images."""
    split = arrays.load("test", trained / "prepared")
    with open(trained / "prepared/test/files.csv", newline="") as file:
        files = [photos / row["file"] for row in csv.DictReader(file)]
    expected = softmax(regbench.load(model)(np.array(split.images)))
    rows = list(classify.classify(model, files))
    assert [file for file, _, _ in rows] == files
    classes = regbench.metadata(model)["classes"]
    assert [label for _, label, _ in rows] == [classes[index] for index in expected.argmax(axis=1)]
    np.testing.assert_allclose([probability for _, _, probability in rows], expected.max(axis=1), rtol=1e-4)


def test_more_images_than_a_batch(photos, model, monkeypatch):
    files = classify.find([str(photos)])
    assert len(files) == 120 and files == sorted(files, key=lambda file: (file.parent, file.name))
    rows = list(classify.classify(model, files))
    monkeypatch.setattr(classify, "EVALUATION_BATCH", 50)
    in_batches = list(classify.classify(model, files))
    assert [row[:2] for row in in_batches] == [row[:2] for row in rows]
    np.testing.assert_allclose([row[2] for row in in_batches], [row[2] for row in rows], rtol=1e-5)


def test_the_answer_does_not_depend_on_how_an_image_is_stored(photos, model, tmp_path):
    image = Image.open(photos / "ship/1.png")
    grey = image.convert("L")
    image.save(tmp_path / "1.bmp")
    grey.save(tmp_path / "2.png")
    grey.convert("RGB").save(tmp_path / "3.tiff")
    Image.fromarray(np.asarray(grey).astype(np.uint16) << 8).save(tmp_path / "4.png")
    image.rotate(90, expand=True).save(
        tmp_path / "5.png", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"
    )
    found = [row[1:] for row in classify.classify(model, [photos / "ship/1.png", *sorted(tmp_path.iterdir())])]
    assert found[0] == found[1] == found[5]
    assert found[2] == found[3] == found[4] != found[0]


def test_a_model_of_grey_images(photos, tmp_path):
    inputs = keras.Input((8, 20, 1), dtype="uint8")
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(inputs))
    network = keras.Model(inputs, keras.layers.Dense(3, kernel_initializer="ones")(x))
    save.save(network, tmp_path / "model.keras", {"classes": ["a", "b", "c"], "image_shape": [8, 20, 1]})
    ((_, label, probability),) = classify.classify(tmp_path / "model.keras", [photos / "cat/1.png"])
    assert (label, probability) == ("a", pytest.approx(1 / 3))


def test_what_is_printed(photos, model, tmp_path, capsys):
    for index, name in enumerate(("1.png", "größe, 日本.jpg"), start=1):
        shutil.copy(photos / f"frog/{index}.png", tmp_path / name)
    (tmp_path / "0.png").write_text("no image")
    (tmp_path / "notes.txt").write_text("not among the images")
    files = classify.find([str(tmp_path)])
    assert [file.name for file in files] == ["0.png", "1.png", "größe, 日本.jpg"]
    classify.show(model, files, as_csv=True)
    printed = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(printed.out)))
    assert [row["file"] for row in rows] == [str(file) for file in files[1:]]
    assert set(rows[0]) == {"file", "class", "probability"}
    said = f"skipped: {tmp_path}/0.png can't be read as an image: its format is not one of PNG, JPEG"
    assert printed.err.startswith(said)
    classify.show(model, files)
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.split() == ["file", "class", "probability"]
    for line, row in zip(lines, rows, strict=True):
        assert line.split("  ")[0] == row["file"]
        assert line.split()[-2:] == [row["class"], f"{float(row['probability']):.3f}"]
    # 日 and 本 are two columns wide each.
    assert lines[0].index(rows[0]["class"]) == lines[1].index(rows[1]["class"]) + 2 == heading.index("class")


@pytest.mark.parametrize(
    ("places", "says"),
    [
        (["nowhere"], "there is no file or folder nowhere"),
        (["empty"], "empty holds no images; their names end in .bmp, .gif"),
        (["broken.png"], "no file could be read as an image"),
    ],
)
def test_nothing_to_read(model, tmp_path, monkeypatch, places, says):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("broken.png").write_bytes(b"\x89PNG")
    with pytest.raises(UserError, match=says):
        classify.show(model, classify.find(places))


def test_a_model_that_diverged_has_no_answers(photos, model, tmp_path):
    diverged = regbench.load(model)
    diverged.set_weights([np.full_like(weight, np.nan) for weight in diverged.get_weights()])
    save.save(diverged, tmp_path / "model.keras", regbench.metadata(model))
    with pytest.raises(UserError, match=r"model\.keras is from a run that diverged; it can't predict anything"):
        classify.show(tmp_path / "model.keras", [photos / "cat/1.png"])


def test_the_command(trained, photos, model, capsys):
    def regbench(*arguments):
        command = [sys.executable, "-m", "regbench", "predict", *arguments]
        environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
        done = subprocess.run(command, cwd=trained, env=environment, text=True, capture_output=True)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout, done.stderr

    code, output, errors = regbench("l2-0", str(photos / "cat"), "--csv")
    assert (code, errors) == (0, "")
    classify.show(model, classify.find([str(photos / "cat")]), as_csv=True)
    assert output == capsys.readouterr().out and len(output.splitlines()) == 13
    code, output, errors = regbench("l1-0", str(photos))
    assert (code, output) == (1, "") and "error: there is no model of a run l1-0 here" in errors
    assert regbench("l2-0", "nowhere")[::2] == (1, "error: there is no file or folder nowhere\n")
