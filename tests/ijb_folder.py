"""A small folder in the layout of IJB-C: made-up pictures, templates, two galleries, probes."""

import itertools
from pathlib import Path

import numpy as np
from PIL import Image

from mpsoftmax.data.alignment import TEMPLATE

NUM_SUBJECTS = 12


def write_ijb(root: Path, seed: int = 0, name: str = "ijbc", ends: tuple[str, str] = ("G1", "G2")):
    """Subjects 0..5 are in the first gallery, 6..11 in the second; each has two templates more, as probes."""
    rng = np.random.default_rng(seed)
    (root / "loose_crop").mkdir(parents=True)
    (root / "meta").mkdir()
    faces, marks, lists = [], [], {f"gallery_{end}": [] for end in ends} | {"probe_mixed": []}
    colours = rng.integers(0, 256, (NUM_SUBJECTS, 6, 6, 3))
    number = itertools.count(1)
    for template in range(3 * NUM_SUBJECTS):
        subject = template // 3
        where = (
            f"gallery_{ends[subject * 2 // NUM_SUBJECTS]}" if template % 3 == 0 else "probe_mixed"
        )
        for medium in rng.integers(0, 3, rng.integers(1, 5)):
            file = f"{next(number)}.png"
            write_face(root / "loose_crop" / file, colours[subject], rng, marks)
            faces.append(f"{file} {1000 + template} {medium}")
            lists[where].append(f"{1000 + template},{subject},{file}")
    write = lambda end, rows: (root / "meta" / f"{name}_{end}").write_text("\n".join(rows) + "\n")  # noqa: E731
    write("face_tid_mid.txt", faces)
    write("name_5pts_score.txt", marks)
    pairs = list(itertools.combinations(range(3 * NUM_SUBJECTS), 2))
    write(
        "template_pair_label.txt",
        [f"{1000 + a} {1000 + b} {int(a // 3 == b // 3)}" for a, b in pairs],
    )
    for end, rows in lists.items():
        write(f"1N_{end}.csv", ["TEMPLATE_ID,SUBJECT_ID,FILENAME", *rows])
    return root


def write_face(path: Path, colours, rng, marks: list[str]) -> None:
    """A noisy picture; its points are the template's, moved a little by a similarity."""
    noisy = np.clip(colours + rng.normal(0, 70, colours.shape), 0, 255).astype(np.uint8)
    Image.fromarray(noisy).resize((120, 120), Image.Resampling.BICUBIC).save(path)
    turn, scale = rng.normal(0, 0.1), rng.uniform(0.9, 1.1)
    matrix = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    points = TEMPLATE @ matrix.T + rng.normal(4, 1, 2)
    text = " ".join(f"{value:.4f}" for value in points.ravel())
    marks.append(f"{path.name} {text} {rng.uniform(0.5, 1):.6f}")
