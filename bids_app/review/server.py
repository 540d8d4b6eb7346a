"""Local server of the review: the page, the figures that it shows, and the ratings of one rater.

It needs the extra ``review``. It listens on 127.0.0.1 only. All addresses start with a random token; files other than
the figures of the review, and figures that are links to files outside the output folder, are not served.
"""

from __future__ import annotations

import errno
import json
import secrets
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from bids_app.errors import NeurostormError, TemporaryError, UsageError
from bids_app.files import read_output
from bids_app.outputs.ratings import (
    RATINGS,
    TAGS,
    RatedMeanwhileError,
    Rating,
    hash_figure,
    make_folder,
    ratings_path,
    read_ratings,
    store_rating,
)
from bids_app.review.figures import ReviewFigure, find_review
from bids_app.review.page import FIGURES_URL, figure_version, policy, rating_row, render_page

HOST = "127.0.0.1"
MAX_BODY = 2**16
"""Maximum size of a request, bytes."""
MAX_FIGURE_AGE = 3600
"""Time that the browser may keep a figure, s; the address of a figure that changed is another one."""
MEDIA_TYPES = {".svg": "image/svg+xml", ".png": "image/png", ".jpg": "image/jpeg"}
FIGURE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; font-src data:; sandbox"
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}


def make_app(out_dir: Path, rater: str, token: str) -> Starlette:
    """Make the application.

    Parameters
    ----------
    out_dir : pathlib.Path
        Root of the derivatives.
    rater : str
        Label of the rater.
    token : str
        First part of all addresses.

    Raises
    ------
    NoInputError, BadDataError, CannotCreateError
        There are no figures, the ratings are damaged, or they cannot be written.
    """
    site = _Site(out_dir, rater)
    routes = [
        Route(f"/{token}/", site.page),
        Route(f"/{token}/rate", site.rate, methods=["POST"]),
        Route(f"/{token}/{FIGURES_URL}{{path:path}}", site.figure),
    ]
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"], www_redirect=False)
    app = Starlette(routes=routes, middleware=[hosts])
    app.router.redirect_slashes = False
    return app


def serve(out_dir: Path, rater: str, port: int = 0, ready: Callable[[str], None] = print) -> None:
    """Serve the review until the process is interrupted.

    Parameters
    ----------
    out_dir, rater
        See `make_app`, also for errors.
    port : int
        0: any free port.
    ready : callable
        Receives the address.

    Raises
    ------
    TemporaryError
        The port is in use.
    UsageError
        This user may not listen on this port.
    """
    token = secrets.token_urlsafe(24)
    app = make_app(out_dir, rater, token)
    with listen(port) as listener:
        config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, lifespan="off")
        config.timeout_graceful_shutdown = 5  # s
        ready(f"http://{HOST}:{listener.getsockname()[1]}/{token}/")
        uvicorn.Server(config).run(sockets=[listener])


def listen(port: int) -> socket.socket:
    """Listen on a port of this machine; see `serve`."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        listener.listen(128)
    except (OSError, OverflowError) as error:
        listener.close()
        number = error.errno if isinstance(error, OSError) else None
        if number == errno.EADDRINUSE:
            raise TemporaryError(f"Port {port} is in use.", "Give another --port, or omit it.") from error
        raise UsageError(f"Invalid value for --port: {port} ({error}).", "Use 1024 to 65535, or omit it.") from error
    return listener


class _Site:
    """Figures and ratings of one server. Functions of threads: the table is locked for each change."""

    def __init__(self, out_dir: Path, rater: str) -> None:
        self.out_dir, self.rater = out_dir.resolve(), rater
        self.review = find_review(self.out_dir)
        self.path = ratings_path(self.out_dir, rater)
        make_folder(self.out_dir)
        self.read()

    def read(self) -> dict[str, Rating]:
        """Read the ratings so far."""
        return read_ratings(self.path) if self.path.exists() else {}

    def page(self, request: Request) -> Response:
        """Answer with the page; figures are listed anew, as the participant level may still run."""
        try:
            self.review = find_review(self.out_dir)
            text = render_page(self.review, self.rater, self.read())
        except NeurostormError as error:
            return self._refuse(500, str(error))
        headers = HEADERS | {"Content-Security-Policy": f"{policy()}; frame-ancestors 'none'"}
        return HTMLResponse(text, headers=headers)

    def figure(self, request: Request) -> Response:
        """Answer with a figure of the review."""
        path = request.path_params["path"]
        found = self.review.by_name.get(Path(path).stem)
        content = self._read_figure(found) if found is not None and found.path == path else None
        if content is None:
            return self._refuse(404, "No such figure.")
        keep = f"private, max-age={MAX_FIGURE_AGE}, immutable" if "v" in request.query_params else "no-cache"
        headers = HEADERS | {"Content-Security-Policy": FIGURE_POLICY, "Cache-Control": keep}
        return Response(content, media_type=MEDIA_TYPES[Path(path).suffix], headers=headers)

    def _read_figure(self, figure: ReviewFigure) -> bytes | None:
        """Read a figure; None if it cannot be read, or is a link to a file outside the output folder."""
        try:
            path = (self.out_dir / figure.path).resolve(strict=True)
            return read_output(path) if path.is_relative_to(self.out_dir) else None
        except (OSError, RuntimeError):
            return None

    async def rate(self, request: Request) -> Response:
        """Store a rating, and answer with it."""
        if request.headers.get("content-type", "").partition(";")[0] != "application/json":
            return self._refuse(415, "Not JSON.")
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > MAX_BODY:
                return self._refuse(413, "The request is too large.")
        try:
            rating, replaces, version = self._read_request(json.loads(body))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            return self._refuse(400, f"Not a rating: {error}")
        return await run_in_threadpool(self._store, rating, replaces, version)

    def _read_request(self, content: Any) -> tuple[Rating, str, str]:
        figure, rating, tags, note = (content[name] for name in ("figure", "rating", "tags", "note"))
        if figure not in self.review.by_name:
            raise ValueError(f"no figure {figure!r}")
        if rating not in ("", *RATINGS) or not all(tag in TAGS for tag in tags) or not isinstance(note, str):
            raise ValueError("unknown rating or tag")
        wanted = tuple(tag for tag in TAGS if tag in tags)
        return Rating(figure, rating, wanted, note), str(content["replaces"]), str(content["version"])

    def _store(self, rating: Rating, replaces: str, version: str) -> Response:
        path = self.out_dir / self.review.by_name[rating.figure].path
        if figure_version(path) != version:
            return self._refuse(409, "The figure has changed since it was loaded. Reload the page.")
        rating = replace(rating, figure_hash=hash_figure(path))
        try:
            stored = store_rating(self.out_dir, self.rater, rating, replaces)
        except RatedMeanwhileError as error:
            known = rating_row(error.current) if error.current else None
            return _json({"message": "It was rated in another window meanwhile.", "current": known}, 409)
        except NeurostormError as error:
            return self._refuse(503, str(error))
        return _json({"current": rating_row(stored) if stored else None})

    @staticmethod
    def _refuse(status: int, message: str) -> Response:
        return _json({"message": message}, status)


def _json(content: dict[str, Any], status: int = 200) -> Response:
    return JSONResponse(content, status, headers=HEADERS)
