"""Images as PNG, which loses nothing."""

from __future__ import annotations

import io

from PIL import Image
from torch import Tensor


def encode_png(image: Tensor) -> bytes:
    """Return the file content of one image, uint8 (C, H, W) with C = 1 (grey) or 3 (RGB)."""
    pixels = image.permute(1, 2, 0)
    picture = Image.fromarray((pixels[..., 0] if len(image) == 1 else pixels).numpy())
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
