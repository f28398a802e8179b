"""LangChain's ChatOpenAI. Arguments: the router's address. Prints JSON."""

import json
import sys
from typing import Literal

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
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
json.dump(
    {
        "whole": whole.usage_metadata["output_tokens"],
        "stream": "".join(part.text for part in parts),
        "finding": finding.model_dump(),
        "called": called.model_dump(),
        "tool": [[call["name"], call["args"]] for call in bound.tool_calls],
    },
    sys.stdout,
)
