"""Picture files of any kind as a person sees them, and squares of them for a model.

Upright (cameras store the orientation apart), what is transparent on white, 8 bits each of red, green and blue. A model
reads squares: the middle of the picture, its shorter side brought to the model's size. A picture that fits already
is left as it is, bit for bit.
"""

from __future__ import annotations

import io
import math
import warnings

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

Picture = npt.NDArray[np.uint8]

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")

# More is refused before it is unpacked: a small file may claim any size. Pictures of 8,192 x 8,192 pass.
LARGEST_PICTURE = 2**26  # pixels

# With antialiasing; what CLIP and SigLIP were trained with.
RESAMPLING = Image.Resampling.BICUBIC

# How a picture that is no square becomes one: its middle; all of it, squeezed; or all of it, on grey.
FITS = ("crop", "resize", "pad")
GREY = (127, 127, 127)  # the pixel statistics' mean of 0.5, cut as the official VILA-U code cuts it

# Random crops as torchvision's RandomResizedCrop makes them.
ASPECT_RATIOS = (3 / 4, 4 / 3)
_CROP_ATTEMPTS = 10

_WHITE_16_BIT = 2**16 - 1


class PictureError(ValueError):
    """A file that cannot be read as a picture; the text says why."""


def read_picture(data: bytes) -> Picture:
    """A picture file -> uint8 `[H, W, 3]`, perhaps read-only. Raises PictureError where it is damaged or too large.

    Of an animation it is the first frame. The file's ending says nothing: much on the web is misnamed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
            image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > LARGEST_PICTURE:
            raise PictureError(
                f"{image.width:,} x {image.height:,} pixels are more than the {LARGEST_PICTURE:,} that are unpacked"
            )
        return np.asarray(as_seen(image))
    except PictureError:
        raise
    except UnidentifiedImageError:  # its text is an object's address
        raise PictureError(f"it is no {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file") from None
    except Exception as error:  # Pillow's decoders raise almost anything on damaged bytes
        raise PictureError(str(error)) from error


def as_seen(image: Image.Image) -> Image.Image:
    """Any mode -> RGB, upright, on white; `image` itself may be changed."""
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I;16") or image.mode == "I":
        image = _eight_bits(image)
    elif image.mode == "F":
        raise PictureError("its pixels are floating-point numbers, of which none says what is white")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey -> 8-bit grey. (Pillow's own conversion cuts off what is brighter than 255 of 65,535.)"""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > _WHITE_16_BIT:
        raise PictureError("its 32-bit pixels go beyond 16 bits, and none says what is white")
    return Image.fromarray(np.round(values * (255 / _WHITE_16_BIT)).astype(np.uint8))


def encode_png(picture: Picture) -> bytes:
    """The PNG file of a picture, uint8 [H, W, 3]."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def centre_square(picture: Picture, size: int) -> Picture:
    """uint8 [H, W, 3] -> [size, size, 3]: the shorter side resized, the middle of the longer one kept."""
    height, width = picture.shape[:2]
    side = min(height, width)
    return _resized(picture, (height - side) // 2, (width - side) // 2, side, side, size)


def squeezed(picture: Picture, size: int) -> Picture:
    """uint8 [H, W, 3] -> [size, size, 3]: all of the picture, its aspect ratio lost."""
    height, width = picture.shape[:2]
    return _resized(picture, 0, 0, height, width, size)


def fitted_square(picture: Picture, size: int, fit: str) -> Picture:
    """uint8 [H, W, 3] -> [size, size, 3]; fit: one of FITS."""
    assert fit in FITS
    if fit == "crop":
        return centre_square(picture, size)
    height, width = picture.shape[:2]
    if fit == "pad" and height != width:
        page = Image.new("RGB", (max(height, width),) * 2, GREY)
        page.paste(Image.fromarray(picture), (max(height - width, 0) // 2, max(width - height, 0) // 2))
        picture = np.asarray(page)
    return squeezed(picture, size)


def random_square(picture: Picture, size: int, smallest_share: float, rng: np.random.Generator) -> Picture:
    """uint8 [H, W, 3] -> [size, size, 3]: a random part with at least `smallest_share` of the area, resized.

    As torchvision's RandomResizedCrop: area and aspect ratio (its logarithm) are uniform; where none fits, the centre.
    """
    height, width = picture.shape[:2]
    for _ in range(_CROP_ATTEMPTS):
        area = rng.uniform(smallest_share, 1.0) * height * width
        aspect = math.exp(rng.uniform(math.log(ASPECT_RATIOS[0]), math.log(ASPECT_RATIOS[1])))
        across, down = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < across <= width and 0 < down <= height:
            top, left = rng.integers(height - down + 1), rng.integers(width - across + 1)
            return _resized(picture, int(top), int(left), down, across, size)
    return centre_square(picture, size)


def _resized(picture: Picture, top: int, left: int, height: int, width: int, size: int) -> Picture:
    part = picture[top : top + height, left : left + width]
    if (height, width) == (size, size):
        return part
    return np.asarray(Image.fromarray(part).resize((size, size), RESAMPLING))
