"""`regbench predict`: the class that a saved model predicts for each image file.

TensorFlow is imported only when a model is loaded, so that errors in a name are reported at once.
"""

import csv
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.cells import cell_len
from scipy.special import softmax

from regbench.data import EVALUATION_BATCH, images
from regbench.data.arrays import Split
from regbench.data.folder import IMAGE_SUFFIXES, Folder
from regbench.errors import UserError
from regbench.evaluation import saved

HEADER = ("file", "class", "probability")


def find(places: Iterable[str]) -> list[Path]:
    """The files in `places`, whatever their suffix, and the image files in and below the folders in `places`.

    Raises:
        UserError: there is no such file or folder, or no image in a folder.
    """
    found = []
    for place in map(Path, places):
        if place.is_dir():
            files = filter(Path.is_file, Folder(place.name, [place]).files)
            inside = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
            if not inside:
                raise UserError(f"{place} holds no images; their names end in {', '.join(sorted(IMAGE_SUFFIXES))}")
            found += inside
        elif place.exists():
            found.append(place)
        else:
            raise UserError(f"there is no file or folder {place}")
    return found


def show(model: Path, files: Sequence[Path], as_csv: bool = False) -> None:
    """Print the class of each image and its probability, as a table or as CSV, a batch at a time.

    Args:
        model: the file of a saved model.
        files: of images; those that can't be read are named on stderr.
        as_csv: comma-separated values instead of aligned columns.

    Raises:
        UserError: no image can be read, or the model can't be used.
    """
    rows = classify(model, files)
    if as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        write = writer.writerow
    else:
        widths = [max(map(cell_len, map(str, files))), max(map(cell_len, saved.metadata(model)["classes"]))]

        def write(row: Sequence[str]) -> None:
            *texts, probability = row
            padded = [text + " " * (width - cell_len(text)) for text, width in zip(texts, widths, strict=True)]
            print(*padded, probability, sep="  ")

    shown = 0
    for file, label, probability in rows:
        if not shown:
            write(HEADER)
        write((str(file), label, f"{probability:.6f}" if as_csv else f"{probability:.3f}"))
        shown += 1
    if not shown:
        raise UserError("no file could be read as an image")


def classify(model: Path, files: Sequence[Path]) -> Iterator[tuple[Path, str, float]]:
    """Yield (file, class, probability of that class) for each image, prepared like the training images.

    If an image has another size than those, it is resized to theirs; its proportions may change.

    Args:
        model: the file of a saved model.
        files: of images; those that can't be read are named on stderr.

    Raises:
        UserError: the model can't be used.
    """
    from regbench.evaluation.predict import predictor
    from regbench.networks.copies import fast

    info = saved.metadata(model)
    predict = predictor(fast(saved.load(model)))
    for start in range(0, len(files), EVALUATION_BATCH):
        batch = []
        for file in files[start : start + EVALUATION_BATCH]:
            try:
                batch.append((file, _read(file, info["image_shape"])))
            except images.DamagedImageError as error:
                print(f"skipped: {error}", file=sys.stderr)
        if batch:
            unknown = np.zeros(len(batch), np.int64)
            logits = predict(Split(np.stack([image for _, image in batch]), unknown))
            if not np.isfinite(logits).all():
                raise UserError(f"{model} is from a run that diverged; it can't predict anything")
            for (file, _), probabilities in zip(batch, softmax(logits.astype(np.float64), axis=1), strict=True):
                yield file, info["classes"][probabilities.argmax()], float(probabilities.max())


def _read(file: Path, shape: Sequence[int]) -> np.ndarray:
    height, width, channels = shape
    image = images.read(file, channels)
    return image if image.shape == (height, width, channels) else images.resized(image, height, width)
