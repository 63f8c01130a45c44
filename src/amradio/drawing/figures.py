"""Pictures inside HTML: titles below them, which screen readers read out in their place."""

import base64
import html
import io

from PIL import Image


def figure(picture: Image.Image, title: str) -> str:
    """`<figure>` with the picture as a PNG inside the page, so that it needs no file and no network."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    data, shown = base64.b64encode(buffer.getvalue()).decode("ascii"), html.escape(title)
    return f'<figure><img alt="{shown}" src="data:image/png;base64,{data}"><figcaption>{shown}</figcaption></figure>'
