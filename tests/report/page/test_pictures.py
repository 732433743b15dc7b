"""Pictures of a report: each once, all together small."""

from __future__ import annotations

import base64
import io

from PIL import Image

from sailplan.report.page.pictures import MOST_BYTES, embedded
from tests.browser.nasty import noise
from tests.support.pictures import PICTURES, encoded


def test_small_webp_goes_in_as_it_is() -> None:
    content = encoded(noise(320, 200), "WEBP")
    picture = embedded(["a.webp"], {"a.webp": content}.get)["a.webp"]
    assert picture is not None
    assert picture.url == f"data:image/webp;base64,{base64.b64encode(content).decode()}"
    assert (picture.width, picture.height) == (320, 200)


def test_whole_picture_of_any_kind_and_size_becomes_a_small_one() -> None:
    files = {**PICTURES, "wide": encoded(Image.new("L", (8000, 2000)), "PNG")}
    found = embedded(files, files.get)
    assert [name for name, picture in found.items() if not picture] == ["jpeg_no_end_marker"]
    wide = found["wide"]
    assert wide is not None
    assert (wide.width, wide.height) == (480, 120)


def test_pictures_that_are_alike_are_one() -> None:
    content = encoded(noise(30, 20), "WEBP")
    found = embedded(["a", "b", "a"], {"a": content, "b": content}.get)
    assert list(found) == ["a", "b"]
    assert found["a"] is found["b"]


def test_what_is_no_picture_is_none() -> None:
    files = {"text": b"no picture", "empty": b"", "half": encoded(noise(400, 300), "WEBP")[:900]}
    found = embedded([*files, "nowhere"], files.get)
    assert found == {"text": None, "empty": None, "half": None, "nowhere": None}


def test_many_pictures_are_made_smaller_until_all_are_small_enough() -> None:
    files = {str(n): encoded(noise(480, 480, n), "WEBP", quality=95) for n in range(20)}
    assert sum(map(len, files.values())) > MOST_BYTES

    found = embedded(files, files.get)

    pictures = [picture for picture in found.values() if picture]
    assert len(pictures) == 20
    assert sum(len(picture.url) for picture in pictures) < MOST_BYTES * 1.34
    with Image.open(io.BytesIO(base64.b64decode(pictures[0].url.split(",")[1]))) as image:
        assert max(image.size) == pictures[0].width < 480
