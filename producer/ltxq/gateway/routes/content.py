"""`/v1/videos/{id}/content`: a clip, its pictures and its sidecar. It redirects to the storage, or
sends the file, with `LTXQ_CONTENT=proxy`.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from ltxq.download_name import content_disposition, download_name
from ltxq.errors import JobNotFinished
from ltxq.gateway.openai.errors import Refused
from ltxq.gateway.openai.openapi import READ, error_responses
from ltxq.gateway.routes.clip_file import ClipFile, Wanted
from ltxq.gateway.routes.ranges import (
    Unsatisfiable,
    asks_for_range,
    is_another,
    is_known,
    wanted_part,
)
from ltxq.gateway.state import AsViewer, Viewer
from ltxq.job import Job
from ltxq.links import FIELDS, Variant

router = APIRouter(tags=["videos"])

TYPES: dict[Variant, tuple[str, str]] = {  # media type, and end of the file's name
    "video": ("video/mp4", ".mp4"),
    "thumbnail": ("image/jpeg", ".jpg"),
    "spritesheet": ("image/jpeg", "-spritesheet.jpg"),
    "sidecar": ("application/json", ".json"),
}
# A browser that opens a link directly shows it in a page of its own, with a player.
_POLICY = "default-src 'none'; media-src 'self'; img-src 'self'; style-src 'unsafe-inline'"
_FILE = {
    kind: {"schema": {"type": "string", "format": "binary"}} for kind in ("video/mp4", "image/jpeg")
} | {"application/json": {"schema": {"type": "object"}}}
_TAG = {"ETag": {"schema": {"type": "string"}}}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    **READ,
    **error_responses(409, 412, 416),
    200: {"description": "The file, from a gateway that proxies.", "content": _FILE},
    206: {
        "description": "The part that `range` asked for.",
        "content": _FILE,
        "headers": {"Content-Range": {"schema": {"type": "string"}}, **_TAG},
    },
    302: {
        "description": "From a gateway that redirects: `location` is the file's URL.",
        "headers": {"Location": {"schema": {"type": "string", "format": "uri"}}},
    },
    304: {"description": "The file is the one that `if-none-match` names.", "headers": _TAG},
}


@router.get("/videos/{video_id}/content", response_class=Response, responses=_RESPONSES)
async def get_video_content(
    video_id: str, request: Request, viewer: AsViewer, variant: Variant = "video"
) -> Response:
    """A finished clip, a picture of it or its sidecar: the file itself, or a redirect to it. A link
    from a video's `url` needs no API key.
    """
    return await _content(video_id, request, viewer, variant)


@router.head("/videos/{video_id}/content", response_class=Response, responses=_RESPONSES)
async def head_video_content(
    video_id: str, request: Request, viewer: AsViewer, variant: Variant = "video"
) -> Response:
    """What a GET would answer, without the file."""
    return await _content(video_id, request, viewer, variant)


async def _content(video_id: str, request: Request, viewer: Viewer, variant: Variant) -> Response:
    job = await viewer.read(video_id, variant)
    if not job.finished:
        raise JobNotFinished(
            f"{video_id} is {job.state}.", hint="Request it again when the status is completed."
        )
    if job.result is None:
        raise Refused(
            404,
            "no_content",
            f"{video_id} is {job.state}: it has no clip.",
            hint="Its error says why.",
        )
    head = request.method == "HEAD"
    if not viewer.gateway.clips.proxies:
        url = getattr(job.result, FIELDS[variant])
        if head:
            url = await viewer.queue.call(viewer.gateway.clips.url_for_head, job, variant) or url
        return RedirectResponse(url, 302, {"cache-control": "no-store"})
    return await _proxied(job, request, viewer, variant)


async def _proxied(job: Job, request: Request, viewer: Viewer, variant: Variant) -> Response:
    assert job.result is not None  # noqa: S101
    clips, head = viewer.gateway.clips, request.method == "HEAD"
    # Every claim has keys of its own, so what is under a key never changes.
    tag = job.result.sha256 if variant == "video" else job.result.key.split("/")[-2]
    etag = f'"{tag}"' if variant == "video" else f'"{tag}-{variant}"'
    kind, suffix = TYPES[variant]
    name = download_name(job.request.prompt, job.result.seed, suffix)
    headers = {
        "content-type": kind,
        "content-disposition": content_disposition(name),
        "accept-ranges": "bytes",
        "etag": etag,
        # A browser asks again each time, since a clip may be deleted; 304 costs little.
        "cache-control": "private, no-cache",
        "content-security-policy": _POLICY,
    }
    if is_another(request.headers, etag):
        raise Refused(412, "precondition_failed", f"This file of {job.id} does not match if-match.")
    if is_known(request.headers, etag):
        # With all headers: a browser puts them in place of those it kept, the policy too.
        return Response(status_code=304, headers=headers)
    size = job.result.size if variant == "video" else None
    part = None
    if not head and asks_for_range(request.headers):
        total = size if size is not None else await clips.size(job, variant)
        try:
            part = wanted_part(request.headers, etag, total)
        except Unsatisfiable:
            raise Refused(
                416,
                "range_not_satisfiable",
                f"The file has {total} bytes.",
                headers={"content-range": f"bytes */{total}"},
            ) from None
    url = await clips.sign(job, variant, head=head)
    wanted = Wanted(url, head, part, size, job.id)
    return ClipFile(wanted, headers, clips=clips, rates=viewer.gateway.rates, owner=job.owner)
