"""One picture: a plain JPEG out of anything that is a picture, a reason out of anything that is none."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin, features

from recbole_vlm2rec.prepare.pictures import PictureError, image_name, normalise
from recbole_vlm2rec.prepare.settings import Settings

SETTINGS = Settings(longest_side=100)
RED, BLUE = (220, 20, 30), (20, 30, 220)


def encoded(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def plain(data, settings=SETTINGS):
    image = Image.open(io.BytesIO(normalise(data, settings)))
    image.load()
    assert (image.format, image.mode) == ("JPEG", "RGB") and max(image.size) <= settings.longest_side
    return image


def near(image, place, colour, tolerance=25):
    return np.abs(np.subtract(image.getpixel(place), colour)).max() <= tolerance


def halves(size=(80, 40)):
    """Red on the left, blue on the right."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, 0, *size))
    return image


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_every_format_becomes_the_same_picture(kind):
    image = plain(encoded(halves((400, 200)), kind))
    assert image.size == (100, 50)
    assert near(image, (10, 25), RED) and near(image, (90, 25), BLUE)


def test_a_plain_jpeg_stays_byte_for_byte():
    data = encoded(halves(), "JPEG", quality=70)
    assert normalise(data, SETTINGS) is data


def test_small_pictures_are_not_enlarged():
    assert plain(encoded(halves((40, 20)), "PNG")).size == (40, 20)


@pytest.mark.parametrize("orientation, size, red_at", [
    (1, (80, 40), (10, 20)), (2, (80, 40), (70, 20)), (3, (80, 40), (70, 20)), (4, (80, 40), (10, 20)),
    (5, (40, 80), (20, 10)), (6, (40, 80), (20, 10)), (7, (40, 80), (20, 70)), (8, (40, 80), (20, 70)),
])  # fmt: skip
def test_exif_orientation_is_applied(orientation, size, red_at):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = plain(encoded(halves(), "JPEG", exif=exif))
    assert image.size == size and near(image, red_at, RED)
    assert image.getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(kind):
    ramp = Image.fromarray(np.tile(np.linspace(0, 65535, 90).astype(np.uint16), (60, 1)))
    image = plain(encoded(ramp, kind))
    # 65535 a white, 0 a black: half-way is 127 or 128.
    assert near(image, (45, 30), (128,) * 3, 4) and near(image, (0, 30), (0,) * 3, 4) and near(image, (89, 30), (255,) * 3, 4)


def test_cmyk_and_greys():
    assert near(plain(encoded(halves().convert("CMYK"), "JPEG")), (10, 20), RED, 60)
    assert near(plain(encoded(Image.new("L", (50, 50), 99), "PNG")), (25, 25), (99,) * 3, 3)
    assert near(plain(encoded(Image.new("LA", (50, 50), (0, 0)), "PNG")), (25, 25), (255,) * 3, 3)
    assert near(plain(encoded(Image.new("1", (50, 50), 1), "PNG")), (25, 25), (255,) * 3, 3)


def test_transparent_parts_are_white():
    see_through = Image.new("RGBA", (60, 60), (0, 0, 0, 0))
    see_through.paste((*RED, 255), (0, 0, 30, 60))
    for data in (encoded(see_through, "PNG"), encoded(see_through, "WEBP", lossless=True)):
        image = plain(data)
        assert near(image, (10, 30), RED) and near(image, (50, 30), (255, 255, 255))
    palette = Image.new("P", (60, 60), 0)
    palette.putpalette([0, 0, 0, *RED])
    palette.paste(1, (0, 0, 30, 60))
    image = plain(encoded(palette, "PNG", transparency=0))
    assert near(image, (10, 30), RED) and near(image, (50, 30), (255, 255, 255))


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_of_an_animation_the_first_frame(kind):
    frames = [Image.new("RGB", (50, 50), colour) for colour in (RED, BLUE)]
    image = plain(encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=10))
    assert near(image, (25, 25), RED)


def png_header(width, height):
    """A PNG that says it is of this size, with pixels for none of it."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


JPEG, PNG = encoded(halves(), "JPEG"), encoded(halves(), "PNG")


@pytest.mark.parametrize("data, reason", [
    (b"", "empty file"),
    (b"<!DOCTYPE html><html>not found", "HTML or XML, not a picture"), (b"  <html>", "HTML or XML"), (b"<svg/>", "HTML or XML"),
    (b"GIF?", "not a picture of a known format"), (b"%!PS-Adobe-3.0 EPSF-3.0", "not a picture of a known format"),
    (JPEG[: len(JPEG) * 2 // 3], "damaged or truncated"), (PNG[: len(PNG) * 2 // 3], "damaged or truncated"),
    (JPEG[:2], "not a picture"),
    (encoded(Image.new("RGB", (1, 1)), "GIF"), "a side below 8 pixels"), (encoded(Image.new("RGB", (7, 90)), "PNG"), "below 8"),
    (encoded(Image.new("RGB", (2009, 10)), "PNG"), "more than 200 times the other"),
    (png_header(20_000, 20_000), "more than 64000000 pixels"), (png_header(9_000, 9_000), "more than 64000000 pixels"),
])  # fmt: skip
def test_what_is_no_picture_has_a_reason(data, reason):
    with pytest.raises(PictureError, match=reason), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about the bomb
        normalise(data, SETTINGS)


def test_the_reason_names_the_limit_that_was_met():
    with pytest.raises(PictureError, match="more than 178956970 pixels"):  # Pillow's own, twice 89,478,485
        normalise(png_header(20_000, 20_000), Settings(max_pixels=10**9))


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow lacks AVIF")
@pytest.mark.parametrize("box", [b"av1C", b"iloc", b"pitm"])
def test_a_damaged_avif_is_a_reason(box):
    with pytest.raises(PictureError, match="damaged or truncated"):
        normalise(encoded(halves(), "AVIF").replace(box, b"free"), SETTINGS)


@pytest.mark.parametrize("error", [RuntimeError, TypeError, AttributeError, struct.error, zlib.error])
def test_whatever_a_decoder_raises_is_a_reason(error, monkeypatch):
    def broken(image):
        raise error("of a decoder")

    monkeypatch.setattr("PIL.JpegImagePlugin.JpegImageFile.load", broken)
    with pytest.raises(PictureError, match="damaged or truncated"):
        normalise(JPEG, SETTINGS)


def test_odd_exif_does_not_cost_a_good_picture():
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    data = encoded(halves(), "JPEG", exif=exif)
    text = struct.pack(">HHI", 0x010E, 2, len("a description") + 1)
    assert text in data
    fractions = data.replace(text, struct.pack(">HHI", 0x010E, 12, 1))  # a text that says it is a number
    image = plain(fractions)
    assert image.size == (40, 80) and near(image, (20, 10), RED)


def test_what_is_written_carries_no_metadata():
    exif = Image.Exif()
    exif[0x010E] = "a description"
    large = encoded(halves((400, 200)), "JPEG", exif=exif, comment=b"a comment", icc_profile=b"a profile")
    assert not {"comment", "exif", "icc_profile"} & set(plain(large).info)


@pytest.mark.parametrize("length", [100, 70_000])  # a JPEG's comment has room for 65,533
def test_a_long_comment_does_not_cost_a_good_picture(length):
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "c" * length)
    for data in (encoded(halves(), "GIF", comment=b"c" * length), encoded(halves(), "PNG", pnginfo=text)):
        image = plain(data)
        assert near(image, (10, 20), RED) and "comment" not in image.info


@given(st.integers(0, len(PNG) - 1), st.integers(1, 255))
def test_a_flipped_byte_is_a_picture_or_a_reason_never_a_crash(place, flip):
    data = bytearray(PNG)
    data[place] ^= flip
    try:
        plain(bytes(data))
    except PictureError as error:
        assert error.reason


def test_names_of_plain_tokens_are_the_tokens():
    assert image_name("B000TEST_1-x".upper()) == "B000TEST_1-X.jpg"


@pytest.mark.parametrize("token", ["../../etc/passwd", "a/b", "a\\b", "con", "CON", "COM1", "x" * 300, "", ".", "..", "b000",
                                   "A B", "naïve", "日本", "A\x00B", "A.", "\ud83d"])  # fmt: skip
def test_other_names_stay_in_the_folder_and_are_short(token):
    name = image_name(token)
    assert len(name) <= 64 and name.endswith(".jpg") and set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-.")
    assert name.count(".") == 1 and name[:-4].split("-")[-1].isalnum()


def test_no_plain_token_can_take_the_name_of_another():
    assert image_name(image_name("a").removesuffix(".jpg").upper()).lower() != image_name("a")


@given(st.lists(st.text(alphabet="aAbB/.\\ cC1-_", max_size=6), unique=True))
def test_no_two_tokens_share_a_name_whatever_the_case(tokens):
    assert len({image_name(token).lower() for token in tokens}) == len(tokens)
