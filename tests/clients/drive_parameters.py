"""The parameters that users of OpenAI's SDK send, one at a time. Arguments: the router's address. Prints JSON.

Of each: what came back, or the refusal's status, parameter, code and words.
"""

import json
import sys

from openai import APIStatusError, OpenAI

TALK = [{"role": "user", "content": "What is owed?"}]
SCHEMA = {
    "type": "object",
    "properties": {"urgent": {"type": "boolean"}},
    "required": ["urgent"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "finding", "schema": SCHEMA, "strict": True}}
TOOL = {"type": "function", "function": {"name": "look_up", "description": "d", "parameters": SCHEMA}}
NAMED = {"type": "function", "function": {"name": "look_up"}}
CALL = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": '{"urgent": true}'}}
PIXEL = "data:image/png;base64,iVBORw0KGgo="
LONG = {"max_tokens": 200}
FREE = {"extra_body": {"ignore_eos": True}}
CHATS = {
    "stop list": {"stop": ["zz", "urgent"], "response_format": FORM, "max_tokens": 60},
    "n": {"n": 3},
    "logprobs": {"logprobs": True, "top_logprobs": 3},
    "response_format json_schema": {"response_format": FORM, "max_tokens": 60},
    "response_format json_object": {"response_format": {"type": "json_object"}, "max_tokens": 60},
    "response_format text": {"response_format": {"type": "text"}},
    "tools": {"tools": [TOOL]},
    # One call: a random model makes as many as it may, and the last is cut off.
    "tool_choice required": {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False, **LONG},
    "tool_choice named": {"tools": [TOOL], "tool_choice": NAMED, "max_tokens": 200},
    "tool_choice none": {"tools": [TOOL], "tool_choice": "none"},
    "parallel_tool_calls": {
        "tools": [TOOL],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "max_tokens": 200,
    },
    "max_completion_tokens": {"max_completion_tokens": 4, **FREE},
    "max_tokens": {"max_tokens": 5, **FREE},
    "developer role": {"messages": [{"role": "developer", "content": "Be brief."}, *TALK]},
    "content parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "What is owed?"}]}]},
    "name of a message": {"messages": [{**TALK[0], "name": "Ann"}]},
    "tool messages": {
        "messages": [
            *TALK,
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c1", "content": "Article 17"},
        ]
    },
    "metadata": {"metadata": {"team": "law"}},
    "user": {"user": "user-1"},
    "safety_identifier": {"safety_identifier": "user-1"},
    "store": {"store": False},
    "service_tier": {"service_tier": "auto"},
    "prompt_cache_key": {"prompt_cache_key": "k"},
    "logit_bias": {"logit_bias": {"97": 100}, "max_tokens": 3, "temperature": 0},
    "temperature and top_p": {"temperature": 0.3, "top_p": 0.9},
    "modalities text": {"modalities": ["text"]},
    "penalties of 0": {"frequency_penalty": 0, "presence_penalty": 0},
    "frequency_penalty": {"frequency_penalty": 0.5},
    "presence_penalty": {"presence_penalty": 0.5},
    "reasoning_effort": {"reasoning_effort": "low"},
    "verbosity": {"verbosity": "low"},
    "modalities": {"modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "wav"}},
    "prediction": {"prediction": {"type": "content", "content": "a"}},
    "web_search_options": {"web_search_options": {}},
    "functions": {"functions": [{"name": "look_up", "parameters": SCHEMA}]},
    "function_call": {"function_call": {"name": "look_up"}},
    "guided_json": {"extra_body": {"guided_json": SCHEMA}},
    "stream_options alone": {"extra_body": {"stream_options": {"include_usage": True}}},
    "image_url": {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": PIXEL}}]}]},
    "tool_choice unknown": {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "other"}}},
    "top_logprobs alone": {"top_logprobs": 3},
    "n of 9": {"n": 9},
}

client = OpenAI(base_url=f"{sys.argv[1]}/v1", max_retries=0)


def chat(**given):
    return client.chat.completions.create(**{"model": "compliance", "messages": TALK, "max_tokens": 8, **given})


def outcome(call):
    try:
        return call()
    except APIStatusError as error:
        return {"refused": error.status_code, "param": error.param, "code": error.code, "message": error.message}


def whole(given):
    if "max_completion_tokens" in given:
        given = {**given, "max_tokens": None}
    answer = chat(**given)
    listed = answer.choices[0].logprobs.content if answer.choices[0].logprobs else ()
    return {
        "texts": [choice.message.content for choice in answer.choices],
        "calls": [
            [call.function.name, json.loads(call.function.arguments)]
            for call in answer.choices[0].message.tool_calls or ()
        ],
        "ends": [choice.finish_reason for choice in answer.choices],
        "tokens": answer.usage.completion_tokens,
        "logprobs": [len(entry.top_logprobs) for entry in listed],
    }


def streamed():
    chunks = list(chat(stream=True, stream_options={"include_usage": True}))
    return {"tokens": chunks[-1].usage.completion_tokens, "choices": len(chunks[-1].choices)}


def pieces():
    """The streamed pieces of a forced call."""
    chunks = list(chat(stream=True, tools=[TOOL], tool_choice="required", max_tokens=200))
    calls = [call for chunk in chunks for choice in chunk.choices for call in choice.delta.tool_calls or ()]
    first = [call for call in calls if call.index == 0]
    return {
        "count": len(first),
        "ids": sum(call.id is not None for call in first),
        "first": first[0].function.arguments,
        "arguments": json.loads("".join(call.function.arguments for call in first)),
        "end": chunks[-1].choices[0].finish_reason,
    }


def sent_back():
    """An answer that is sent back whole, as agents do."""
    first = chat(tools=[TOOL], tool_choice="required", parallel_tool_calls=False, **LONG).choices[0].message
    results = [{"role": "tool", "tool_call_id": call.id, "content": "Article 17"} for call in first.tool_calls]
    return chat(messages=[*TALK, first, *results], tools=[TOOL]).usage.completion_tokens


def seeded():
    return [chat(seed=seed, temperature=1.3, max_tokens=12).choices[0].message.content for seed in (7, 7, 8)]


outcomes = {name: outcome(lambda given=given: whole(given)) for name, given in CHATS.items()}
outcomes |= {"stream_options": outcome(streamed), "seed": outcome(seeded), "sent back": outcome(sent_back)}
outcomes |= {"pieces": outcome(pieces)}
json.dump(outcomes, sys.stdout)
