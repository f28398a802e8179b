"""A scripted engine that answers in vLLM 0.32's words: LoRA endpoints, models, completions, streams."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

BASE = "tiny"
MAX_RANK = 64
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
CORE_DIED = "EngineCore encountered an issue. See stack trace (above) for the root cause."


def error(status: int, kind: str, message: str, param: str | None = None) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": kind, "param": param, "code": status}}, status)


class FakeEngine:
    """What happens is scripted by attributes.

    `adapters` name -> path; `folders` path -> rank of the adapter there; `script` answers that the next completions get
    instead; `gate` closed holds every completion (a stream after its first chunk); `breaks` cuts a stream there;
    `words` model -> the texts of its chunks; `counts` of tokens come at the end of streams when `asked`, `never`, are
    `refused` to who asks, or come `inline`, in each chunk.
    """

    def __init__(self, *adapters: str) -> None:
        self.adapters = {name: f"/served/{name}" for name in adapters}
        self.folders: dict[str, int] = {}
        self.script: deque[Response] = deque()
        self.received: list[tuple[dict[str, Any], dict[str, str]]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.breaks = False
        self.embeds = self.responds = False
        self.words: dict[str, list[str]] = {}
        self.counts = "asked"
        self.max_length: Any = 512
        self.is_healthy = True
        self.base = BASE

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/health", self.health),
                Route("/version", self.version),
                Route("/v1/models", self.models),
                Route("/v1/load_lora_adapter", self.load, methods=["POST"]),
                Route("/v1/unload_lora_adapter", self.unload, methods=["POST"]),
                Route("/v1/completions", self.complete, methods=["POST"]),
                Route("/v1/chat/completions", self.complete, methods=["POST"]),
                Route("/v1/embeddings", self.embed, methods=["POST"]),
                Route("/v1/responses", self.respond, methods=["POST"]),
            ]
        )

    async def health(self, request: Request) -> Response:
        return Response(status_code=200 if self.is_healthy else 503)

    async def version(self, request: Request) -> Response:
        return JSONResponse({"version": "0.32.0"})

    async def models(self, request: Request) -> Response:
        base = {"id": self.base, "object": "model", "owned_by": "vllm", "root": "models/tiny", "parent": None}
        rows = [{**base, "max_model_len": self.max_length}]
        for name, path in self.adapters.items():
            rows.append({"id": name, "object": "model", "owned_by": "vllm", "root": path, "parent": BASE})
        return JSONResponse({"object": "list", "data": rows})

    async def load(self, request: Request) -> Response:
        body = await request.json()
        name, path = body["lora_name"], body["lora_path"]
        if not self.is_healthy:
            return error(500, "InternalServerError", CORE_DIED)
        if name in self.adapters:
            text = f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set "
            return error(400, "InvalidUserInput", text + "'load_inplace' to True.")
        if path not in self.folders:
            return error(404, "NotFoundError", f"Loading lora {name} failed: No adapter found for <path>")
        if self.folders[path] > MAX_RANK:
            reason = f"LoRA rank {self.folders[path]} is greater than max_lora_rank {MAX_RANK}."
            text = f"Call to add_lora method failed: Worker failed with error '{reason}', please check the stack trace "
            return error(500, "InternalServerError", text + "above for the root cause")
        self.adapters[name] = path
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    async def unload(self, request: Request) -> Response:
        name = (await request.json())["lora_name"]
        if self.adapters.pop(name, None) is None:
            return error(404, "NotFoundError", f"The lora adapter '{name}' cannot be found.")
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        self.received.append((body, dict(request.headers)))
        if self.script:
            return self.script.popleft()
        if body["model"] not in (BASE, *self.adapters):
            text = f"The model `{body['model']}` does not exist. Valid aliases: {BASE}."
            return error(404, "NotFoundError", text, "model")
        wants_counts = bool((body.get("stream_options") or {}).get("include_usage"))
        if wants_counts and self.counts == "refused":
            return error(400, "BadRequestError", "Unknown field: stream_options", "stream_options")
        if body.get("stream"):
            is_chat = request.url.path.endswith("/chat/completions")
            return StreamingResponse(self.chunks(body["model"], wants_counts, is_chat), media_type="text/event-stream")
        await self.opened()
        choice = {"index": 0, "text": " two words", "logprobs": None, "finish_reason": "length"}
        answer = {"id": "cmpl-1", "object": "text_completion", "model": body["model"], "choices": [choice]}
        return JSONResponse(answer | {"usage": USAGE})

    async def embed(self, request: Request) -> Response:
        """A generating vLLM has no such route, and says so in other words than of a model that it lacks."""
        body = await request.json()
        if not self.embeds:
            return error(404, "Not Found", "Not Found")
        self.received.append((body, dict(request.headers)))
        if body["model"] not in (BASE, *self.adapters):
            return error(404, "NotFoundError", f"The model `{body['model']}` does not exist.", "model")
        rows = [{"object": "embedding", "index": 0, "embedding": [0.5, -0.5]}]
        usage = {"prompt_tokens": 3, "total_tokens": 3}
        return JSONResponse({"object": "list", "data": rows, "model": body["model"], "usage": usage})

    async def respond(self, request: Request) -> Response:
        """As vLLM writes responses, whole and as events."""
        body = await request.json()
        if not self.responds:
            return error(404, "Not Found", "Not Found")
        self.received.append((body, dict(request.headers)))
        if self.script:
            return self.script.popleft()
        text = "".join(self.words.get(body["model"], [" two", " words"]))
        usage = {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}
        message = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}
        whole = {"id": "resp_1", "object": "response", "model": body["model"], "output": [message], "usage": usage}
        if not body.get("stream"):
            return JSONResponse(whole)
        parts = [
            {"type": "response.output_text.delta", "delta": text},
            {"type": "response.completed", "response": whole},
        ]
        events = (f"event: {part['type']}\n{event(part)}" for part in parts)
        return StreamingResponse(events, media_type="text/event-stream")

    async def chunks(self, model: str, wants_counts: bool, is_chat: bool) -> AsyncIterator[str]:
        words = self.words.get(model, [" two", " words"])
        usage = USAGE | {"completion_tokens": len(words)}
        counts = {"usage": usage} if self.counts == "inline" else {}
        for number, word in enumerate(words):
            ends = {"finish_reason": "length" if number == len(words) - 1 else None}
            part = {"delta": {"content": word}} if is_chat else {"text": word}
            yield event({"model": model, "choices": [{"index": 0, **part, **ends}], **counts})
            if number == 0:
                await self.opened()
                if self.breaks:
                    raise ConnectionResetError("scripted")
        if wants_counts and self.counts == "asked":
            yield event({"model": model, "choices": [], "usage": usage})
        yield "data: [DONE]\n\n"

    async def opened(self) -> None:
        await asyncio.to_thread(self.gate.wait, 10)


def event(chunk: dict[str, Any]) -> str:
    return f"data: {json.dumps(chunk)}\n\n"
