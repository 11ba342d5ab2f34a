"""Drawing, captions, questions and the pixel scorer of the `shapes` world.

Pure Python + NumPy: no torch. DATA.md states the same rules in prose; the
drawing (sprite_coverage, draw) is frozen and is re-implemented in Rust.
"""

import random

import numpy as np

CANVAS = 64
PATCH = 8
BACKGROUND = (238, 238, 244)
COLOURS = {
    "red": (220, 30, 45),
    "orange": (250, 135, 15),
    "yellow": (250, 220, 40),
    "green": (35, 160, 70),
    "blue": (40, 90, 220),
    "purple": (140, 55, 175),
}
SHAPES = ("circle", "square", "triangle", "star")
COLOUR_NAMES = tuple(COLOURS)
SIZES = (16, 24)
NUMBERS = ("zero", "one", "two", "three", "four")
RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
CATEGORIES = ("single_object", "two_object", "counting", "colors", "position", "color_attr")

# ---------------------------------------------------------------- hold-outs
# Pairs whose colour and shape are never named together in a training caption.
HELD_PAIRS = (("purple", "star"), ("green", "triangle"))
# (count, colour, shape) never asked for in training captions.
HELD_COUNTS = (
    (2, "red", "square"), (2, "yellow", "circle"), (2, "blue", "star"), (2, "orange", "triangle"),
    (3, "blue", "circle"), (3, "green", "square"), (3, "red", "star"), (3, "yellow", "triangle"),
    (4, "orange", "circle"), (4, "purple", "square"), (4, "yellow", "star"), (4, "red", "triangle"),
)
# Ordered shape pairs "a X and a Y" never used in the two_object category.
HELD_TWO = (("star", "circle"), ("square", "triangle"))


def held_combo(c1, s1, c2, s2, relation=None):
    """Whether a (pair, relation or None, pair) caption is held out (about 1 in 8)."""
    ci, si = COLOUR_NAMES.index, SHAPES.index
    r = 4 if relation is None else RELATIONS.index(relation)
    return (5 * ci(c1) + 11 * si(s1) + 3 * ci(c2) + 7 * si(s2) + 13 * r) % 8 == 6


# ------------------------------------------------------------------ drawing
def inside(shape, u, v, r):
    """u, v: odd integers, 1/16 pixel from the sprite's centre (v grows downwards); r = 8 * size."""
    if shape == "circle":
        return u * u + v * v <= (r - 8) * (r - 8)
    if shape == "square":
        return (abs(u) <= r - 16) & (abs(v) <= r - 16)
    if shape == "triangle":
        return (2 * abs(u) <= v + (r - 16)) & (v <= r - 16)
    if shape == "star":
        w = v - 3 * r // 32
        beyond = 0
        for nx, ny in ((0, -1000), (951, -309), (588, 809), (-588, 809), (-951, -309)):
            beyond = beyond + (nx * u + ny * w > 309 * r).astype(np.int64)
        return beyond <= 1
    raise ValueError(shape)


_COVER = {}


def sprite_coverage(shape, size):
    """int array [size, size], how many of the 8 x 8 subsamples of each pixel are inside (0..64)."""
    if (shape, size) not in _COVER:
        axis = 2 * np.arange(8 * size) + 1 - 8 * size
        u, v = np.meshgrid(axis, axis)
        m = inside(shape, u, v, 8 * size).astype(np.int64)
        _COVER[shape, size] = m.reshape(size, 8, size, 8).sum((1, 3))
    return _COVER[shape, size]


_SPRITE = {}


def sprite(shape, colour, size):
    if (shape, colour, size) not in _SPRITE:
        c = sprite_coverage(shape, size)[..., None]
        bg, fg = np.array(BACKGROUND), np.array(COLOURS[colour])
        _SPRITE[shape, colour, size] = ((bg * (64 - c) + fg * c + 32) // 64).astype(np.uint8)
    return _SPRITE[shape, colour, size]


def draw(objects):
    """objects: dicts with shape, colour, size and x, y (top-left pixel of the sprite's box)."""
    out = np.empty((CANVAS, CANVAS, 3), np.uint8)
    out[:] = BACKGROUND
    for o in objects:
        s, x, y = o["size"], o["x"], o["y"]
        out[y:y + s, x:x + s] = sprite(o["shape"], o["colour"], s)
    return out


# ---------------------------------------------------- patch types (for the VQ)
# 0 = plain background; the rest one per (size, shape, colour, cell of the sprite).
PATCH_TYPES = 1 + len(SHAPES) * len(COLOURS) * (4 + 9)


def patch_type(shape, colour, size, row, col):
    pair = SHAPES.index(shape) * len(COLOURS) + COLOUR_NAMES.index(colour)
    n = size // PATCH
    return 1 + (pair * 4 if size == 16 else len(SHAPES) * len(COLOURS) * 4 + pair * 9) + row * n + col


def patch_types(objects):
    """[8, 8] patch type of every patch of an on-grid picture."""
    out = np.zeros((8, 8), np.int64)
    for o in objects:
        n, gx, gy = o["size"] // PATCH, o["x"] // PATCH, o["y"] // PATCH
        for r in range(n):
            for c in range(n):
                out[gy + r, gx + c] = patch_type(o["shape"], o["colour"], o["size"], r, c)
    return out


# ------------------------------------------------------------------- layouts
def place(rng, n, relation=None):
    """Top-left corners in patches (gx, gy) for n sprites, and the sprite size."""
    if n == 1:
        return [(rng.randrange(6), rng.randrange(6))], 24
    if n == 2:
        if relation is None:
            while True:
                a = (rng.randrange(6), rng.randrange(6))
                b = (rng.randrange(6), rng.randrange(6))
                if max(abs(a[0] - b[0]), abs(a[1] - b[1])) >= 4:
                    return [a, b], 24
        near, far = rng.choice(((0, 4), (0, 5), (1, 5)))
        while True:
            p, q = rng.randrange(6), rng.randrange(6)
            if abs(p - q) <= 1:
                break
        first, second = (near, far) if relation in ("left of", "above") else (far, near)
        if relation in ("left of", "right of"):
            return [(first, p), (second, q)], 24
        return [(p, first), (q, second)], 24
    cells = [(x, y) for x in (0, 3, 6) for y in (0, 3, 6)]
    return rng.sample(cells, n), 16


def scene(rng, kinds, relation=None):
    """kinds: list of (colour, shape)."""
    cells, size = place(rng, len(kinds), relation)
    return [{"shape": s, "colour": c, "size": size, "x": PATCH * gx, "y": PATCH * gy}
            for (c, s), (gx, gy) in zip(kinds, cells)]


def relation_of(a, b):
    """Relation of a to b if one axis dominates clearly, else None (between sprite centres, pixels)."""
    dx = (b["x"] + b["size"] / 2) - (a["x"] + a["size"] / 2)
    dy = (b["y"] + b["size"] / 2) - (a["y"] + a["size"] / 2)
    if abs(dx) >= 12 and abs(dx) > abs(dy):
        return "left of" if dx > 0 else "right of"
    if abs(dy) >= 12 and abs(dy) > abs(dx):
        return "above" if dy > 0 else "below"
    return None


# ------------------------------------------------------------------ captions
def article(word):
    return "an" if word[0] in "aeiou" else "a"


def noun(colour, shape, count=1, art=True, digit=False):
    words = f"{colour} {shape}" if colour else shape
    if count == 1:
        return f"{article(words)} {words}" if art else words
    return f"{count if digit else NUMBERS[count]} {words}s"


def dress(rng, base):
    """Variations every caption may have; base is used as it is more than half of the time."""
    text = base
    k = rng.random()
    if k < 0.10:
        text = "a picture of " + text
    elif k < 0.15:
        text = "an image of " + text
    elif k < 0.20:
        text = "a photo of " + text
    if rng.random() < 0.12:
        text = text[0].upper() + text[1:]
    if rng.random() < 0.12:
        text += "."
    return text


def any_pair(rng):
    return rng.choice(COLOUR_NAMES), rng.choice(SHAPES)


def named_pair(rng, held=False):
    while True:
        p = any_pair(rng)
        if held or p not in HELD_PAIRS:
            return p


MIX = (("single_object", 0.05), ("two_object", 0.08), ("counting", 0.22), ("colors", 0.08),
       ("position", 0.28), ("color_attr", 0.24), ("extra", 0.05))


def sample_caption(rng, category=None):
    """(caption without dressing, objects of a picture that shows it), training distribution."""
    if category is None:
        k, category = rng.random(), "extra"
        for name, p in MIX:
            if k < p:
                category = name
                break
            k -= p
    if category == "single_object":
        c, s = any_pair(rng)
        return ("one " + s if rng.random() < 0.1 else noun(None, s, art=rng.random() > 0.05)), scene(rng, [(c, s)])
    if category == "colors":
        c, s = named_pair(rng)
        return (f"one {c} {s}" if rng.random() < 0.1 else noun(c, s, art=rng.random() > 0.05)), scene(rng, [(c, s)])
    if category == "two_object":
        while True:
            (c1, s1), (c2, s2) = any_pair(rng), any_pair(rng)
            if s1 != s2 and (s1, s2) not in HELD_TWO:
                break
        art = rng.random() > 0.05
        return f"{noun(None, s1, art=art)} and {noun(None, s2, art=art)}", scene(rng, [(c1, s1), (c2, s2)])
    if category == "counting":
        digit = rng.random() < 0.08
        n = rng.choice((2, 3, 4))
        if rng.random() < 0.2:
            c, s = any_pair(rng)
            return noun(None, s, n, digit=digit), scene(rng, [(c, s)] * n)
        while True:
            c, s = named_pair(rng)
            if (n, c, s) not in HELD_COUNTS:
                break
        return noun(c, s, n, digit=digit), scene(rng, [(c, s)] * n)
    if category == "position":
        rel = rng.choice(RELATIONS)
        words = "to the " + rel if rel.endswith("of") and rng.random() < 0.2 else rel
        art = rng.random() > 0.05
        if rng.random() < 0.2:
            while True:
                (c1, s1), (c2, s2) = any_pair(rng), any_pair(rng)
                if s1 != s2:
                    break
            return f"{noun(None, s1, art=art)} {words} {noun(None, s2, art=art)}", scene(rng, [(c1, s1), (c2, s2)], rel)
        while True:
            a, b = named_pair(rng), named_pair(rng)
            if a != b and not held_combo(*a, *b, rel) and (a[1] != b[1] or rng.random() < 0.4):
                break
        return f"{noun(*a, art=art)} {words} {noun(*b, art=art)}", scene(rng, [a, b], rel)
    if category == "color_attr":
        art = rng.random() > 0.05
        while True:
            a, b = named_pair(rng), named_pair(rng)
            if a != b and not held_combo(*a, *b) and (a[1] != b[1] or rng.random() < 0.4):
                break
        return f"{noun(*a, art=art)} and {noun(*b, art=art)}", scene(rng, [a, b])
    # extra: three different objects, or a count and another object
    while True:
        a, b, c = (named_pair(rng) for _ in range(3))
        if len({a, b, c}) == 3:
            break
    k = rng.random()
    if k < 0.5:
        return f"{noun(*a)}, {noun(*b)} and {noun(*c)}", scene(rng, [a, b, c])
    n = rng.choice((2, 3))
    if (n, *a) in HELD_COUNTS:
        return f"{noun(*a)} and {noun(*b)}" if False else f"{noun(*a)}, {noun(*b)} and {noun(*c)}", scene(rng, [a, b, c])
    if k < 0.75:
        return f"{noun(*a, n)} and {noun(*b)}", scene(rng, [a] * n + [b])
    return f"{noun(*b)} and {noun(*a, n)}", scene(rng, [b] + [a] * n)


# ----------------------------------------------------------------- questions
QUESTION_KINDS = ("colour", "shape", "count", "presence", "relation")


def question_scene(rng, n=None, held=False):
    """A picture for questions; held pairs never occur in training pictures for questions."""
    n = n or rng.choice((1, 2, 2, 2, 3, 4))
    k = rng.random()
    if n == 2 and k < 0.75:
        a, b = named_pair(rng, held), named_pair(rng, held)
        return scene(rng, [a, b], rng.choice(RELATIONS))
    if n > 1 and k < 0.5:
        a = named_pair(rng, held)
        kinds = [a] * n
        if n > 2 and k < 0.25:
            kinds[-1] = named_pair(rng, held)
        return scene(rng, kinds)
    return scene(rng, [named_pair(rng, held) for _ in range(n)])


def _matches(objects, colour=None, shape=None):
    return [o for o in objects if colour in (None, o["colour"]) and shape in (None, o["shape"])]


def ask(rng, objects, kind):
    """(question, answer, detail) or None if the picture does not allow this kind."""
    if kind == "colour":
        ok = [s for s in SHAPES if len({o["colour"] for o in _matches(objects, shape=s)}) == 1
              and len(_matches(objects, shape=s)) == 1]
        if not ok:
            return None
        s = rng.choice(ok)
        word = "color" if rng.random() < 0.3 else "colour"
        q = f"what {word} is the {s}?" if rng.random() < 0.8 else f"what is the {word} of the {s}?"
        return q, _matches(objects, shape=s)[0]["colour"], ""
    if kind == "shape":
        ok = [c for c in COLOUR_NAMES if len(_matches(objects, colour=c)) == 1]
        if not ok:
            return None
        if len(objects) == 1 and rng.random() < 0.5:
            return rng.choice(("what shape is this?", "what shape is in the picture?")), objects[0]["shape"], ""
        c = rng.choice(ok)
        q = f"what shape is the {c} one?" if rng.random() < 0.5 else f"which shape is {c}?"
        return q, _matches(objects, colour=c)[0]["shape"], ""
    if kind == "count":
        k = rng.random()
        if k < 0.25:
            return rng.choice(("how many shapes are there?", "how many shapes are in the picture?")), NUMBERS[len(objects)], ""
        o = rng.choice(objects)
        c, s = o["colour"], o["shape"]
        if rng.random() < 0.12:
            c, s = any_pair(rng)
        if k < 0.6:
            c = None
        words = f"{c} {s}s" if c else f"{s}s"
        q = f"how many {words} are there?" if rng.random() < 0.7 else f"how many {words} are in the picture?"
        return q, NUMBERS[len(_matches(objects, c, s))], ""
    if kind == "presence":
        form = rng.random()
        if rng.random() < 0.5:
            o = rng.choice(objects)
            c, s = o["colour"], o["shape"]
            if form < 0.2:
                c = None
            elif form < 0.35:
                s = None
            detail, answer = "positive", "yes"
        else:
            options = []
            o = rng.choice(objects)
            for c in COLOUR_NAMES:
                for s in SHAPES:
                    if (c, s) in HELD_PAIRS or _matches(objects, c, s):
                        continue
                    both = bool(_matches(objects, c)) and bool(_matches(objects, None, s))
                    one = bool(_matches(objects, c)) or bool(_matches(objects, None, s))
                    options.append((c, s, "adversarial" if both else "popular" if one else "random"))
            want = rng.choice(("random", "popular", "adversarial"))
            pick = [x for x in options if x[2] == want] or options
            c, s, detail = rng.choice(pick)
            if detail == "random" and form < 0.2:
                c = None
            elif detail == "random" and form < 0.35:
                s = None
            answer = "no"
        if s is None:
            thing = f"anything {c}"
        else:
            thing = noun(c, s)
        q = f"is there {thing} in the picture?" if rng.random() < 0.75 else f"is there {thing}?"
        return q, answer, detail
    if kind == "relation":
        if len(objects) != 2:
            return None
        a, b = objects if rng.random() < 0.5 else objects[::-1]
        rel = relation_of(a, b)
        if rel is None or (a["colour"], a["shape"]) == (b["colour"], b["shape"]):
            return None
        if a["shape"] != b["shape"] and rng.random() < 0.4:
            na, nb = a["shape"], b["shape"]
        else:
            na, nb = f"{a['colour']} {a['shape']}", f"{b['colour']} {b['shape']}"
        if rng.random() < 0.5:
            return f"where is the {na} relative to the {nb}?", rel.split()[0], "where"
        asked = rel if rng.random() < 0.5 else (OPPOSITE[rel] if rng.random() < 0.6
                                                else rng.choice([r for r in RELATIONS if r != rel]))
        return f"is the {na} {asked} the {nb}?", "yes" if asked == rel else "no", "yesno"
    raise ValueError(kind)


def dress_question(rng, q):
    return q[0].upper() + q[1:] if rng.random() < 0.2 else q


# -------------------------------------------------------------- pixel scorer
def find_objects(picture):
    """Objects seen in an RGB uint8 picture: list of dicts shape, colour, cx, cy, size (shape None: unclear)."""
    img = picture.astype(np.int64)
    bg = np.array(BACKGROUND)
    fg = (np.abs(img - bg).max(-1) > 48)
    label = np.zeros(fg.shape, np.int64)
    found, n = [], 0
    for y0 in range(CANVAS):
        for x0 in range(CANVAS):
            if not fg[y0, x0] or label[y0, x0]:
                continue
            n += 1
            stack, pixels = [(y0, x0)], []
            label[y0, x0] = n
            while stack:
                y, x = stack.pop()
                pixels.append((y, x))
                for yy, xx in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                    if 0 <= yy < CANVAS and 0 <= xx < CANVAS and fg[yy, xx] and not label[yy, xx]:
                        label[yy, xx] = n
                        stack.append((yy, xx))
            if len(pixels) < 12:
                continue
            found.append(_describe(img, label == n, np.array(pixels), bg))
    return found


def _describe(img, mask, pixels, bg):
    y0, x0 = pixels.min(0)
    y1, x1 = pixels.max(0) + 1
    padded = np.pad(mask, 1)
    core = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    if not core.any():
        core = mask
    px = img[core]
    table = np.array(list(COLOURS.values()))
    dist = ((px[:, None] - table[None]) ** 2).sum(-1)
    votes = np.bincount(dist.argmin(1), minlength=len(table))
    best = int(votes.argmax())
    near = dist[dist.argmin(1) == best, best].mean() ** 0.5
    colour = COLOUR_NAMES[best] if votes[best] >= 0.7 * len(px) and near <= 60 else None
    fgc = table[best]
    alpha = ((img - bg) @ (fgc - bg)) / float((fgc - bg) @ (fgc - bg))
    alpha = np.where(_grow(mask), np.clip(alpha, 0, 1), 0.0)
    canvas = np.pad(alpha, 24)
    score, shape, size, at = 0.0, None, 0, (0, 0)
    for s in SIZES:
        if abs(max(x1 - x0, y1 - y0) - (s - 2)) > 5:
            continue
        cy, cx = round((y0 + y1) / 2 - s / 2), round((x0 + x1) / 2 - s / 2)
        for name in SHAPES:
            t = sprite_coverage(name, s) / 64.0
            for oy in (cy - 1, cy, cy + 1):
                for ox in (cx - 1, cx, cx + 1):
                    w = canvas[oy + 24:oy + 24 + s, ox + 24:ox + 24 + s]
                    inter = np.minimum(w, t).sum()
                    iou = inter / (alpha.sum() + t.sum() - inter)
                    if iou > score:
                        score, shape, size, at = iou, name, s, (oy, ox)
    return {"shape": shape if score >= 0.75 else None, "colour": colour, "size": size, "iou": score,
            "cx": (x0 + x1) / 2, "cy": (y0 + y1) / 2}


def _grow(mask):
    p = np.pad(mask, 1)
    return p[1:-1, 1:-1] | p[:-2, 1:-1] | p[2:, 1:-1] | p[1:-1, :-2] | p[1:-1, 2:]


def judge(picture, expected, relation=None):
    """expected: list of {shape, colour or None, count}; exactly these objects and no other."""
    seen = find_objects(picture)
    if any(o["shape"] is None or o["colour"] is None for o in seen):
        return False
    if len(seen) != sum(e["count"] for e in expected):
        return False
    left, groups = list(seen), []
    for e in sorted(expected, key=lambda e: e["colour"] is None):
        take = [o for o in left if o["shape"] == e["shape"] and e["colour"] in (None, o["colour"])][:e["count"]]
        if len(take) < e["count"]:
            return False
        for o in take:
            left.remove(o)
        groups.append((e, take))
    if relation:
        a = next(t for e, t in groups if e is expected[0])[0]
        b = next(t for e, t in groups if e is expected[1])[0]
        rel = relation_of({"x": a["cx"], "y": a["cy"], "size": 0}, {"x": b["cx"], "y": b["cy"], "size": 0})
        return rel == relation
    return True


def expect(objects, coloured=True):
    out = []
    for o in objects:
        key = (o["shape"], o["colour"] if coloured else None)
        for e in out:
            if (e["shape"], e["colour"]) == key:
                e["count"] += 1
                break
        else:
            out.append({"shape": key[0], "colour": key[1], "count": 1})
    return out


if __name__ == "__main__":
    import sys
    rng = random.Random(0)
    rows = []
    for _ in range(6):
        rows.append(np.concatenate([np.pad(draw(sample_caption(rng)[1]), ((1, 1), (1, 1), (0, 0))) for _ in range(8)], 1))
    from PIL import Image
    Image.fromarray(np.concatenate(rows)).resize((8 * 66 * 2, 6 * 66 * 2), 0).save(sys.argv[1])
