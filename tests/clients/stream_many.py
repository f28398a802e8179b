"""Many users who stream one answer each with the defaults of OpenAI's SDK. Arguments: the address and the number."""

import sys

from openai import OpenAI

client = OpenAI(base_url=f"{sys.argv[1]}/v1", max_retries=0)
for number in range(int(sys.argv[2])):
    messages = [{"role": "user", "content": "What is owed?"}]
    for _ in client.chat.completions.create(model="compliance", messages=messages, stream=True, user=f"user-{number}"):
        pass
