"""LiteLLM as a library, with its provider `openai`. Arguments: the router's address. Prints JSON."""

import json
import sys

import litellm

litellm.telemetry = False
TALK = [{"role": "user", "content": "What is owed?"}]
SCHEMA = {
    "type": "object",
    "properties": {"urgent": {"type": "boolean"}},
    "required": ["urgent"],
    "additionalProperties": False,
}
common = {"model": "openai/compliance", "api_base": f"{sys.argv[1]}/v1", "messages": TALK, "num_retries": 0}
whole = litellm.completion(**common, max_tokens=12, user="user-1")
parts = list(litellm.completion(**common, max_tokens=12, stream=True))
form = {"type": "json_schema", "json_schema": {"name": "finding", "schema": SCHEMA, "strict": True}}
formed = litellm.completion(**common, response_format=form)
try:
    litellm.completion(**{**common, "model": "openai/nothing"})
    unknown = None
except litellm.NotFoundError as error:
    unknown = error.status_code
chosen = {"max_completion_tokens": 6, "seed": 7, "temperature": 1.3, "user": "user-1", "metadata": {"a": "b"}}
several = litellm.completion(**common, **chosen, n=2, stop=["\n"], logprobs=True, top_logprobs=2)
same = [litellm.completion(**common, **chosen).choices[0].message.content for _ in range(2)]
counted = list(litellm.completion(**common, max_tokens=4, stream=True, stream_options={"include_usage": True}))
tool = {"type": "function", "function": {"name": "look_up", "parameters": SCHEMA}}
calls = {"tools": [tool], "tool_choice": "required", "parallel_tool_calls": False}
called = litellm.completion(**common, **calls).choices[0].message.tool_calls
streamed = litellm.stream_chunk_builder(list(litellm.completion(**common, **calls, stream=True)))
refused = {}
for name, value in {"presence_penalty": 0.5, "reasoning_effort": "low"}.items():
    try:
        litellm.completion(**common, max_tokens=4, **{name: value}, allowed_openai_params=[name])
    except litellm.BadRequestError as error:
        refused[name] = name in str(error)
json.dump(
    {
        "several": [len(choice.logprobs.content) for choice in several.choices],
        "same": same,
        "counted": max(part.usage.completion_tokens for part in counted if getattr(part, "usage", None)),
        "called": [json.loads(call.function.arguments) for call in called],
        "streamed": json.loads(streamed.choices[0].message.tool_calls[0].function.arguments),
        "refused": refused,
        "whole": whole.usage.completion_tokens,
        "text": "".join(part.choices[0].delta.content or "" for part in parts),
        "formed": json.loads(formed.choices[0].message.content),
        "unknown": unknown,
    },
    sys.stdout,
)
