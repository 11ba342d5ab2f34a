"""Files and batches with the official `openai` package: batches.py URL [real], where a model really answers."""

import base64
import json
import sys
import time

import openai
from openai.types.chat import ChatCompletion

client = openai.OpenAI(base_url=f"{sys.argv[1]}/v1", api_key="anything", max_retries=0, _strict_response_validation=True)
PAINT, ASK = "/v1/images/generations", "/v1/chat/completions"
# No model has room for so long a prompt, so this line fails while its batch runs.
ENDLESS = "circle " * 20_000


def line(custom_id, url, body, method="POST"):
    return json.dumps({"custom_id": custom_id, "method": method, "url": url, "body": body})


def upload(lines, name="in.jsonl"):
    return client.files.create(file=(name, "\n".join(lines).encode()), purpose="batch")


def make(lines, endpoint, **more):
    return client.batches.create(input_file_id=upload(lines).id, endpoint=endpoint, completion_window="24h", **more)


def done(batch, status="completed"):
    until = time.time() + 120
    while batch.status in ("in_progress", "cancelling"):
        assert time.time() < until, batch
        time.sleep(0.05)
        batch = client.batches.retrieve(batch.id)
    assert batch.status == status, batch
    return batch


def content(file):
    return [json.loads(text) for text in client.files.content(file).text.splitlines()]


def pictures():
    lines = [
        line("one", PAINT, {"prompt": "a red circle", "seed": 3}),
        line("two/2", PAINT, {"prompt": "a blue star", "n": 2}),
        line("too long", PAINT, {"prompt": ENDLESS}),
    ]
    file = upload(lines)
    assert (file.purpose, file.bytes, file.status) == ("batch", len("\n".join(lines)), "processed")
    assert client.files.retrieve(file.id) == file and file.expires_at > file.created_at
    assert client.files.content(file.id).text == "\n".join(lines)
    assert [f for f in client.files.list() if f.id == file.id] == [file], "no batch is made of it yet"
    batch = client.batches.create(
        input_file_id=file.id, endpoint=PAINT, completion_window="24h", metadata={"for": "a test"}
    )
    assert batch.metadata == {"for": "a test"} and batch.input_file_id == file.id and batch.output_file_id is None
    batch = done(batch)
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (3, 2, 1), counts
    one, two = content(batch.output_file_id)
    assert (one["custom_id"], two["custom_id"]) == ("one", "two/2")
    assert [o["response"]["status_code"] for o in (one, two)] == [200, 200]
    shown = one["response"]["body"]["data"] + two["response"]["body"]["data"]
    assert len(shown) == 3 and shown[0]["seed"] == 3 and shown[2]["seed"] == shown[1]["seed"] + 1
    assert all(base64.b64decode(p["b64_json"]).startswith(b"\x89PNG") for p in shown)
    (failed,) = content(batch.error_file_id)
    assert failed["custom_id"] == "too long" and failed["error"]["message"] and failed["response"] is None
    results = client.files.retrieve(batch.output_file_id)
    assert results.purpose == "batch_output" and results.filename.endswith("_output.jsonl")
    listed = {f.id for f in client.files.list()}
    assert {file.id, batch.output_file_id, batch.error_file_id} <= listed
    assert {f.id for f in client.files.list(purpose="batch_output")} == listed - {file.id}
    return batch


def pages():
    """Every file is on one page, whatever the order and however long the pages are."""
    mine = [upload([line("x", PAINT, {"prompt": "x"})], f"{i}.jsonl") for i in range(5)]
    everything = [f.id for f in client.files.list()]
    assert len(everything) == len(set(everything)) and {f.id for f in mine} <= set(everything)
    assert [f.id for f in client.files.list(limit=2)] == everything
    assert [f.id for f in client.files.list(limit=2, order="asc")] == everything[::-1]
    page = client.files.list(limit=2, after=everything[1])
    assert [f.id for f in page.data] == everything[2:4] and page.has_more
    assert client.files.list(after=everything[-1]).data == []
    ours = [f for f in client.files.list(purpose="batch", limit=3) if f.id in {f.id for f in mine}]
    assert sorted(f.filename for f in ours) == [f"{i}.jsonl" for i in range(5)]
    refused("no file", lambda: client.files.list(after="file-none"), openai.NotFoundError, None)
    refused("order", lambda: client.files.list(order="newest"), param="order")
    for file in mine:
        assert client.files.delete(file.id).deleted
    assert [f.id for f in client.files.list()] == [id for id in everything if id not in {f.id for f in mine}]


def questions(picture):
    url = "data:image/png;base64," + picture
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "what colour is the circle?"}]
    lines = [line(f"q{i}", ASK, {"messages": [{"role": "user", "content": parts}], "max_tokens": 8}) for i in range(3)]
    batch = done(make(lines, ASK))
    answers = content(batch.output_file_id)
    assert [a["custom_id"] for a in answers] == ["q0", "q1", "q2"]
    assert all("red" in a["response"]["body"]["choices"][0]["message"]["content"] for a in answers), answers
    assert batch.error_file_id is None
    return parts


def like_direct(parts):
    """Everything that can be asked for directly can be in a batch, and the same comes back."""
    said = [
        {"role": "system", "content": "You answer in one word."},
        {"role": "user", "content": parts[::-1]},
        {"role": "assistant", "content": "blue"},
        {"role": "user", "content": "are you sure?"},
    ]
    bodies = [
        {"messages": said, "max_tokens": 4, "top_p": 0.5, "top_k": 3, "temperature": 1, "seed": 5, "model": served},
        {"messages": [{"role": "user", "content": parts}], "max_tokens": 1},
        {"messages": [{"role": "user", "content": parts}], "stop": "red"},
    ]
    batch = done(make([line(f"c{i}", ASK, body) for i, body in enumerate(bodies)], ASK))
    for body, answer in zip(bodies, content(batch.output_file_id), strict=True):
        ours = ChatCompletion.model_validate(answer["response"]["body"])
        more = {"model": served, "messages": body["messages"]}
        direct = client.chat.completions.create(**more, extra_body={k: v for k, v in body.items() if k not in more})
        assert ours.choices == direct.choices and ours.usage == direct.usage, (ours, direct)
        reasons = {"length"} if body.get("max_tokens") == 1 else {"stop"} if "stop" in body else {"stop", "length"}
        assert ours.choices[0].finish_reason in reasons, (body, ours)
    # Pictures that go on from a given one, too.
    first = client.images.generate(prompt="a red circle", extra_body={"seed": 5}).data[0]
    body = {"prompt": "a blue square", "seed": 11, "init_image": first.b64_json, "keep_rows": 3, "top_k": 9, "top_p": 0.9}
    batch = done(make([line("a", PAINT, body)], PAINT))
    (ours,) = content(batch.output_file_id)[0]["response"]["body"]["data"]
    direct = client.images.generate(prompt=body.pop("prompt"), extra_body=body).data[0]
    assert ours["sha256"] == direct.sha256 and ours["sha256"] != first.sha256


def refused(words, call, kind=openai.BadRequestError, param="input_file_id"):
    try:
        call()
    except kind as error:
        assert error.param == param and words in error.body["message"], error
        return
    raise AssertionError(f"not refused: {words}")


def errors():
    good = line("a", PAINT, {"prompt": "x"})
    cases = [
        ("line 2: expected", [good, "{}"]),
        ("line 2: custom_id", [good, good]),
        ("line 1: url", [line("a", ASK, {"messages": []})]),
        ("line 1: method", [line("a", PAINT, {"prompt": "x"}, "GET")]),
        ("line 1: size", [line("a", PAINT, {"prompt": "x", "size": "1x1"})]),
        ("line 1: stream", [line("a", PAINT, {"prompt": "x", "stream": True})]),
        ("line 1: colour", [line("a", PAINT, {"prompt": "x", "colour": "red"})]),
        ("no lines", ["", " "]),
    ]
    for words, lines in cases:
        refused(words, lambda lines=lines: make(lines, PAINT))
    refused("line 1: messages", lambda: make([line("a", ASK, {"messages": []})], ASK))
    other = {"messages": [{"role": "user", "content": "a"}], "model": "gpt-4o"}
    refused("line 1: model: `gpt-4o` is not served here", lambda: make([line("a", ASK, other)], ASK))
    refused("line 1: init_image", lambda: make([line("a", PAINT, {"prompt": "x", "init_image": "?"})], PAINT))
    refused("endpoint", lambda: make([good], "/v1/embeddings"), param="endpoint")
    missing = "file-" + "0" * 64
    window = {"endpoint": PAINT, "completion_window": "24h"}
    refused("no file", lambda: client.batches.create(input_file_id=missing, **window))
    refused("`batch`", lambda: client.files.create(file=b"x", purpose="assistants"), param="purpose")
    for call in (client.files.retrieve, client.files.content, client.files.delete):
        refused("no file", lambda call=call: call(missing), openai.NotFoundError, None)
    for call in (client.batches.retrieve, client.batches.cancel):
        refused("no batch", lambda call=call: call("batch_none"), openai.NotFoundError, None)


def endings(first):
    file = upload([line("x", PAINT, {"prompt": "x"})])
    assert client.files.delete(file.id).deleted
    refused("no file", lambda: client.files.retrieve(file.id), openai.NotFoundError, None)
    ids = [b.id for b in client.batches.list(limit=1)]
    assert len(ids) == len(set(ids)) >= 2 and ids[-1] == first.id, ids
    lines = [line(f"c{i}", PAINT, {"prompt": "a red circle", "n": 10}) for i in range(50)]
    batch = make(lines, PAINT)
    cancelled = client.batches.cancel(batch.id)
    assert cancelled.status in ("cancelling", "cancelled"), cancelled
    batch = done(cancelled, "cancelled")
    not_done = content(batch.error_file_id)
    assert not_done and all(o["error"]["code"] == "cancelled" for o in not_done)


served = client.models.list().data[0].id
first = pictures()
shown = content(first.output_file_id)[0]["response"]["body"]["data"][0]["b64_json"]
pages()
parts = questions(shown)
if "real" in sys.argv:
    like_direct(parts)
errors()
endings(first)
