"""Serves the page to this machine alone: bound to 127.0.0.1, with a policy under which a browser loads nothing from elsewhere."""

import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.middleware.trustedhost import TrustedHostMiddleware

from ..errors import UserError

HOST = "127.0.0.1"
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


def bind(port: int) -> socket.socket:
    """A socket on this machine alone; port 0 takes any that is free. Raises UserError where it is taken."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
    except (OSError, OverflowError) as error:
        listening.close()
        reason = error.strerror.lower() if isinstance(error, OSError) and error.strerror else "no such port"
        raise UserError(f"--port: {port} cannot be used ({reason}); give another one, or 0 for any that is free") from None
    return listening


def make_server(page: gr.Blocks) -> uvicorn.Server:
    """A server of the page, to be run with a socket of `bind`."""
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
        theme=gr.themes.Default(font=FONTS, font_mono=["ui-monospace", "monospace"]),
    )
    return uvicorn.Server(uvicorn.Config(app, host=HOST, log_level="error", timeout_graceful_shutdown=1))
