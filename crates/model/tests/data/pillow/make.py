"""Writes the pictures of this folder and, beside each, NAME.rgb.png: what Pillow makes of it.

Run once with Pillow 13.0.0 and NumPy; never needed to build or test. NAME.rgb.png holds
ImageOps.exif_transpose(Image.open(NAME)).convert("RGB").
"""

import io
import pathlib
import struct
import sys
import zlib

import numpy as np
from PIL import Image, ImageOps

HERE = pathlib.Path(__file__).parent
W, H = 45, 37


def smooth(channels, seed, w=W, h=H):
    """A soft picture with an edge, so that chroma upsampling and ringing show."""
    y, x = np.mgrid[0:h, 0:w]
    rng = np.random.default_rng(seed)
    out = np.zeros((h, w, channels))
    for c in range(channels):
        a, b, p = rng.uniform(0.05, 0.3, 3)
        out[..., c] = 127 + 100 * np.sin(a * x + b * y + 6 * p)
    out[h // 3:2 * h // 3, w // 4:w // 2] = rng.uniform(0, 255, channels)
    return out.clip(0, 255).astype(np.uint8)


def png(name, colour_type, depth, rows, extra=()):
    """A PNG written by hand, for kinds Pillow does not write."""
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    h, w = rows.shape[:2]
    lines = b"".join(b"\0" + r.astype(">u2" if depth == 16 else "u1").tobytes() for r in rows)
    body = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, depth, colour_type, 0, 0, 0))
    body += b"".join(chunk(k, v) for k, v in extra) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    (HERE / name).write_bytes(body)


def save(name, picture, **options):
    picture.save(HERE / name, **options)


def gif_bytes(screen, frame_at, frame, palette, transparent=None, local=False, interlaced=False):
    """First frame smaller than the canvas: Pillow's own writer never does that."""
    im = Image.fromarray(frame, "P")
    im.putpalette(palette)
    buf = io.BytesIO()
    im.save(buf, "GIF", optimize=False, interlace=interlaced, **({} if transparent is None else {"transparency": transparent}))
    raw = bytearray(buf.getvalue())
    at = 13 + (3 << ((raw[10] & 7) + 1))
    while raw[at] == 0x21:
        at += 2
        while raw[at]:
            at += 1 + raw[at]
        at += 1
    raw[6:10] = struct.pack("<HH", *screen)
    raw[at + 1:at + 5] = struct.pack("<HH", *frame_at)
    return bytes(raw)


def main():
    rgb, cmyk = smooth(3, 1), smooth(4, 2)
    for sub, tag in ((0, "444"), (1, "422"), (2, "420")):
        save(f"rgb_{tag}.jpg", Image.fromarray(rgb), quality=90, subsampling=sub)
    save("progressive_420.jpg", Image.fromarray(rgb), quality=85, progressive=True)
    save("grey.jpg", Image.fromarray(rgb[..., 0]), quality=90)
    save("cmyk.jpg", Image.fromarray(cmyk, "CMYK"), quality=90)
    save("restart.jpg", Image.fromarray(rgb), quality=80, restart_marker_blocks=2)
    save("keep_rgb.jpg", Image.fromarray(rgb), quality=90, keep_rgb=True)
    # YCCK: the four planes of a CMYK JPEG, read as Y Cb Cr K because the Adobe marker says transform 2.
    ycck = bytearray((HERE / "cmyk.jpg").read_bytes())
    adobe = ycck.index(b"Adobe")
    ycck[adobe + 11] = 2
    (HERE / "ycck.jpg").write_bytes(bytes(ycck))
    for tag in range(1, 9):
        exif = Image.Exif()
        exif[274] = tag
        save(f"exif{tag}.png", Image.fromarray(rgb[:9, :7]), exif=exif)
    exif = Image.Exif()
    exif[274] = 8
    save("exif8.webp", Image.fromarray(rgb[:9, :7]), lossless=True, exif=exif)
    save("xmp3.jpg", Image.fromarray(rgb), quality=95, subsampling=0,
         xmp=b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="3"/></x:xmpmeta>')

    save("lossless.webp", Image.fromarray(rgb), lossless=True)
    save("alpha.webp", Image.fromarray(smooth(4, 3)), lossless=True, exact=True)
    save("lossy.webp", Image.fromarray(rgb), quality=80)
    frames = [Image.fromarray(smooth(3, s)) for s in (4, 5)]
    save("animated.webp", frames[0], save_all=True, append_images=frames[1:], lossless=True)
    save("animated.gif", frames[0].quantize(16), save_all=True, append_images=[frames[1].quantize(16)])
    save("rgb24.bmp", Image.fromarray(rgb))
    save("palette.bmp", Image.fromarray(rgb).quantize(9))
    save("one_bit.bmp", Image.fromarray(rgb).convert("1"))
    save("rgba32.bmp", Image.fromarray(smooth(4, 6)))

    save("one_bit.png", Image.fromarray(rgb).convert("1"))
    save("palette4.png", Image.fromarray(rgb).quantize(5), bits=4)
    save("palette_clear.png", Image.fromarray(rgb).quantize(30), transparency=bytes(range(0, 240, 8)))
    grey2 = (smooth(1, 7, 44)[..., 0] >> 6).reshape(H, 11, 4)
    png("grey2.png", 0, 2, (grey2 << np.array([6, 4, 2, 0])).sum(-1).astype("u1").reshape(H, 11))
    raw = bytearray((HERE / "grey2.png").read_bytes())
    raw[16:20] = struct.pack(">I", 44)
    raw[29:33] = struct.pack(">I", zlib.crc32(bytes(raw[12:29])))
    (HERE / "grey2.png").write_bytes(bytes(raw))
    deep = np.random.default_rng(8).integers(0, 65536, (H, W, 4))
    png("rgb16.png", 2, 16, deep[..., :3])
    png("rgba16.png", 6, 16, deep)
    png("greya16.png", 4, 16, deep[..., :2])
    png("grey16.png", 0, 16, deep[..., :1] >> 7)
    png("grey16_clear.png", 0, 16, deep[..., :1] >> 7, [(b"tRNS", b"\0\x40")])
    png("rgb_clear.png", 2, 8, rgb, [(b"tRNS", struct.pack(">HHH", *rgb[0, 0]))])
    png("grey_clear.png", 0, 8, rgb[..., :1], [(b"tRNS", b"\0\x40")])

    index = (smooth(1, 9, 20, 12)[..., 0] >> 5).astype("u1")
    palette = [v for i in range(8) for v in (30 * i, 255 - 20 * i, (97 * i) % 256)]
    (HERE / "border.gif").write_bytes(gif_bytes((31, 22), (7, 5), index, palette))
    (HERE / "border_clear.gif").write_bytes(gif_bytes((31, 22), (7, 5), index, palette, transparent=3))
    (HERE / "clear.gif").write_bytes(gif_bytes((20, 12), (0, 0), index, palette, transparent=3))
    (HERE / "interlaced.gif").write_bytes(gif_bytes((20, 12), (0, 0), index, palette, interlaced=True))

    for path in sorted(HERE.iterdir()):
        if path.suffix in (".py", ".md") or path.name.endswith(".rgb.png"):
            continue
        picture = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        Image.fromarray(np.asarray(picture)).save(HERE / f"{path.name}.rgb.png", optimize=True)
        if "-v" in sys.argv:
            print(path.name, Image.open(path).mode, picture.size)


if __name__ == "__main__":
    main()
