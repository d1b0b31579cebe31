"""`langchain-openai`: chat completions and responses, whole and streamed. Prints what it was answered."""

import json
import sys

from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI

address, image = sys.argv[1:]
options = {"base_url": f"http://{address}/v1", "api_key": "unused", "model": "idefics-shapes", "max_retries": 0}
said = HumanMessage(
    content=[
        {"type": "image_url", "image_url": {"url": image}},
        {"type": "text", "text": "What is in this image?"},
    ]
)
completions = ChatOpenAI(**options)
responses = ChatOpenAI(**options, use_responses_api=True)
told = {
    "completed": completions.invoke([said]).text,
    "streamed": "".join(chunk.text for chunk in completions.stream([said])),
    "responded": responses.invoke([said]).text,
    "responded_streamed": "".join(chunk.text for chunk in responses.stream([said])),
}
sys.stdout.write(json.dumps(told))
