"""Routes of the engine's HTTP application."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import orjson
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from serving_client.engine.api.metrics import metrics_text
from serving_client.engine.api.response_bodies import (
    VERSION,
    ChatFormat,
    CompletionFormat,
    Format,
    Json,
    Options,
    in_order,
    new_id,
)
from serving_client.engine.api.token_texts import TokenTexts
from serving_client.engine.completion_request import CompletionRequest, parse_chat, parse_completion, parse_json
from serving_client.engine.engine import Answer, Engine
from serving_client.engine.errors import ApiError, invalid_input, missing_field

MAX_BODY_BYTES = 8 * 2**20
# The status that web servers log for a client that went away; nobody reads this answer.
CLIENT_CLOSED = 499
Form = TypeVar("Form", bound=Format)


def create_app(engine: Engine) -> Starlette:
    """Create the application of an engine; the engine's thread starts and ends with the application."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        engine.loop.start()
        yield
        await run_in_threadpool(engine.loop.close)

    app = Starlette(routes=ROUTES, lifespan=lifespan, exception_handlers={ApiError: _answer_error})
    app.state.engine = engine
    app.state.texts = TokenTexts(engine.base.tokenizer.backend_tokenizer)
    return app


def _engine(request: Request) -> Engine:
    engine: Engine = request.app.state.engine
    return engine


def _json(body: Json, status: int = 200) -> Response:
    return Response(orjson.dumps(body), status, media_type="application/json")


async def _answer_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)  # noqa: S101 - Starlette calls this for nothing else
    return _json(error.body(), error.status)


async def health(request: Request) -> Response:
    """Answer 200 while the engine's thread lives, else 503."""
    return Response(status_code=200 if _engine(request).loop.is_alive else 503)


async def version(_: Request) -> Response:
    """Return the engine's name and version."""
    return _json({"version": VERSION, "engine": "adapterhub-embedded"})


async def metrics(request: Request) -> Response:
    """Answer with Prometheus metrics as text."""
    return PlainTextResponse(metrics_text(_engine(request)), media_type="text/plain; version=0.0.4")


async def models(request: Request) -> Response:
    """List the base model and all loaded adapters, with the path that each was loaded from."""
    engine = _engine(request)
    cards = [_card(engine.name, engine.base.folder, None, engine.base.max_length)]
    cards += [_card(entry.name, entry.path, engine.name, None) for entry in engine.adapters.registered()]
    return _json({"object": "list", "data": cards})


def _card(name: str, root: str, parent: str | None, max_length: int | None) -> Json:
    card = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "adapterhub"}
    return {**card, "root": root, "parent": parent, "max_model_len": max_length, "permission": []}


async def load_lora_adapter(request: Request) -> Response:
    """Load the adapter folder `lora_path` as `lora_name`; with `load_inplace` it may replace one of that name.

    Raises ApiError, with vLLM's status and text, for a missing field, a taken name or a folder that cannot be served.
    """
    body = await _lora_body(request, "lora_name", "lora_path")
    name, path = body["lora_name"], body["lora_path"]
    if not name or not path:
        raise invalid_input("Both 'lora_name' and 'lora_path' must be provided.")
    await run_in_threadpool(_engine(request).adapters.load, name, path, replace=body.get("load_inplace") is True)
    return Response(f"Success: LoRA adapter '{name}' added successfully.")


async def unload_lora_adapter(request: Request) -> Response:
    """Unload an adapter; its running requests finish with it. Raises ApiError 404 for an unknown name."""
    name = (await _lora_body(request, "lora_name"))["lora_name"]
    if not name:
        raise invalid_input("'lora_name' needs to be provided to unload a LoRA adapter.")
    _engine(request).adapters.unload(name)
    return Response(f"Success: LoRA adapter '{name}' removed successfully.")


async def _body(request: Request) -> bytes:
    """Read the body, counting its size while it arrives. Raises ApiError 413."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BODY_BYTES:
            raise ApiError(413, "Content Too Large", f"The body is over {MAX_BODY_BYTES >> 20} MB.")
        parts.append(part)
    return b"".join(parts)


async def _lora_body(request: Request, *fields: str) -> dict[str, Any]:
    body = parse_json(await _body(request))
    for field in fields:
        if field not in body:
            raise missing_field(field, len(body))
        if not isinstance(body[field], str):
            raise ApiError(400, "Bad Request", f"'{field}' must be a string.", f"body.{field}")
    return body


async def completions(request: Request) -> Response:
    """Complete one or several prompts, in one answer or as a stream of server-sent events.

    Raises ApiError for a request that cannot be served; an error after the start of a stream is sent as an event.
    """
    parsed = parse_completion(parse_json(await _body(request)))
    answer = await _engine(request).begin(parsed)
    form = _format(CompletionFormat, request, parsed, answer, "cmpl")
    return await _respond(request, parsed, answer, form)


async def chat_completions(request: Request) -> Response:
    """Answer a conversation, in one answer or as a stream of server-sent events.

    Raises ApiError for a request that cannot be served; an error after the start of a stream is sent as an event.
    """
    parsed = parse_chat(parse_json(await _body(request)))
    answer = await _engine(request).begin(parsed)
    form = _format(ChatFormat, request, parsed, answer, "chatcmpl")
    return await _respond(request, parsed, answer, form)


def _format(kind: type[Form], request: Request, parsed: CompletionRequest, answer: Answer, prefix: str) -> Form:
    echoes = _engine(request).texts_of(parsed.prompt) if parsed.echo else ()
    options = Options(
        parsed.return_token_ids,
        parsed.alternatives is not None,
        parsed.prompt_logprobs is not None,
        tuple(echoes),
        parsed.is_echo_only,
        parsed.tool_use,
    )
    texts: TokenTexts = request.app.state.texts
    return kind(answer.model, answer.prompts, answer.count, options, texts, new_id(prefix))


async def _respond(request: Request, parsed: CompletionRequest, answer: Answer, form: Format) -> Response:
    if parsed.stream:
        return StreamingResponse(_events(parsed, answer, form), media_type="text/event-stream")
    whole = asyncio.ensure_future(_whole(answer, form))
    disconnected = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((whole, disconnected), return_when=asyncio.FIRST_COMPLETED)
        return _json(whole.result()) if whole.done() else Response(status_code=CLIENT_CLOSED)
    finally:
        answer.cancel()
        whole.cancel()
        disconnected.cancel()


async def _whole(answer: Answer, form: Format) -> Json:
    return form.whole(in_order([delta async for delta in answer.deltas()]))


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events(parsed: CompletionRequest, answer: Answer, form: Format) -> AsyncIterator[bytes]:
    count, begun = 0, set[int]()
    shows_all = parsed.return_token_ids or parsed.alternatives is not None
    try:
        async for delta in answer.deltas():
            count += len(delta.token_ids)
            is_first = delta.index not in begun
            begun.add(delta.index)
            if delta.text or delta.is_last or shows_all or is_first:
                for chunk in form.chunks(delta, is_first=is_first):
                    yield _event(chunk)
        if parsed.include_usage:
            yield _event(form.usage_chunk(count))
    except ApiError as error:
        yield _event(error.body())
    finally:
        answer.cancel()
    yield b"data: [DONE]\n\n"


def _event(chunk: Json) -> bytes:
    return b"data: " + orjson.dumps(chunk) + b"\n\n"


ROUTES = [
    Route("/health", health),
    Route("/version", version),
    Route("/metrics", metrics),
    Route("/v1/models", models),
    Route("/v1/load_lora_adapter", load_lora_adapter, methods=["POST"]),
    Route("/v1/unload_lora_adapter", unload_lora_adapter, methods=["POST"]),
    Route("/v1/completions", completions, methods=["POST"]),
    Route("/v1/chat/completions", chat_completions, methods=["POST"]),
]
