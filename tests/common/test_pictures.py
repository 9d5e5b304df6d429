"""Picture files of every mode become what a person sees; squares of them are what a model reads."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from vilau_common.errors import UserError
from vilau_common.images import open_image
from vilau_common.pictures import (
    LARGEST_PICTURE,
    PictureError,
    centre_square,
    encode_png,
    fitted_square,
    random_square,
    read_picture,
    squeezed,
)

PICTURE = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
ORIENTATION = 0x0112


def saved(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def smooth(height: int, width: int) -> np.ndarray:
    """A picture that survives compression and resizing."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 / width, y * 255 / height, np.full_like(x, 80)], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "1", "LA"])
def test_modes_without_transparent_parts_keep_their_colours(mode: str) -> None:
    image = Image.fromarray(PICTURE).convert(mode)
    found = read_picture(saved(image))
    assert found.dtype == np.uint8
    assert np.array_equal(found, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_lies_on_white(mode: str) -> None:
    alpha = np.array([[0, 128, 255]], np.uint8)
    image = Image.new("RGB", (3, 1), (40, 40, 40)).convert(mode)
    image.putalpha(Image.fromarray(alpha))
    expected = np.round(255 - 215.0 * alpha[0] / 255)
    assert np.abs(read_picture(saved(image))[0, :, 1] - expected).max() <= 1


def test_a_transparent_colour_of_a_palette_is_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 0, 0])
    image.putdata([0, 1])
    for options in ({"transparency": 0}, {"transparency": bytes([0, 255])}):
        assert read_picture(saved(image, **options)).tolist() == [[[255, 255, 255], [200, 0, 0]]]
    assert read_picture(saved(image)).tolist() == [[[10, 20, 30], [200, 0, 0]]]


def test_a_transparent_colour_of_an_rgb_file_is_white() -> None:
    image = Image.fromarray(np.array([[[1, 2, 3], [9, 9, 9]]], np.uint8))
    assert read_picture(saved(image, transparency=(1, 2, 3))).tolist() == [[[255, 255, 255], [9, 9, 9]]]


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_sixteen_bit_grey_keeps_its_whole_range(file_format: str) -> None:
    image = Image.fromarray(np.array([[0, 257 * 3, 257 * 200, 65535]], np.uint16))
    assert image.mode.startswith("I;16")
    found = read_picture(saved(image, file_format))
    assert found[0].tolist() == [[value] * 3 for value in (0, 3, 200, 255)]


def test_numbers_without_a_white_are_refused() -> None:
    floats = Image.fromarray(np.array([[0.0, 1.0]], np.float32))
    with pytest.raises(PictureError, match="floating-point"):
        read_picture(saved(floats, "TIFF"))
    with pytest.raises(PictureError, match="beyond 16 bits"):
        read_picture(saved(Image.fromarray(np.array([[0, 70000]], np.int32)), "TIFF"))
    assert read_picture(saved(Image.fromarray(np.array([[0, 65535]], np.int32)), "TIFF"))[0, 1, 0] == 255


def test_cmyk_photographs_have_their_colours() -> None:
    image = Image.fromarray(smooth(32, 32)).convert("CMYK")
    found = read_picture(saved(image, "JPEG", quality=98))
    assert np.abs(found.astype(int) - smooth(32, 32)).mean() < 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_camera_pictures_are_turned_upright(file_format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"quality": 95} if file_format != "PNG" else {}
    image = Image.fromarray(smooth(24, 40))
    expected = image.copy()
    expected.getexif()[ORIENTATION] = orientation
    turned = np.asarray(ImageOps.exif_transpose(expected))
    found = read_picture(saved(image, file_format, exif=exif, **options))
    assert found.shape == turned.shape == ((24, 40, 3) if orientation < 5 else (40, 24, 3))
    assert np.abs(found.astype(int) - turned).mean() < 4


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_formats(file_format: str) -> None:
    found = read_picture(saved(Image.fromarray(smooth(24, 40)), file_format))
    assert found.shape == (24, 40, 3) and np.abs(found.astype(int) - smooth(24, 40)).mean() < 12


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is no PNG, .* or TIFF file"),
        (b"no picture", "it is no PNG, .* or TIFF file"),
        (encode_png(PICTURE)[:-40], "."),
        (saved(Image.fromarray(smooth(64, 64)), "JPEG")[:-200], "truncated"),
        (saved(Image.fromarray(smooth(64, 64)), "WEBP")[:-50], "."),
    ],
    ids=["empty", "garbage", "cut png", "cut jpeg", "cut webp"],
)
def test_damaged_files_are_told(content: bytes, reason: str) -> None:
    with pytest.raises(PictureError, match=reason):
        read_picture(content)


@pytest.mark.filterwarnings("error")  # Pillow's own warning would come for each of a million pictures
@pytest.mark.parametrize("side", [8_193, 10_000, 60_000])
def test_a_bomb_is_refused_unopened(side: int) -> None:
    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")
        )

    assert side * side > LARGEST_PICTURE
    header = side.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000)))
    with pytest.raises(PictureError, match=r"pixels are more than|decompression bomb"):
        read_picture(bomb)


def test_what_fits_stays_bit_for_bit() -> None:
    image = PICTURE[:5]
    assert np.array_equal(centre_square(image, 5), image)
    assert np.array_equal(centre_square(PICTURE[:5, :3], 3), PICTURE[1:4, :3])


@pytest.mark.parametrize(("height", "width"), [(40, 80), (80, 40), (16, 16), (7, 9)])
def test_the_centre_is_resized_with_antialiasing(height: int, width: int) -> None:
    image = smooth(height, width)
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    centre = Image.fromarray(image[top : top + side, left : left + side])
    expected = np.asarray(centre.resize((20, 20), Image.Resampling.BICUBIC))
    assert np.array_equal(centre_square(image, 20), expected)
    # One pixel wide lines become their mean, not every other line.
    lines = np.zeros((80, 80, 3), np.uint8)
    lines[::2] = 200
    assert np.abs(centre_square(lines, 20)[2:-2].astype(int) - 100).max() <= 2


def test_random_squares_have_the_area_and_stay_inside() -> None:
    # Each pixel tells its place: crops of whole pixels, not resized, would be read off; resized ones keep the range.
    y, x = np.mgrid[:40, :60]
    image = np.stack([y * 4, x * 4, np.zeros_like(x)], axis=-1).astype(np.uint8)
    rng = np.random.default_rng(0)
    shares, lefts = [], []
    for _ in range(300):
        square = random_square(image, 32, 0.25, rng).astype(float)
        assert square.shape == (32, 32, 3)
        height = (square[-1, 16, 0] - square[0, 16, 0]) / 4 + 1
        width = (square[16, -1, 1] - square[16, 0, 1]) / 4 + 1
        shares.append(height * width / (40 * 60))
        lefts.append(square[16, 0, 1] / 4)
    assert min(shares) > 0.2 and max(shares) < 1.05
    assert np.quantile(shares, 0.1) < 0.4 and np.quantile(shares, 0.9) > 0.65
    assert min(lefts) < 1 and max(lefts) > 25


def test_a_whole_picture_of_no_possible_shape_falls_back_to_the_centre() -> None:
    strip = np.arange(4 * 100 * 3, dtype=np.uint8).reshape(4, 100, 3)
    rng = np.random.default_rng(0)
    assert np.array_equal(random_square(strip, 4, 1.0, rng), centre_square(strip, 4))


def test_all_of_a_picture_is_squeezed_or_stands_on_grey() -> None:
    """As the official code does it: Pillow's own resizing, of the picture or of the square that it is pasted on."""
    picture = smooth(24, 40)
    squeezed = Image.fromarray(picture).resize((16, 16))
    assert np.array_equal(fitted_square(picture, 16, "resize"), np.asarray(squeezed))
    page = Image.new("RGB", (40, 40), (127, 127, 127))
    page.paste(Image.fromarray(picture), (0, 8))
    assert np.array_equal(fitted_square(picture, 16, "pad"), np.asarray(page.resize((16, 16))))
    upright = np.ascontiguousarray(picture.transpose(1, 0, 2))
    assert np.array_equal(fitted_square(upright, 40, "pad")[:, 8:32], upright)
    assert np.array_equal(fitted_square(picture, 16, "crop"), centre_square(picture, 16))


def test_a_users_picture_is_opened_or_told(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(saved(Image.fromarray(smooth(24, 40)), "JPEG", exif=exif, quality=95))
    shown = np.rot90(smooth(24, 40), -1)
    assert np.abs(open_image(photo, 24).astype(int) - shown[8:32]).mean() < 4
    with pytest.raises(UserError, match="there is no picture .*nowhere.png"):
        open_image(tmp_path / "nowhere.png", 8)
    photo.write_bytes(photo.read_bytes()[:300])
    with pytest.raises(UserError, match="photo.jpg cannot be read as a picture"):
        open_image(photo, 8)
    with pytest.raises(UserError, match="cannot be read as a picture"):
        open_image(tmp_path, 8)


def test_squeezing_keeps_all_of_the_picture() -> None:
    image = smooth(40, 120)
    found = squeezed(image, 40)
    assert np.abs(found.astype(int) - smooth(40, 40)).max() <= 4
    assert np.array_equal(squeezed(PICTURE[:5], 5), PICTURE[:5])
