"""CelebA from JPEGs to the report, on drawn faces in CelebA's format, with both of its encoders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from support import run_dpsw

from dpsw_ray.config.run import DataConfig
from dpsw_ray.data import open_dataset
from dpsw_ray.encoders import load_encoder
from dpsw_ray.methods.registry import load_config

QUICK = (
    "encoder.batch_size=4",
    "release.frames=1",
    "flow.particles=40",
    "flow.steps=5",
    "evaluation.directions=64",
    "tracking.enabled=false",
    "cluster.executor=local",
)


def write_faces(folder: Path, count: int, *, test: int) -> None:
    """Draws faces of 178x218 in CelebA's format: light and dark skin, a smile or none, long hair or a beard.

    Args:
        folder: where img_align_celeba/ and the two lists go.
        count: number of images; about half have the attribute Male (a beard, short hair).
        test: how many of them, the last ones, are the official test part.
    """
    (folder / "img_align_celeba").mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = [f"{i + 1:06d}.jpg" for i in range(count)]
    flags = rng.integers(0, 2, (count, 2), dtype=bool)
    for name, (male, smiling) in zip(names, flags, strict=True):
        _face(rng, bool(male), bool(smiling)).save(folder / "img_align_celeba" / name, quality=90)
    rows = [
        f"{name} {' '.join('1' if flag else '-1' for flag in row)}"
        for name, row in zip(names, flags, strict=True)
    ]
    (folder / "list_attr_celeba.txt").write_text("\n".join([str(count), "Male Smiling", *rows]) + "\n")
    partition = [f"{name} {2 if i >= count - test else 0}" for i, name in enumerate(names)]
    (folder / "list_eval_partition.txt").write_text("\n".join(partition) + "\n")


def _face(rng: np.random.Generator, male: bool, smiling: bool) -> Image.Image:
    behind, hair = (tuple(map(int, rng.integers(low, high, 3))) for low, high in ((90, 240), (10, 110)))
    shade = rng.uniform(0.5, 1.0)
    skin = tuple(int(channel * shade) for channel in (250, 205, 170))
    x, y = (int(centre + rng.integers(-8, 9)) for centre in (89, 112))
    width, height = int(rng.integers(40, 54)), int(rng.integers(54, 68))
    image = Image.new("RGB", (178, 218), behind)
    draw = ImageDraw.Draw(image)
    bottom = y - height // 3 if male else y + height + 20
    draw.ellipse((x - width - 10, y - height - 14, x + width + 10, bottom), fill=hair)
    draw.ellipse((x - width, y - height, x + width, y + height), fill=skin)
    if male:
        draw.chord((x - width, y - height, x + width, y + height), 30, 150, fill=hair)
    for eye in (x - width // 2, x + width // 2):
        draw.ellipse((eye - 9, y - 24, eye + 9, y - 12), fill="white")
        draw.ellipse((eye - 4, y - 23, eye + 4, y - 13), fill=hair)
    mouth = (x - 18, y + 8, x + 18, y + 34) if smiling else (x - 16, y + 20, x + 16, y + 25)
    draw.chord(mouth, 0, 180, fill=(170, 40, 50))
    return image


@pytest.mark.parametrize(
    ("kind", "count", "epochs", "share"), [("dcgan64", 150, 12, 0.75), ("vgg64", 80, 3, 0.95)]
)
def test_faces_go_from_jpegs_to_the_report(
    kind: str, count: int, epochs: int, share: float, tmp_path: Path
) -> None:
    """`share`: of the mean public image's error, what a training of seconds may leave of the test records."""
    faces, home, out = tmp_path / "faces", tmp_path / "home", tmp_path / "run"
    write_faces(faces, count, test=16)
    own = (f"data.path={faces}", f"paths.home={home}", f"paths.ledger={home / 'ledger.sqlite'}")
    chosen = (f"encoder.kind={kind}", f"encoder.epochs={epochs}", *QUICK, *own)
    code, _, error = run_dpsw(
        "flow", "celeba", "--output", out, *(x for key in chosen for x in ("--set", key))
    )
    assert code == 0, error

    history = json.loads((out / "encoder" / "encoder.json").read_text())["history"]
    assert len(history) == epochs
    assert history[-1]["train_loss"] < 0.8 * history[0]["train_loss"], history
    assert min(epoch["holdout_loss"] for epoch in history[1:]) < history[0]["holdout_loss"], history
    dataset = open_dataset(DataConfig(source="celeba", label="Male", path=faces), home, "replace_one")
    assert dataset is not None
    encoder, test = load_encoder(out / "encoder"), dataset.test().values.astype(np.float64)
    decoded = encoder.decode(encoder.encode(dataset.test().values))
    wrong = np.mean((decoded - test) ** 2)
    assert wrong < share * np.mean((dataset.public().values.mean(axis=0) - test) ** 2)

    report = (out / "report.html").read_text()
    assert "<h2>Encoder</h2>" in report and "Reconstructions" in report and kind in report
    names = json.loads((out / "metrics.json").read_text())["metrics"].keys()
    assert {"sliced W2 to test latents", "FID (classifier features)", "intended class"} <= names
    with Image.open(out / "samples.png") as picture:
        assert picture.height > 2 * 64


def test_celebas_config_holds_the_literatures_hyper_parameters() -> None:
    config = load_config("celeba")
    encoder = config.encoder
    assert (encoder.kind, encoder.latent_dim, encoder.loss) == ("dcgan64", 48, "mse")
    assert (encoder.batch_size, encoder.learning_rate, encoder.sphere) == (250, 1e-4, True)
    assert config.privacy.delta == 1e-6
    assert config.release.frames * encoder.latent_dim == 336  # 300 directions, rounded up to whole frames
