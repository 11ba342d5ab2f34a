"""Writes the pictures of this folder with shapes/drawing.py, and what its scorer finds in them.

drawn.jsonl: file and the objects drawn into it (every sprite occurs). seen.jsonl: file and the objects that
find_objects sees, among them noisy, blurred, overlapping and meaningless pictures. Needs NumPy and Pillow; never needed
to build or test.
"""

import json
import pathlib
import random
import sys

import numpy as np
from PIL import Image, ImageFilter

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE / "../../../shapes"))
import drawing as D  # noqa: E402


def save(name, picture):
    Image.fromarray(picture).save(HERE / name, optimize=True)


def main():
    rng, noise = random.Random(7), np.random.default_rng(7)
    drawn, seen = [], []
    kinds = [(s, c) for s in D.SHAPES for c in D.COLOUR_NAMES]
    for size, n in ((16, 16), (24, 4)):
        per_row = 64 // (16 if size == 16 else 32)
        for k in range(0, len(kinds), n):
            objects = [{"shape": s, "colour": c, "size": size, "x": 64 // per_row * (i % per_row), "y": 64 // per_row * (i // per_row)}
                       for i, (s, c) in enumerate(kinds[k:k + n])]
            drawn.append(objects)
    for category in D.CATEGORIES:
        drawn.append(D.sample_caption(rng, category)[1])
    with open(HERE / "drawn.jsonl", "w") as f:
        for i, objects in enumerate(drawn):
            name = f"drawn-{i:02d}.png"
            save(name, D.draw(objects))
            f.write(json.dumps({"file": name, "objects": objects}) + "\n")

    pictures = {}
    for i in range(4):
        clean = D.draw(D.sample_caption(rng)[1])
        image = Image.fromarray(clean)
        pictures[f"noisy-{i}"] = (clean.astype(int) + noise.integers(-25, 26, clean.shape)).clip(0, 255).astype("u1")
        pictures[f"blurred-{i}"] = np.asarray(image.filter(ImageFilter.GaussianBlur(0.5 + 0.5 * i)))
        pictures[f"shifted-{i}"] = np.roll(clean, (3 * i + 1, 2 * i + 1), (0, 1))
    pictures["two-touching"] = D.draw([{"shape": "square", "colour": "red", "size": 24, "x": 8, "y": 8},
                                       {"shape": "square", "colour": "blue", "size": 24, "x": 30, "y": 8}])
    pictures["wrong-size"] = np.asarray(Image.fromarray(D.draw([{"shape": "star", "colour": "green", "size": 24, "x": 20, "y": 20}]))
                                        .resize((128, 128)).crop((24, 24, 88, 88)))
    pictures["wrong-colour"] = np.where(D.draw([{"shape": "circle", "colour": "red", "size": 24, "x": 20, "y": 20}]) < 60, 128, 238).astype("u1")
    pictures["patchwork"] = D.draw([{"shape": s, "colour": c, "size": 16, "x": 8 * i, "y": 5 * i}
                                    for i, (s, c) in enumerate(rng.sample(kinds, 6))])
    pictures["static"] = noise.integers(0, 256, (64, 64, 3)).astype("u1")
    with open(HERE / "seen.jsonl", "w") as f:
        for name, picture in pictures.items():
            save(f"{name}.png", picture)
            found = [{k: o[k] for k in ("shape", "colour", "cx", "cy", "iou")} for o in D.find_objects(picture)]
            f.write(json.dumps({"file": f"{name}.png", "seen": [{**o, "iou": float(o["iou"]), "cx": float(o["cx"]), "cy": float(o["cy"])} for o in found]}) + "\n")


if __name__ == "__main__":
    main()
