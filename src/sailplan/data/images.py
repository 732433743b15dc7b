"""Opens images: sizes from the header alone, pixels as RGB, and nothing that is unsafe.

Stateless but for its settings, so that every DataLoader worker can have a copy. Pillow's global
settings are left as they are.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash
from PIL import Image

from sailplan.data import archives, foreign, pixels
from sailplan.data.local import image_root
from sailplan.data.remote import fetch
from sailplan.data.rgb import to_rgb
from sailplan.data.sample import ImageReference
from sailplan.errors import DataError

if TYPE_CHECKING:
    import torch

    from sailplan.data.sources import Rows
    from sailplan.run.config import Run

PIXEL_LIMIT = 2**27
"""Images of more pixels (16384×8192) are refused from their header. It lies under the 178,956,970
at which Pillow itself refuses, so that one rule holds whatever Pillow is set to."""

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO")
"""What Pillow may open. Its other readers run programs (EPS) or are seldom maintained."""

_REMOTE = ("http://", "https://")

_SWAPPED = (5, 6, 7, 8)
"""EXIF orientations that exchange width and height (EXIF 2.32, tag 0x0112)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageOpener:
    """Opens image references under one root."""

    root: Path | None
    """The folder that paths are relative to and may not leave; None: no paths, only bytes."""
    entry_roots: tuple[Path, ...] = ()
    """The same for each entry of the data, where their folders differ; `root` then is None."""
    allowed_hosts: frozenset[str] = frozenset()
    """The hosts from which images may be fetched, `host` or `host:port`."""
    pixel_limit: int = PIXEL_LIMIT
    """The most pixels that an image may have."""

    def __post_init__(self) -> None:
        if self.root is not None:
            object.__setattr__(self, "root", self.root.expanduser().resolve())
        roots = tuple(root.expanduser().resolve() for root in self.entry_roots)
        object.__setattr__(self, "entry_roots", roots)

    def size(self, reference: ImageReference, entry: int = 0) -> tuple[int, int]:
        """Returns width and height in pixels as `open` will show them, without decoding.

        Args:
            reference: The image.
            entry: The entry of the data that it is from.

        Raises:
            DataError: The image is missing, not allowed, not an image, or too large.
        """
        with self._header(reference, entry) as image:
            width, height = image.size
            return (height, width) if _orientation(image) in _SWAPPED else (width, height)

    def open(self, reference: ImageReference, entry: int = 0) -> Image.Image:
        """Returns the image in RGB, upright, its transparent parts on white.

        Of an animation, the first frame.

        Args:
            reference: The image.
            entry: The entry of the data that it is from.

        Raises:
            DataError: As for `size`, or the pixels are corrupt or cut off.
        """
        with self._header(reference, entry) as image:
            return _upright(image, _label(reference))

    def decode(self, reference: ImageReference, entry: int = 0) -> torch.Tensor:
        """Returns the pixels of `open`, for the image processor: bytes `[3, height, width]`.

        Args:
            reference: The image.
            entry: The entry of the data that it is from.

        Raises:
            DataError: As for `open`.
        """
        with self._header(reference, entry) as image:
            orientation, stored = _orientation(image), pixels.decoded(image)
            if stored is None:
                return pixels.of_image(_upright(image, _label(reference)))
            return pixels.turned(stored, orientation)

    def identity(self, reference: ImageReference, entry: int = 0) -> str:
        """Returns what tells an image from others, without decoding it: a hash of its bytes.

        Of a file it is its path, size and time: whoever changes it leaves another. Of a remote
        image it is its address: nothing is fetched to name it.

        Args:
            reference: The image.
            entry: The entry of the data that it is from.

        Raises:
            DataError: The image is missing or not allowed.
        """
        path = reference["path"] or ""
        if reference["bytes"] is None and path.startswith(_REMOTE):
            return path
        source = self._source(reference, entry)
        if isinstance(source, Path):
            status = source.stat()
            return f"{source} {status.st_size} {status.st_mtime_ns}"
        return xxhash.xxh3_128_hexdigest(source.getbuffer())

    def _header(self, reference: ImageReference, entry: int) -> Image.Image:
        label = _label(reference)
        source = self._source(reference, entry)
        try:
            image = Image.open(source, formats=FORMATS)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise self._too_large(label) from error
        except Exception as error:  # a broken header can raise anything
            raise _not_an_image(label, source) from error
        width, height = image.size
        if width * height > self.pixel_limit:
            image.close()
            raise self._too_large(label)
        return image

    def _too_large(self, label: str) -> DataError:
        return DataError(
            f"image {label} has too many pixels",
            allowed=f"at most {self.pixel_limit:,}",
            todo="scale it down",
            kind="image-refused",
        )

    def _source(self, reference: ImageReference, entry: int) -> Path | io.BytesIO:
        """Returns where the encoded bytes are: those that came with the row before any path."""
        if reference["bytes"] is not None:
            return io.BytesIO(reference["bytes"])
        path = reference["path"]
        if not path:
            raise DataError("an image reference has neither path nor bytes")
        if path.startswith(_REMOTE):
            return io.BytesIO(fetch(path, self.allowed_hosts))
        if "://" in path:
            raise DataError(
                f"image {_short(path)} is no path",
                allowed="paths, and http(s) where allowed",
                kind="image-refused",
            )
        return _inside(self.entry_roots[entry] if self.entry_roots else self.root, path)


def image_opener(run: Run, rows: Rows) -> ImageOpener:
    """Returns the opener of a run's images: under `image_root`, else each data file's own folder.

    Raises:
        RunFileError: `image_root` is no folder.
    """
    root = image_root(run)
    folders = [entry.folder for entry in rows.entries] if root is None else [root]
    differ = len(set(folders)) > 1
    return ImageOpener(
        root=None if differ else folders[0],
        entry_roots=tuple(folders) if differ else (),
        allowed_hosts=frozenset(host.lower() for host in run.get("allowed_image_hosts") or ()),
    )


def _inside(root: Path | None, path: str) -> Path | io.BytesIO:
    label = _short(path)
    if root is None:
        raise DataError(
            f"image {label} has no folder to be in", todo="set image_root", kind="image-missing"
        )
    try:
        real = (root / path).resolve()
        found = real.is_file()
    except (OSError, ValueError) as error:
        raise DataError(f"image {label} is no usable path", kind="image-missing") from error
    if not real.is_relative_to(root):
        allowed = f"files under {root}"
        raise DataError(
            f"image {label} lies outside image_root", allowed=allowed, kind="image-refused"
        )
    within = None if found else archives.split(real)
    if within is not None:
        return io.BytesIO(archives.read(within))
    if not found:
        raise DataError(
            f"image {label} is missing", todo=f"looked for it in {root}", kind="image-missing"
        )
    return real


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation that is still to be applied, without decoding.

    Pillow turns TIFF by itself. `Image.Image.getexif` is called past PNG's own, which would decode
    the pixels to look for EXIF behind them.
    """
    if image.format == "TIFF":
        return 1
    try:
        return int(Image.Image.getexif(image).get(0x0112, 1))
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return 1


def _upright(image: Image.Image, label: str) -> Image.Image:
    """Decodes an image of which the header is read, as RGB."""
    orientation = _orientation(image)
    try:
        image.load()
        return to_rgb(_turn(image, orientation))
    except DataError as error:
        raise DataError(f"image {label}: {error}") from error
    except Exception as error:  # Pillow's readers raise whatever the bytes make them raise
        raise DataError(
            f"image {label} is corrupt or cut off: {error}", todo="get the file again"
        ) from error


def _turn(image: Image.Image, orientation: int) -> Image.Image:
    method = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(orientation)
    return image if method is None else image.transpose(method)


def _not_an_image(label: str, source: Path | io.BytesIO) -> DataError:
    if isinstance(source, Path):
        with source.open("rb") as file:
            head = file.read(foreign.HEAD_BYTES)
    else:
        head = source.getvalue()[: foreign.HEAD_BYTES]
    found = foreign.describe(head)
    if found is None:
        return DataError(f"image {label} is corrupt or not an image", todo="get the file again")
    return DataError(f"image {label} {found[0]}", todo=found[1])


def _label(reference: ImageReference) -> str:
    return _short(reference["path"]) if reference["path"] else "embedded in the row"


def _short(path: str) -> str:
    return repr(path if len(path) <= 200 else path[:200] + "…")
