"""Instructor, by tools and by JSON Schema. Arguments: the router's address. Prints JSON."""

import json
import sys
from typing import Literal

import instructor
from openai import OpenAI
from pydantic import BaseModel, ConfigDict


class Finding(BaseModel):
    model_config = ConfigDict(extra="forbid")

    kind: Literal["report", "audit"]
    urgent: bool


answers = {}
for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
    client = instructor.from_openai(OpenAI(base_url=f"{sys.argv[1]}/v1", max_retries=0), mode=mode)
    finding = client.chat.completions.create(
        model="compliance",
        messages=[{"role": "user", "content": "What was found?"}],
        response_model=Finding,
        max_retries=1,
        max_tokens=200,
    )
    answers[mode.name] = finding.model_dump()
json.dump(answers, sys.stdout)
