"""Pictures that the shipped model knows, drawn on the spot. There are no tests here."""

import io
from pathlib import Path

from PIL import Image, ImageDraw

SIZE = 224
LOW, HIGH = round(0.32 * SIZE), round(0.68 * SIZE)


def draw(colour: str, shape: str, background: str = "white") -> Image.Image:
    """One circle, square or triangle in the middle."""
    image = Image.new("RGB", (SIZE, SIZE), background)
    canvas = ImageDraw.Draw(image)
    match shape:
        case "circle":
            canvas.ellipse((LOW, LOW, HIGH, HIGH), fill=colour)
        case "square":
            canvas.rectangle((LOW, LOW, HIGH, HIGH), fill=colour)
        case "triangle":
            canvas.polygon([(SIZE // 2, LOW), (LOW, HIGH), (HIGH, HIGH)], fill=colour)
        case other:
            raise ValueError(other)
    return image


def png(image: Image.Image) -> bytes:
    """The image as a file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def save_pictures(folder: Path) -> None:
    """photo.png (a red circle), square.png (blue), triangle.png (green on black), bad.png (no image)."""
    draw("red", "circle").save(folder / "photo.png")
    draw("blue", "square").save(folder / "square.png")
    draw("green", "triangle", "black").save(folder / "triangle.png")
    (folder / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
