"""`/metrics` for Prometheus, beside the endpoints of clients.

It says how much the server is used, which is no client's business: it takes a key with the scope `metrics`. On a server
that listens on loopback and asks for no keys, whoever comes from this machine, and not through a proxy, is let in too.
`metrics_port` serves the same on a port of its own.
"""

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import Response

from idefics_chat.server.auth import check_host, check_origin, is_loopback, may_see_metrics, presented_key
from idefics_chat.server.errors import ApiError
from idefics_chat.server.state import ServerState

FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip", "via")

router = APIRouter(tags=["operations"])


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """All numbers, in Prometheus' text format."""
    state: ServerState = request.app.state.server
    await _check(request, state)
    return Response(generate_latest(state.metrics.registry), media_type=CONTENT_TYPE_LATEST)


async def _check(request: Request, state: ServerState) -> None:
    """Raises ApiError `invalid_api_key`, `forbidden_origin`, `model_not_loaded`."""
    check_host(request.headers, state.settings.host, state.settings.allowed_hosts)
    check_origin(request.headers, state.settings.allowed_origins)
    if _from_this_machine(request, state):
        return
    key = presented_key(request.headers)
    if key is None or not await may_see_metrics(state.ready().store, key):
        message = "The metrics need a key with their scope: idefics-chat keys create NAME --scope metrics."
        raise ApiError("invalid_api_key", message)


def _from_this_machine(request: Request, state: ServerState) -> bool:
    settings = state.settings
    open_here = is_loopback(settings.host) and not settings.require_key
    direct = request.client is not None and is_loopback(request.client.host)
    return open_here and direct and not any(name in request.headers for name in FORWARDED)
