// Files and batches with the official `openai` package: node batches.mjs URL.
import assert from "node:assert/strict";
import OpenAI, { toFile } from "openai";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "anything", maxRetries: 0 });
const endpoint = "/v1/images/generations";
const line = (custom_id, body) => JSON.stringify({ custom_id, method: "POST", url: endpoint, body });
const lines = [line("one", { prompt: "a red circle", seed: 3 }), line("two", { prompt: "a blue star", n: 2, seed: 5 })];
const upload = async (text) => client.files.create({ file: await toFile(Buffer.from(text), "in.jsonl"), purpose: "batch" });
const input = await upload(lines.join("\n"));
assert.equal(input.filename, "in.jsonl");
assert.equal(await (await client.files.content(input.id)).text(), lines.join("\n"));

let batch = await client.batches.create({ input_file_id: input.id, endpoint, completion_window: "24h" });
const until = Date.now() + 120_000;
while (batch.status !== "completed") {
  assert.equal(batch.status, "in_progress");
  assert.ok(Date.now() < until, "it takes too long");
  await new Promise((wake) => setTimeout(wake, 50));
  batch = await client.batches.retrieve(batch.id);
}
const output = (await (await client.files.content(batch.output_file_id)).text()).trimEnd().split("\n").map((l) => JSON.parse(l));
assert.deepEqual(output.map((l) => [l.custom_id, l.response.body.data.map((p) => p.seed)]), [["one", [3]], ["two", [5, 6]]]);
const listed = [];
for await (const one of client.batches.list()) listed.push(one.id);
assert.ok(listed.includes(batch.id));
await assert.rejects(() => client.batches.retrieve("batch_none"), OpenAI.NotFoundError);
const bad = await upload("{}\n");
const refused = client.batches.create({ input_file_id: bad.id, endpoint, completion_window: "24h" });
await assert.rejects(refused, (error) => error instanceof OpenAI.BadRequestError && /line 1/.test(error.message));
