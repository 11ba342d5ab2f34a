// Drives a gateway with the official `openai` package: node doors.mjs URL SIDE.
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import OpenAI from "openai";

const [base, side] = [process.argv[2], Number(process.argv[3])];
const client = new OpenAI({ baseURL: `${base}/v1`, apiKey: "anything", maxRetries: 0 });
const prompt = "a red circle left of a blue square";
const sha256 = (bytes) => createHash("sha256").update(bytes).digest("hex");

const models = [];
for await (const model of client.models.list()) models.push(model.id);
assert.equal(models.length, 1);
const model = (await client.models.retrieve(models[0])).id;

const painted = await client.images.generate({ prompt, n: 2, seed: 7 });
const files = painted.data.map((picture) => Buffer.from(picture.b64_json, "base64"));
assert.equal(files[0].readUInt32BE(16), side);
assert.notEqual(sha256(files[0]), sha256(files[1]));
const url = (await client.images.generate({ prompt, seed: 7, response_format: "url" })).data[0].url;
assert.equal(sha256(Buffer.from(await (await fetch(url)).arrayBuffer())), sha256(files[0]));

const finished = [];
for await (const event of await client.images.generate({ prompt, n: 2, seed: 7, stream: true, partial_images: 1 })) {
  if (event.type === "image_generation.completed") finished[event.index] = sha256(Buffer.from(event.b64_json, "base64"));
  else assert.equal(event.type, "image_generation.partial_image");
}
assert.deepEqual(finished, files.map(sha256));

const picture = (await client.images.generate({ prompt: "a red circle", seed: 1 })).data[0].b64_json;
const content = [
  { type: "image_url", image_url: { url: `data:image/png;base64,${picture}` } },
  { type: "text", text: "what colour is the circle?" },
];
const messages = [{ role: "user", content }];
const answer = await client.chat.completions.create({ model, messages, max_tokens: 16 });
assert.match(answer.choices[0].message.content, /red/);
let streamed = "", usage;
const options = { model, messages, max_tokens: 16, stream: true, stream_options: { include_usage: true } };
for await (const chunk of await client.chat.completions.create(options)) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(streamed, answer.choices[0].message.content);
assert.deepEqual(usage, answer.usage);

const refusals = [
  [OpenAI.BadRequestError, "size", () => client.images.generate({ prompt, size: "1024x1024" })],
  [OpenAI.BadRequestError, "colour", () => client.images.generate({ prompt, colour: "red" })],
  [OpenAI.NotFoundError, "model", () => client.models.retrieve("gpt-4")],
  [OpenAI.NotFoundError, "model", () => client.chat.completions.create({ model: "gpt-4", messages })],
  [OpenAI.BadRequestError, "temperature", () => client.chat.completions.create({ model, messages, temperature: -1, stream: true })],
];
for (const [kind, param, call] of refusals) {
  await assert.rejects(call, (error) => {
    assert.ok(error instanceof kind, String(error));
    assert.equal(error.param, param);
    assert.match(error.requestID, /^req-/);
    return true;
  });
}
