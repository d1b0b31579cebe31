"""The web application: endpoints and handshakes. All that happens in them happens elsewhere."""

from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from starlette.middleware.cors import CORSMiddleware

from idefics_chat.server import (
    http_chat_completions,
    http_conversations,
    http_documents,
    http_files,
    http_metrics,
    http_models,
    http_responses,
    http_task_batches,
    http_tasks,
    websocket_routes,
)
from idefics_chat.server.errors import as_api_error
from idefics_chat.server.front import LIMIT_HEADERS, Front
from idefics_chat.server.http_errors import install_error_answers, refusal
from idefics_chat.server.openapi_document import serve_openapi
from idefics_chat.server.settings import Settings
from idefics_chat.server.state import ServerState

ROUTERS = (
    http_metrics.router,
    http_models.router,
    http_responses.router,
    http_conversations.router,
    http_documents.router,
    http_files.router,
    http_chat_completions.router,
    http_task_batches.router,
    http_tasks.router,
    websocket_routes.router,
)


OWN_TELEMETRY: Any = {"tracing": False, "metrics": False, "logs": False}
"""The framework's own spans would hold query strings, with what users search for; ours are in `tracing`."""


def create_app(state: ServerState) -> FastAPI:
    """The application over a state that may become ready later."""
    app = FastAPI(title="idefics-chat", docs_url=None, redoc_url=None, telemetry=OWN_TELEMETRY)
    app.state.server = state
    _allow_pages(app, state.settings)
    install_error_answers(app)
    for router in ROUTERS:
        app.include_router(router)
    app.add_middleware(Front, state=state)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> JSONResponse:
        """The model is loaded and the database can be written."""
        try:
            await state.ready().chat.check_ready()
        except Exception as error:  # noqa: BLE001  whatever is wrong, the answer is "not ready, because"
            return refusal(as_api_error(error), 503)
        return JSONResponse({"status": "ready"})

    serve_openapi(app)
    return app


def _allow_pages(app: FastAPI, settings: Settings) -> None:
    """Tell browsers that the pages of the allowed origins may read our answers."""
    if settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.allowed_origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after", *LIMIT_HEADERS],
        )
