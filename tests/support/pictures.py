"""Pictures of every kind that data holds, encoded."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageCms


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width: int = 61, height: int = 37) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def palette_with_transparency() -> Image.Image:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    return image


def sixteen_bit() -> Image.Image:
    return Image.fromarray(np.array([[0, 257, 32768, 65535]], dtype=np.uint16))


KINDS: dict[str, tuple[bytes, list[tuple[int, int, int]]]] = {
    "grey": (encoded(Image.new("L", (2, 1), 77), "PNG"), [(77, 77, 77)] * 2),
    "one_bit": (encoded(Image.new("1", (1, 1), 1), "PNG"), [(255, 255, 255)]),
    "grey_half_transparent": (encoded(Image.new("LA", (1, 1), (0, 51)), "PNG"), [(204, 204, 204)]),
    "transparent_on_white": (
        encoded(Image.new("RGBA", (1, 1), (255, 0, 0, 0)), "PNG"),
        [(255, 255, 255)],
    ),
    "opaque": (encoded(Image.new("RGBA", (1, 1), (9, 8, 7, 255)), "PNG"), [(9, 8, 7)]),
    "palette": (encoded(palette_with_transparency(), "PNG"), [(255, 0, 0), (0, 0, 255)]),
    "palette_transparent": (
        encoded(palette_with_transparency(), "PNG", transparency=1),
        [(255, 0, 0), (255, 255, 255)],
    ),
    "colour_key": (
        encoded(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG", transparency=(1, 2, 3)),
        [(255, 255, 255)],
    ),
    "sixteen_bit_png": (encoded(sixteen_bit(), "PNG"), [(v, v, v) for v in (0, 1, 128, 255)]),
    "sixteen_bit_tiff": (encoded(sixteen_bit(), "TIFF"), [(v, v, v) for v in (0, 1, 128, 255)]),
    "sixteen_bit_pgm": (
        b"P5\n4 1\n65535\n" + np.array([0, 257, 32768, 65535], dtype=">u2").tobytes(),
        [(v, v, v) for v in (0, 1, 128, 255)],
    ),
    "bmp": (encoded(Image.new("RGB", (1, 1), (5, 6, 7)), "BMP"), [(5, 6, 7)]),
    "cmyk": (
        encoded(Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "TIFF"),
        [(255, 0, 0)],
    ),
    "first_frame_of_gif": (
        encoded(
            Image.new("RGB", (1, 1), "red"),
            "GIF",
            save_all=True,
            append_images=[Image.new("RGB", (1, 1), "blue")],
        ),
        [(255, 0, 0)],
    ),
    "first_frame_of_webp": (
        encoded(
            Image.new("RGB", (1, 1), "red"),
            "WEBP",
            save_all=True,
            lossless=True,
            append_images=[Image.new("RGB", (1, 1), "blue")],
        ),
        [(255, 0, 0)],
    ),
}
"""Pictures of a pixel or two, and what they are in RGB."""


def png(
    width: int, height: int, lines: bytes, *, bits: int = 8, colours: int = 2, **rest: bytes
) -> bytes:
    """Returns a PNG made by hand, interlaced, with chunks of `rest` before its pixels.

    Args:
        width: In pixels; at most one, where interlacing shall not reorder them.
        height: In pixels; the same.
        lines: The scan lines, each with its filter byte.
        bits: Of each sample.
        colours: PNG's colour type.
        rest: The other chunks by name.
    """

    def chunk(name: bytes, body: bytes) -> bytes:
        body = name + body
        return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 1)
    chunks = [(b"IHDR", header), *((name.encode(), body) for name, body in rest.items())]
    chunks += [(b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks)


def _profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


_OTHERS: dict[str, Callable[[], bytes]] = {
    **{
        f"jpeg_{width}x{height}_{name}": lambda size=(width, height), options=options: encoded(
            noise(*size), "JPEG", **options
        )
        for width, height in ((1, 1), (3, 3), (61, 37), (16, 16), (17, 130))
        for name, options in {
            "420": {},
            "422": {"subsampling": 1},
            "444_best": {"subsampling": 0, "quality": 100},
            "worst": {"quality": 1},
            "progressive": {"progressive": True},
            "restart_markers": {"restart_marker_blocks": 1},
        }.items()
    },
    "jpeg_grey": lambda: encoded(noise().convert("L"), "JPEG"),
    "jpeg_grey_progressive": lambda: encoded(noise().convert("L"), "JPEG", progressive=True),
    "jpeg_rgb": lambda: encoded(noise(), "JPEG", keep_rgb=True),
    "jpeg_cmyk": lambda: encoded(noise().convert("CMYK"), "JPEG"),
    "jpeg_profile": lambda: encoded(noise(), "JPEG", icc_profile=_profile()),
    "jpeg_comment": lambda: encoded(noise(), "JPEG", comment=b"made by hand" * 99),
    "jpeg_bytes_behind": lambda: encoded(noise(), "JPEG") + b"\0junk\xff\xd8" * 9,
    "jpeg_no_end_marker": lambda: encoded(noise(), "JPEG")[:-2],
    "mpo": lambda: encoded(noise(), "MPO", save_all=True, append_images=[noise(9, 5)]),
    "webp": lambda: encoded(noise(), "WEBP"),
    "webp_1x1": lambda: encoded(noise(1, 1), "WEBP"),
    "webp_lossless": lambda: encoded(noise(), "WEBP", lossless=True),
    "webp_alpha": lambda: encoded(noise().convert("RGBA"), "WEBP"),
    "webp_alpha_half": lambda: encoded(Image.new("RGBA", (9, 5), (200, 9, 9, 99)), "WEBP"),
    "webp_profile": lambda: encoded(noise(), "WEBP", icc_profile=_profile()),
    "webp_animated": lambda: encoded(
        noise(), "WEBP", save_all=True, append_images=[noise().rotate(180)]
    ),
    "png": lambda: encoded(noise(), "PNG"),
    "png_two_bits": lambda: png(1, 1, b"\0\x80", bits=2, colours=0),
    "png_four_bits": lambda: png(1, 1, b"\0\xa0", bits=4, colours=0),
    "png_sixteen_bits_of_colour": lambda: png(1, 1, b"\0\1\2\xf3\4\5\xf6", bits=16),
    "png_colour_key": lambda: png(1, 1, b"\0\1\2\3", tRNS=b"\0\1\0\2\0\3"),
    "png_gamma": lambda: png(1, 1, b"\0\x63\x64\x65", gAMA=struct.pack(">I", 100_000)),
    "png_animated": lambda: encoded(noise(), "PNG", save_all=True, append_images=[noise(61, 37)]),
    **{
        f"{kind.lower()}_turned_{orientation}": lambda kind=kind, turned=orientation: encoded(
            noise(), kind, exif=_exif(turned)
        )
        for kind in ("JPEG", "WEBP", "PNG")
        for orientation in range(1, 9)
    },
}

PICTURES = {
    **{name: data for name, (data, _) in KINDS.items()},
    **{name: make() for name, make in _OTHERS.items()},
}
"""Pictures of every kind, those of `KINDS` among them."""
