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
json.dump(
    {
        "whole": whole.usage.completion_tokens,
        "text": "".join(part.choices[0].delta.content or "" for part in parts),
        "formed": json.loads(formed.choices[0].message.content),
        "unknown": unknown,
    },
    sys.stdout,
)
