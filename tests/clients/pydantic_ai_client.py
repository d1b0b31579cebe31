"""`pydantic-ai`: chat completions and responses, whole and streamed. Prints what it was answered."""

import asyncio
import base64
import json
import sys

from pydantic_ai import Agent, BinaryContent
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

address, image = sys.argv[1:]
provider = OpenAIProvider(base_url=f"http://{address}/v1", api_key="unused")
picture = BinaryContent(base64.b64decode(image.partition(",")[2]), media_type="image/png")
said = ["What is in this image?", picture]


async def main() -> None:
    told = {}
    for name, kind in (("completed", OpenAIChatModel), ("responded", OpenAIResponsesModel)):
        agent = Agent(kind("idefics-shapes", provider=provider))
        told[name] = (await agent.run(said)).output
        async with agent.run_stream(said) as stream:
            told[f"{name}_streamed"] = await stream.get_output()
    sys.stdout.write(json.dumps(told))


asyncio.run(main())
