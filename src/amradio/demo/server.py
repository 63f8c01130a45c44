"""Serves the page to this machine alone: bound to 127.0.0.1, with a policy under which a browser loads nothing from elsewhere."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI
from gradio.themes import Default
from starlette.middleware.trustedhost import TrustedHostMiddleware

from .address import HOST
from .page import STYLE

LARGEST_UPLOAD = "50mb"
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; frame-ancestors 'none'"
)
"""Scripts of the page are inline and compiled at run time, as gradio's frontend is made; none comes from another host."""
FONTS = ["system-ui", "sans-serif"]
WAITING = 16
"""Questions that may wait for an answer; further ones are refused."""

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class _WithPolicy:
    """Adds `Content-Security-Policy` to every answer (ASGI)."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Send) -> None:
        async def with_policy(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"content-security-policy", POLICY.encode())]
            await send(message)

        await self.app(scope, receive, with_policy)


def make_server(page: gr.Blocks) -> uvicorn.Server:
    """A server of the page, to be run with a socket of `address.bind`."""
    app = FastAPI(openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])  # a page of another host cannot ask under its name
    app.add_middleware(_WithPolicy)
    page.queue(max_size=WAITING)
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        server_name=HOST,
        footer_links=[],
        show_error=True,
        max_file_size=LARGEST_UPLOAD,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        css=STYLE,
        theme=Default(font=FONTS, font_mono=["ui-monospace", "monospace"]),
    )
    return uvicorn.Server(uvicorn.Config(app, host=HOST, log_level="error", timeout_graceful_shutdown=1))
