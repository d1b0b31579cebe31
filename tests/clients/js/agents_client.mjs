// `@openai/agents` of JavaScript: an agent that is shown a picture, and one that goes on with what it said.
import { Agent, run, setDefaultOpenAIClient, setTracingDisabled } from "@openai/agents";
import OpenAI from "openai";

const [address, image] = process.argv.slice(2);
setDefaultOpenAIClient(new OpenAI({ baseURL: `http://${address}/v1`, apiKey: "unused", maxRetries: 0 }));
setTracingDisabled(true);
const agent = new Agent({ name: "looker", instructions: "Answer briefly.", model: "idefics-shapes" });
const content = [
  { type: "input_image", image },
  { type: "input_text", text: "What is in this image?" },
];
const first = await run(agent, [{ role: "user", content }]);
const second = await run(agent, first.history.concat([{ role: "user", content: "And its colour?" }]));
const streamed = await run(agent, [{ role: "user", content }], { stream: true });
let text = "";
for await (const piece of streamed.toTextStream()) text += piece;
await streamed.completed;
console.log(JSON.stringify({ whole: first.finalOutput, streamed: text, second: second.finalOutput }));
