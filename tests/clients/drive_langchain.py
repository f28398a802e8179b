"""LangChain's ChatOpenAI. Arguments: the router's address. Prints JSON."""

import json
import sys
from typing import Literal

from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from openai import BadRequestError
from pydantic import BaseModel, ConfigDict


class Finding(BaseModel):
    """What was found."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["report", "audit"]
    urgent: bool


@tool
def look_up(urgent: bool) -> str:
    """Look an article up."""
    return "Article 17"


model = ChatOpenAI(model="compliance", base_url=f"{sys.argv[1]}/v1", max_retries=0, max_tokens=200)
whole = model.invoke("What is owed?", user="user-1")
parts = list(model.stream("What is owed?"))
finding = model.with_structured_output(Finding, method="json_schema").invoke("What was found?")
called = model.with_structured_output(Finding, method="function_calling").invoke("What was found?")
bound = model.bind_tools([look_up], tool_choice="look_up", strict=True).invoke("Which article?")
chosen = {"seed": 7, "temperature": 1.3, "user": "user-1", "service_tier": "auto", "store": False}
several = [model.invoke("What is owed?", **chosen).text for _ in range(2)]
likely = model.invoke("What is owed?", logprobs=True, top_logprobs=2, max_completion_tokens=5, stop=["\n"])
roles = [
    SystemMessage("Be brief.", additional_kwargs={"__openai_role__": "developer"}),
    HumanMessage([{"type": "text", "text": "What is owed?"}], name="Ann"),
]
counted = next(part for part in model.stream(roles, stream_usage=True) if part.usage_metadata)
pieces = [part.tool_call_chunks for part in model.bind_tools([look_up], tool_choice="any").stream("Which article?")]
refused = {}
for name, value in {"reasoning_effort": "low", "frequency_penalty": 0.5, "verbosity": "low"}.items():
    try:
        model.invoke("What is owed?", **{name: value})
    except BadRequestError as error:
        refused[name] = error.param
json.dump(
    {
        "several": several,
        "likely": [len(entry["top_logprobs"]) for entry in likely.response_metadata["logprobs"]["content"]],
        "counted": counted.usage_metadata["output_tokens"],
        "pieces": sum(map(len, pieces)),
        "refused": refused,
        "whole": whole.usage_metadata["output_tokens"],
        "stream": "".join(part.text for part in parts),
        "finding": finding.model_dump(),
        "called": called.model_dump(),
        "tool": [[call["name"], call["args"]] for call in bound.tool_calls],
    },
    sys.stdout,
)
