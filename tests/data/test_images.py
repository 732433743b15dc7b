"""Opening images of every kind, and refusing what must not be opened."""

from __future__ import annotations

import http.server
import io
import pickle
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps
from transformers.image_utils import load_image

from sailplan.data.images import PIXEL_LIMIT, ImageOpener, image_opener
from sailplan.data.remote import fetch
from sailplan.data.sample import ImageReference
from sailplan.data.sources import load_rows
from sailplan.errors import DataError, RunFileError
from sailplan.run.config import Run
from tests.support.pictures import KINDS, encoded, noise


def at(path: str | Path) -> ImageReference:
    return ImageReference(path=str(path), bytes=None)


def embedded(data: bytes, path: str | None = None) -> ImageReference:
    return ImageReference(path=path, bytes=data)


BYTES_ONLY = ImageOpener(root=None)


@pytest.mark.parametrize("kind", KINDS)
def test_open_of_every_kind_gives_right_rgb(kind: str) -> None:
    data, expected = KINDS[kind]

    image = BYTES_ONLY.open(embedded(data))

    assert image.mode == "RGB"
    assert [image.getpixel((x, 0)) for x in range(image.width)] == expected
    assert BYTES_ONLY.size(embedded(data)) == image.size


def test_open_of_cmyk_jpeg_keeps_its_colour() -> None:
    data = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)

    red, green, blue = BYTES_ONLY.open(embedded(data)).getpixel((8, 8))

    assert red > 240
    assert max(green, blue) < 30


@pytest.mark.parametrize("mode", ["F", "I"])
def test_open_of_pixels_without_agreed_range_is_refused(mode: str) -> None:
    data = encoded(Image.new(mode, (2, 2), 100_000), "TIFF")

    with pytest.raises(DataError, match="8 or 16 bits"):
        BYTES_ONLY.open(embedded(data))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_open_and_size_follow_exif_orientation(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(noise(), kind, exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        expected = ImageOps.exif_transpose(image).convert("RGB")

    opened = BYTES_ONLY.open(embedded(data))

    assert opened.size == ((37, 61) if orientation >= 5 else (61, 37))
    assert BYTES_ONLY.size(embedded(data)) == opened.size
    assert np.array_equal(np.asarray(opened), np.asarray(expected))


def test_size_that_pillow_reads_knows_no_orientation_while_readers_apply_it() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(noise(), "JPEG", exif=exif)
    feature = datasets.Image()

    assert Image.open(io.BytesIO(data)).size == (61, 37)
    assert load_image(Image.open(io.BytesIO(data))).size == (37, 61)
    assert feature.decode_example({"path": None, "bytes": data}).size == (37, 61)
    assert BYTES_ONLY.size(embedded(data)) == (37, 61)


def test_size_of_cut_off_image_reads_the_header_alone() -> None:
    assert BYTES_ONLY.size(embedded(encoded(noise(), "PNG")[:200])) == (61, 37)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
@pytest.mark.parametrize("kept", [0.5, 0.97])
def test_open_of_truncated_image_is_refused(kind: str, kept: float) -> None:
    data = encoded(noise(), kind)

    with pytest.raises(DataError) as caught:
        BYTES_ONLY.open(embedded(data[: int(len(data) * kept)], path="shop/cut.img"))

    assert "shop/cut.img" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_open_of_png_with_flipped_bytes_is_refused() -> None:
    data = bytearray(encoded(noise(), "PNG"))
    middle = len(data) // 2
    data[middle : middle + 8] = bytes(byte ^ 255 for byte in data[middle : middle + 8])

    with pytest.raises(DataError, match="corrupt"):
        BYTES_ONLY.open(embedded(bytes(data)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "web page"),
        (b"\n <html lang='en'>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (b"\x00\x01\x02 no image at all", "corrupt or not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    ],
)
@pytest.mark.parametrize("is_embedded", [False, True])
def test_image_that_is_none_is_refused_by_what_it_is(
    tmp_path: Path, content: bytes, message: str, is_embedded: bool
) -> None:
    (tmp_path / "a.png").write_bytes(content)
    reference = embedded(content, path="a.png") if is_embedded else at("a.png")
    opener = ImageOpener(root=tmp_path)

    for look in (opener.size, opener.open, opener.decode):
        with pytest.raises(DataError, match=message) as caught:
            look(reference)
        assert "'a.png'" in str(caught.value)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims its size and holds next to nothing."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [12_000, 60_000])
def test_decompression_bomb_is_refused_from_its_header(side: int) -> None:
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES

    for look in (BYTES_ONLY.size, BYTES_ONLY.open, BYTES_ONLY.decode):
        with pytest.raises(DataError, match=f"at most {PIXEL_LIMIT:,}"):
            look(embedded(png_header(side, side)))

    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)


def test_size_at_the_pixel_limit_is_allowed() -> None:
    opener = ImageOpener(root=None, pixel_limit=61 * 37)

    assert opener.open(embedded(encoded(noise(), "PNG"))).size == (61, 37)
    with pytest.raises(DataError, match="too many pixels"):
        opener.open(embedded(encoded(noise(width=62), "PNG")))


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A folder `shop` with an image, links out of and within it, and an image beside it."""
    root = tmp_path / "shop"
    (root / "in").mkdir(parents=True)
    noise().save(root / "in" / "a.png")
    noise().save(tmp_path / "secret.png")
    (root / "out.png").symlink_to(tmp_path / "secret.png")
    (root / "outside").symlink_to(tmp_path)
    (root / "within.png").symlink_to(root / "in" / "a.png")
    return root


@pytest.mark.parametrize("path", ["in/a.png", "in/../in/a.png", "within.png", "ABSOLUTE/in/a.png"])
def test_path_under_image_root_is_opened(shop: Path, path: str) -> None:
    reference = at(path.replace("ABSOLUTE", str(shop)))

    assert ImageOpener(root=shop).open(reference).size == (61, 37)


@pytest.mark.parametrize(
    "path",
    [
        "../secret.png",
        "in/../../secret.png",
        "out.png",
        "outside/secret.png",
        "ABSOLUTE/secret.png",
    ],
)
def test_path_out_of_image_root_is_refused(shop: Path, path: str) -> None:
    opener = ImageOpener(root=shop)

    for look in (opener.size, opener.open, opener.decode):
        with pytest.raises(DataError, match="outside image_root"):
            look(at(path.replace("ABSOLUTE", str(shop.parent))))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("in/missing.png", "is missing"),
        ("in", "is missing"),
        ("in/\0.png", "no usable path"),
        ("x" * 5000, "no usable path|missing"),
        ("s3://bucket/a.png", "no path"),
        ("", "neither path nor bytes"),
    ],
)
def test_path_that_is_no_file_is_refused(shop: Path, path: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        ImageOpener(root=shop).open(at(path))

    assert len(str(caught.value)) < 1000


def test_path_without_any_root_is_refused() -> None:
    with pytest.raises(DataError, match="set image_root"):
        BYTES_ONLY.open(at("a.png"))


def test_embedded_bytes_win_over_a_path_that_leads_nowhere() -> None:
    data = encoded(noise(), "PNG")

    assert BYTES_ONLY.open(embedded(data, path="/nowhere/a.png")).size == (61, 37)


def test_opener_survives_pickling(shop: Path) -> None:
    opener = pickle.loads(pickle.dumps(ImageOpener(root=shop, allowed_hosts=frozenset({"a"}))))

    assert opener.open(at("in/a.png")).size == (61, 37)


def run_on(data: Path, *flags: str) -> Run:
    return Run.from_flags(["--dataset_name", str(data), *flags])


def test_image_opener_of_run_takes_image_root_else_folder_of_data(shop: Path) -> None:
    data = shop / "rows.jsonl"
    data.write_text('{"text": "a"}\n')
    run = run_on(data)
    rows = load_rows(run)

    assert image_opener(run, rows).root == shop
    assert image_opener(run_on(data, "--image_root", str(shop / "in")), rows).root == shop / "in"
    with pytest.raises(RunFileError, match="no folder"):
        image_opener(run_on(data, "--image_root", str(shop / "none")), rows)


class Shop(http.server.BaseHTTPRequestHandler):
    """Serves an image, redirects, and misbehaves on request."""

    hang = threading.Event()

    def do_GET(self) -> None:
        port = self.server.server_address[1]
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", f"http://{self.path[4:]}:{port}/a.png")
            self.end_headers()
        elif self.path == "/hang":
            self.hang.wait(10)
        elif self.path == "/a.png":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(encoded(noise(), "PNG"))
        else:
            self.send_error(404)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Shop)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    Shop.hang.set()
    server.shutdown()
    thread.join()
    server.server_close()


LOCAL = frozenset({"127.0.0.1"})


def test_remote_image_on_allowed_host_is_opened(host: str) -> None:
    opener = ImageOpener(root=None, allowed_hosts=LOCAL)

    assert opener.size(at(f"{host}/a.png")) == (61, 37)
    assert opener.open(at(f"{host}/a.png")).size == (61, 37)
    assert opener.open(at(f"{host}/to/127.0.0.1")).size == (61, 37)


def test_remote_image_on_allowed_port_alone_is_opened(host: str) -> None:
    allowed = frozenset({host.removeprefix("http://")})

    assert ImageOpener(root=None, allowed_hosts=allowed).size(at(f"{host}/a.png")) == (61, 37)


@pytest.mark.parametrize(
    "url", ["https://example.com/a.png", "http://127.0.0.1@example.com/", "http://[broken"]
)
@pytest.mark.parametrize("allowed", [frozenset(), LOCAL])
def test_remote_image_on_other_host_is_refused(url: str, allowed: frozenset[str]) -> None:
    opener = ImageOpener(root=None, allowed_hosts=allowed)

    for look in (opener.size, opener.open, opener.decode):
        with pytest.raises(DataError, match=r"not allowed|no usable address"):
            look(at(url))


def test_redirect_to_other_host_is_refused(host: str) -> None:
    opener = ImageOpener(root=None, allowed_hosts=LOCAL)

    with pytest.raises(DataError, match=r"localhost.*not allowed"):
        opener.open(at(f"{host}/to/localhost"))


@pytest.mark.parametrize(
    ("path", "limits", "message"),
    [
        ("/none.png", {}, "404"),
        ("/a.png", {"size_limit_bytes": 100}, "too large"),
        ("/hang", {"timeout_s": 0.2}, "could not be fetched"),
    ],
)
def test_remote_image_that_misbehaves_is_refused(
    host: str, path: str, limits: dict[str, float], message: str
) -> None:
    call: Callable[..., bytes] = fetch

    with pytest.raises(DataError, match=message):
        call(host + path, LOCAL, **limits)


def test_remote_image_is_named_without_being_fetched() -> None:
    address = "http://192.0.2.1/a.png"  # of a network that is nobody's (RFC 5737)
    reference = ImageReference(path=address, bytes=None)
    assert (
        ImageOpener(root=None, allowed_hosts=frozenset({"192.0.2.1"})).identity(reference)
        == address
    )
