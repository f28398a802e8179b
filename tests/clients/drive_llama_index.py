"""LlamaIndex' OpenAILike. Arguments: the router's address. Prints JSON."""

import json
import os
import sys

from llama_index.core.llms import ChatMessage, TextBlock
from llama_index.llms.openai_like import OpenAILike
from openai import BadRequestError

common = {"model": "compliance", "api_base": f"{sys.argv[1]}/v1", "api_key": os.environ["OPENAI_API_KEY"]}
chat = OpenAILike(**common, is_chat_model=True, max_tokens=12, context_window=1024, max_retries=0)
plain = OpenAILike(**common, is_chat_model=False, max_tokens=12, context_window=1024, max_retries=0)
message = ChatMessage(role="user", content="What is owed?")
chosen = {"seed": 7, "temperature": 1.3, "stop": ["\n"], "user": "user-1", "max_completion_tokens": 6}
same = [chat.chat([message], **chosen).message.content for _ in range(2)]
parts = ChatMessage(role="user", blocks=[TextBlock(text="What is "), TextBlock(text="owed?")])
system = ChatMessage(role="developer", content="Be brief.")
try:
    chat.chat([message], presence_penalty=0.5)
    refused = ""
except BadRequestError as error:
    refused = error.param
json.dump(
    {
        "same": same[0] == same[1],
        "parts": chat.chat([system, parts]).message.content,
        "refused": refused == "presence_penalty",
        "chat": chat.chat([message]).message.content,
        "stream": "".join(part.delta or "" for part in chat.stream_chat([message])),
        "plain": plain.complete("What is owed?").text,
        "plain_stream": "".join(part.delta or "" for part in plain.stream_complete("What is owed?")),
    },
    sys.stdout,
)
