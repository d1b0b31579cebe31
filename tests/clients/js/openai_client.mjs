// The `openai` package of JavaScript: responses, conversations and chat completions over HTTP, whole and streamed.
import OpenAI from "openai";

const [address, image] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `http://${address}/v1`, apiKey: "unused", maxRetries: 0 });
const question = "What is in this image?";
const content = [
  { type: "input_image", image_url: image, detail: "auto" },
  { type: "input_text", text: question },
];

const whole = await client.responses.create({ model: "idefics-shapes", input: [{ role: "user", content }] });
let streamed = "";
const stream = await client.responses.create({
  model: "idefics-shapes",
  input: [{ role: "user", content }],
  stream: true,
});
for await (const event of stream) {
  if (event.type === "response.output_text.delta") streamed += event.delta;
}
const followed = await client.responses.create({
  model: "idefics-shapes",
  input: "And its colour?",
  previous_response_id: whole.id,
});
const items = await client.conversations.items.list(whole.conversation.id, { order: "asc" });
const roles = items.data.map((item) => item.role);
const completion = await client.chat.completions.create({
  model: "idefics-shapes",
  messages: [
    { role: "user", content: [{ type: "image_url", image_url: { url: image } }, { type: "text", text: question }] },
  ],
});
let refused = null;
try {
  await client.responses.retrieve("resp_x");
} catch (error) {
  refused = [error.status, error.code];
}
console.log(
  JSON.stringify({
    whole: whole.output_text,
    streamed,
    completed: completion.choices[0].message.content,
    more: followed.usage.input_tokens > whole.usage.input_tokens,
    roles,
    refused,
  }),
);
