"""LlamaIndex' OpenAILike. Arguments: the router's address. Prints JSON."""

import json
import os
import sys

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

common = {"model": "compliance", "api_base": f"{sys.argv[1]}/v1", "api_key": os.environ["OPENAI_API_KEY"]}
chat = OpenAILike(**common, is_chat_model=True, max_tokens=12, context_window=1024, max_retries=0)
plain = OpenAILike(**common, is_chat_model=False, max_tokens=12, context_window=1024, max_retries=0)
message = ChatMessage(role="user", content="What is owed?")
json.dump(
    {
        "chat": chat.chat([message]).message.content,
        "stream": "".join(part.delta or "" for part in chat.stream_chat([message])),
        "plain": plain.complete("What is owed?").text,
        "plain_stream": "".join(part.delta or "" for part in plain.stream_complete("What is owed?")),
    },
    sys.stdout,
)
