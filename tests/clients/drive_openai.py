"""OpenAI's SDK with its defaults. Arguments: the router's address; the token is in OPENAI_API_KEY. Prints JSON."""

import json
import os
import sys
from typing import Literal

import openai
from openai import OpenAI
from pydantic import BaseModel

URL = sys.argv[1]
TALK = [{"role": "user", "content": "What is owed?"}]


class Finding(BaseModel):
    kind: Literal["report", "audit"]
    urgent: bool


def status_of(error_type, call):
    try:
        call()
    except error_type as error:
        return {"status": error.status_code, "code": error.code, "type": error.type, "id": error.request_id}
    raise AssertionError(f"no {error_type.__name__}")


client = OpenAI(base_url=f"{URL}/v1", max_retries=0)
chat = client.chat.completions
whole = chat.create(model="compliance", messages=TALK, max_tokens=12, user="user-1")
chunks = list(chat.create(model="compliance", messages=TALK, max_tokens=12, stream=True, seed=1))
counted = list(
    chat.create(model="compliance", messages=TALK, max_tokens=12, stream=True, stream_options={"include_usage": True})
)
several = chat.create(model="compliance", messages=TALK, max_tokens=5, n=3, logprobs=True, top_logprobs=2)
echoed = client.completions.create(model="compliance", prompt=["one", "two"], max_tokens=0, echo=True, logprobs=1)
parsed = chat.parse(model="compliance", messages=TALK, response_format=Finding)
tools = [openai.pydantic_function_tool(Finding)]
called = chat.create(model="compliance", messages=TALK, tools=tools, tool_choice="required", parallel_tool_calls=False)
with client.chat.completions.stream(model="compliance", messages=TALK, tools=tools, tool_choice="required") as stream:
    finished = stream.get_final_completion()
stranger = client.with_options(api_key="ah_0_0")
reader = client.with_options(api_key=os.environ["READ_TOKEN"])
hasty = client.with_options(timeout=0.4, max_retries=2)
long_answer = {"max_tokens": 900, "extra_body": {"ignore_eos": True}}
try:
    hasty.chat.completions.create(model="compliance", messages=TALK, **long_answer)
    left = False
except openai.APITimeoutError:
    left = True
json.dump(
    {
        "models": [[model.id, model.created] for model in client.models.list()],
        "model": client.models.retrieve("compliance").id,
        "id": whole._request_id,
        "whole": [whole.choices[0].message.content, whole.usage.completion_tokens],
        "stream": [chunk.usage is None and bool(chunk.choices) for chunk in chunks],
        "counted": counted[-1].usage.completion_tokens,
        "several": [len(choice.logprobs.content) for choice in several.choices],
        "echoed": [[choice.text, choice.logprobs.token_logprobs] for choice in echoed.choices],
        "parsed": parsed.choices[0].message.parsed.model_dump(),
        "called": [json.loads(call.function.arguments) for call in called.choices[0].message.tool_calls],
        "streamed_calls": len(finished.choices[0].message.tool_calls),
        "left": left,
        "errors": {
            "stranger": status_of(openai.AuthenticationError, lambda: stranger.models.list()),
            "reader": status_of(openai.PermissionDeniedError, lambda: reader.models.list()),
            "unknown": status_of(openai.NotFoundError, lambda: chat.create(model="nothing", messages=TALK)),
            "long": status_of(
                openai.BadRequestError, lambda: chat.create(model="compliance", messages=TALK, max_tokens=100_000)
            ),
            "responses": status_of(
                openai.NotFoundError, lambda: client.responses.create(model="compliance", input="hello")
            ),
        },
    },
    sys.stdout,
)
