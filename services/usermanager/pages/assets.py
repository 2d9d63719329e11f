"""Style sheets, scripts and images: read once, compressed once, and kept by browsers for good.

    /assets/3f0c9a1b2c4d/css/base.css

The second part is made of the contents of all of them. So a browser never asks again for what it
has, and never mixes files of two versions, also where one script imports another by its relative
path. Under another version, which a page of an earlier start asks for, it gets what there is now.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from services.core.errors import FixRequest

root_path: Final = "/assets"
year_s: Final = 365 * 86_400
# Of a hash: enough to tell any two versions apart.
version_chars: Final = 12

media_types: Final[Mapping[str, str]] = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".woff2": "font/woff2",
}
_compressible: Final = frozenset((".css", ".js", ".svg"))


def web_directory() -> Path:
    """Where templates and assets lie: a package beside this one, installed with it."""
    return Path(str(resources.files("web")))


@dataclass(slots=True, frozen=True)
class Asset:
    content: bytes
    # The same by gzip, where that is shorter.
    gzipped: bytes | None
    media_type: str


class Assets:
    def __init__(self, directory: Path) -> None:
        self._assets = dict(_read(directory))
        digest = hashlib.sha256()
        for path, asset in sorted(self._assets.items()):
            digest.update(f"{path}\0{len(asset.content)}\0".encode())
            digest.update(asset.content)
        self.version: Final = digest.hexdigest()[:version_chars]

    def url(self, path: str) -> str:
        """Where a file is, by its path below `static`; KeyError if there is none."""
        return f"{root_path}/{self.version}/{path}" if self._assets[path] else ""

    def routes(self) -> list[BaseRoute]:
        return [
            Route(f"{root_path}/{{version}}/{{path:path}}", self._answer),
            # Asked for where a browser shows what is no page of ours, such as JSON.
            Route("/favicon.ico", self._icon),
        ]

    async def _answer(self, request: Request) -> Response:
        asset = self._assets.get(request.path_params["path"])
        if asset is None:
            raise FixRequest("not_found", "There is no such file")
        is_current = request.path_params["version"] == self.version
        headers = {
            "Cache-Control": f"public, max-age={year_s}, immutable" if is_current else "no-cache",
            "Vary": "Accept-Encoding",
            "X-Content-Type-Options": "nosniff",
            "Cross-Origin-Resource-Policy": "same-origin",
            # An image may be looked at by itself, and may be SVG.
            "Content-Security-Policy": "default-src 'none'",
        }
        content = asset.content
        if asset.gzipped is not None and "gzip" in request.headers.get("accept-encoding", ""):
            content = asset.gzipped
            headers["Content-Encoding"] = "gzip"
        return Response(content, headers=headers, media_type=asset.media_type)

    async def _icon(self, _: Request) -> Response:
        return RedirectResponse(self.url("img/mark.svg"), headers={"Cache-Control": "no-cache"})


def _read(directory: Path) -> Iterator[tuple[str, Asset]]:
    for path in directory.rglob("*"):
        media_type = media_types.get(path.suffix)
        if media_type is not None and path.is_file():
            content = path.read_bytes()
            gzipped = gzip.compress(content, mtime=0) if path.suffix in _compressible else None
            if gzipped is not None and len(gzipped) >= len(content):
                gzipped = None
            yield path.relative_to(directory).as_posix(), Asset(content, gzipped, media_type)
