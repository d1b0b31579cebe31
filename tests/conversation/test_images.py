"""Images from strangers: what is refused, and what the model sees of what is accepted."""

import hashlib
import io
import random
import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from idefics_chat.conversation.errors import ImageError, ImageTooLarge, InvalidImage
from idefics_chat.conversation.images import FORMATS, ImageLimits, check_image, decode_image

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def encode(image: Image.Image, format_name: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims any size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


@pytest.mark.parametrize("format_name", FORMATS)
def test_every_allowed_format_is_accepted_and_described(format_name: str) -> None:
    data = encode(Image.new("RGB", (12, 7), RED), format_name)
    checked = check_image(data)
    assert (checked.width, checked.height) == (12, 7)
    assert checked.media_type == FORMATS[format_name]
    assert checked.digest == hashlib.sha256(data).hexdigest()
    assert checked.data == data


@pytest.mark.parametrize("format_name", ["TIFF", "PPM", "ICO", "PCX"])
def test_a_format_off_the_list_is_refused_though_pillow_could_read_it(format_name: str) -> None:
    with pytest.raises(InvalidImage) as error:
        check_image(encode(Image.new("RGB", (32, 32), RED), format_name))
    assert error.value.code == "invalid_image"
    assert "PNG" in str(error.value)


@pytest.mark.parametrize(
    "data", [b"", b"not an image", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"\x89PNG\r\n\x1a\n"]
)
def test_bytes_that_are_no_image_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidImage):
        check_image(data)


def test_twenty_thousand_by_twenty_thousand_pixels_in_two_kilobytes_are_refused_before_decoding() -> None:
    data = png_claiming(20_000, 20_000)
    assert len(data) < 2_000
    with pytest.raises(ImageTooLarge) as error:
        check_image(data)
    assert error.value.code == "image_too_large"
    assert error.value.actual == 400_000_000


def test_the_pixel_limit_is_exact() -> None:
    data = encode(Image.new("RGB", (10, 10)))
    check_image(data, ImageLimits(max_pixels=100))
    with pytest.raises(ImageTooLarge):
        check_image(data, ImageLimits(max_pixels=99))


def test_the_byte_limit_is_exact() -> None:
    data = encode(Image.new("RGB", (10, 10)))
    check_image(data, ImageLimits(max_bytes=len(data)))
    with pytest.raises(ImageTooLarge, match="bytes"):
        check_image(data, ImageLimits(max_bytes=len(data) - 1))


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_a_truncated_file_is_refused(format_name: str) -> None:
    noise = Image.frombytes("RGB", (64, 64), random.Random(1).randbytes(64 * 64 * 3))
    data = encode(noise, format_name)
    with pytest.raises(InvalidImage):
        check_image(data[: len(data) * 2 // 3])


def test_an_image_too_thin_to_be_seen_is_refused() -> None:
    with pytest.raises(InvalidImage, match="thin"):
        check_image(encode(Image.new("RGB", (2010, 10))))


def test_exif_orientation_turns_the_image_upright() -> None:
    image = Image.new("RGB", (40, 20), RED)
    image.paste(BLUE, (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to see it upright
    data = encode(image, "JPEG", exif=exif, quality=95)
    assert check_image(data).width == 20
    upright = decode_image(data)
    assert upright.size == (20, 40)
    assert near(upright.getpixel((10, 5)), BLUE)
    assert near(upright.getpixel((10, 35)), RED)


def near(pixel: object, colour: tuple[int, int, int]) -> bool:
    assert isinstance(pixel, tuple)
    return all(abs(a - b) < 12 for a, b in zip(pixel, colour, strict=True))


def test_transparency_is_laid_over_white() -> None:
    image = Image.new("RGBA", (4, 4), (0, 0, 255, 0))
    image.putpixel((0, 0), (0, 0, 255, 255))
    seen = decode_image(encode(image))
    assert seen.getpixel((0, 0)) == BLUE
    assert seen.getpixel((1, 1)) == WHITE


def test_a_palette_with_a_transparent_colour_is_laid_over_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    seen = decode_image(encode(image, transparency=0))
    assert seen.getpixel((0, 0)) == WHITE
    assert seen.getpixel((1, 0)) == BLUE


def test_an_animation_shows_its_first_frame() -> None:
    frames = [Image.new("RGB", (6, 6), RED), Image.new("RGB", (6, 6), BLUE)]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(data).getpixel((3, 3)) == RED


def test_cmyk_and_sixteen_bit_grey_and_bilevel_become_rgb() -> None:
    assert decode_image(encode(Image.new("CMYK", (4, 4), (0, 0, 0, 0)), "JPEG")).getpixel((1, 1)) == WHITE
    grey = Image.new("I;16", (4, 4), 0x8080)
    assert near(decode_image(encode(grey)).getpixel((1, 1)), (128, 128, 128))
    assert decode_image(encode(Image.new("1", (4, 4), 1))).getpixel((1, 1)) == WHITE


@given(st.binary(max_size=300))
def test_any_bytes_are_accepted_or_refused_with_a_code_and_a_sentence(data: bytes) -> None:
    assert_checked_or_refused(data)


@settings(max_examples=200)
@given(st.sampled_from(list(FORMATS)), st.data())
def test_a_damaged_file_is_accepted_or_refused_with_a_code_and_a_sentence(
    format_name: str, data: st.DataObject
) -> None:
    body = bytearray(encode(Image.frombytes("RGB", (16, 16), random.Random(2).randbytes(768)), format_name))
    for _ in range(data.draw(st.integers(1, 8))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    assert_checked_or_refused(bytes(body))


def assert_checked_or_refused(data: bytes) -> None:
    try:
        checked = check_image(data, ImageLimits(max_pixels=10_000))
    except ImageError as error:
        assert error.code in ("invalid_image", "image_too_large")
        assert str(error).endswith(".") or str(error).endswith("smaller.")
    else:
        assert decode_image(data).size == (checked.width, checked.height)
