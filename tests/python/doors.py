"""Drives a gateway with the official `openai` package: doors.py URL SIDE. Prints one JSON object of what it got.

The package checks every answer against its own types (`_strict_response_validation`), so a shape that it does not know fails
here by itself. Assertions below say what else its users rely on.
"""

import base64
import hashlib
import json
import struct
import sys
import urllib.request

import openai

BASE, SIDE = sys.argv[1], int(sys.argv[2])
client = openai.OpenAI(base_url=f"{BASE}/v1", api_key="anything", max_retries=0, _strict_response_validation=True)
# For events that only we have.
lenient = openai.OpenAI(base_url=f"{BASE}/v1", api_key="anything", max_retries=0)
PROMPT = "a red circle left of a blue square"


def png(data):
    """Width and height of a PNG file."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n", data[:16]
    return struct.unpack(">II", data[16:24])


def refused(kind, status, param, call, **arguments):
    """The call fails with this class of the package's, this status, and blame on this parameter."""
    try:
        call(**arguments)
    except kind as error:
        assert error.status_code == status, (error.status_code, error)
        assert error.param == param, (error.param, error)
        assert error.request_id.startswith("req-"), error.request_id
        assert (error.code == "model_not_found") == (param == "model"), error
        assert error.body["message"] and error.body["type"], error.body
        return error.body["message"]
    raise AssertionError(f"{arguments} was not refused")


def models():
    listed = client.models.list()
    assert [m.object for m in listed] == ["model"]
    model = listed.data[0]
    assert client.models.retrieve(model.id).id == model.id
    message = refused(openai.NotFoundError, 404, "model", client.models.retrieve, model="gpt-4")
    assert message == f"model: `gpt-4` is not served here; `{model.id}` is", message
    return model


def pictures():
    answer = client.images.generate(prompt=PROMPT, n=2, size=f"{SIDE}x{SIDE}", extra_body={"seed": 7})
    assert [p.seed for p in answer.data] == [7, 8]
    files = [base64.b64decode(p.b64_json) for p in answer.data]
    assert all(png(file) == (SIDE, SIDE) for file in files) and files[0] != files[1]
    usage = answer.usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens and usage.output_tokens > 0
    # The same seed is the same picture, and a seed that was drawn is told.
    again = client.images.generate(prompt=PROMPT, size="auto", extra_body={"seed": 8})
    assert base64.b64decode(again.data[0].b64_json) == files[1]
    drawn = client.images.generate(prompt=PROMPT)
    known = client.images.generate(prompt=PROMPT, extra_body={"seed": drawn.data[0].seed})
    assert known.data[0].b64_json == drawn.data[0].b64_json
    # Guidance acts, by either name.
    bare = [client.images.generate(prompt=PROMPT, extra_body={"seed": 7, name: 1.0}) for name in ("guidance", "cfg_weight")]
    assert bare[0].data[0].b64_json == bare[1].data[0].b64_json != answer.data[0].b64_json
    for kind, magic in (("jpeg", b"\xff\xd8\xff"), ("webp", b"RIFF")):
        other = client.images.generate(prompt=PROMPT, output_format=kind, extra_body={"seed": 7})
        assert base64.b64decode(other.data[0].b64_json).startswith(magic) and other.output_format == kind
        assert other.data[0].sha256 == answer.data[0].sha256
    # As a URL: the same bytes, served by the gateway.
    url = client.images.generate(prompt=PROMPT, response_format="url", extra_body={"seed": 7}).data[0].url
    assert url.startswith(f"{BASE}/v1/images/results/"), url
    with urllib.request.urlopen(url) as response:
        assert response.headers["content-type"] == "image/png" and response.read() == files[0]
    # The upper half is kept.
    given = {"seed": 9, "init_image": answer.data[0].b64_json, "keep_rows": 4}
    half = client.images.generate(prompt="two green squares", extra_body=given)
    free = client.images.generate(prompt="two green squares", extra_body={"seed": 9})
    assert half.data[0].sha256 != free.data[0].sha256
    assert half.usage.output_tokens * 2 == free.usage.output_tokens
    return {"files": [hashlib.sha256(file).hexdigest() for file in files], "ids": [p.sha256 for p in answer.data]}


def pictures_as_they_grow(whole):
    known = list(client.images.generate(prompt=PROMPT, stream=True, partial_images=2, extra_body={"seed": 7}))
    assert hashlib.sha256(base64.b64decode(known[-1].b64_json)).hexdigest() == whole["files"][0]
    stream = lenient.images.generate(
        prompt=PROMPT, n=2, stream=True, partial_images=2, extra_body={"seed": 7, "stream_ids": True}
    )
    done, ids, partial = {}, {0: [], 1: []}, 0
    for event in stream:
        if event.type == "image_generation.completed":
            file = base64.b64decode(event.b64_json)
            done[event.index] = hashlib.sha256(file).hexdigest()
            assert event.usage.output_tokens > 0 and event.size == f"{SIDE}x{SIDE}"
        elif event.type == "image_generation.partial_image":
            assert png(base64.b64decode(event.b64_json)) == (SIDE, SIDE)
            partial += 1
        elif event.type != "image_generation.queued":
            assert event.type == "image_generation.progress", event
            ids[event.index] += event.ids
            assert len(ids[event.index]) == event.known <= event.total
    assert [done[0], done[1]] == whole["files"]
    drawn = [hashlib.sha256(struct.pack(f"<{len(i)}H", *i)).hexdigest() for i in ids.values()]
    assert drawn == whole["ids"], drawn
    return partial


def question(picture, text="what colour is the circle?"):
    url = "data:image/png;base64," + picture
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
    return [{"role": "user", "content": parts}]


def answers(model):
    picture = client.images.generate(prompt="a red circle", extra_body={"seed": 1}).data[0].b64_json
    messages = question(picture)
    answer = client.chat.completions.create(model=model.id, messages=messages, seed=1, max_tokens=16)
    choice = answer.choices[0]
    assert "red" in choice.message.content and choice.finish_reason == "stop", choice
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens > 16 and answer.system_fingerprint == model.janus["numerics"]

    stream = client.chat.completions.create(
        model=model.id, messages=messages, seed=1, max_tokens=16, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == choice.message.content, (text, choice.message.content)
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage == answer.usage and not chunks[-1].choices and len({c.id for c in chunks}) == 1
    without = list(client.chat.completions.create(model=model.id, messages=messages, stream=True, max_tokens=16))
    assert all(c.usage is None for c in without)

    cut = client.chat.completions.create(model=model.id, messages=messages, max_completion_tokens=1)
    assert cut.choices[0].finish_reason == "length" and cut.usage.completion_tokens == 1
    stopped = client.chat.completions.create(model=model.id, messages=messages, stop=["e"], max_tokens=16)
    assert stopped.choices[0].message.content == choice.message.content.split("e")[0]
    # A picture alone is a question, and nothing at all is none.
    alone = [{"role": "user", "content": messages[0]["content"][:1]}]
    looked = client.chat.completions.create(model=model.id, messages=alone, max_tokens=4)
    assert looked.usage.prompt_tokens < answer.usage.prompt_tokens, looked
    for nothing in ("", [], [{"type": "text", "text": " "}]):
        say = [{"role": "user", "content": nothing}]
        refused(openai.BadRequestError, 400, "messages", client.chat.completions.create, model=model.id, messages=say)
    plain = [{"role": "system", "content": "be short"}, {"role": "user", "content": "hello"}]
    client.chat.completions.create(model=model.id, messages=plain, max_tokens=4, temperature=1, top_p=0.5, n=1, user="me")
    return text


def errors(model):
    paint, ask = client.images.generate, client.chat.completions.create
    bad = openai.BadRequestError
    said = refused(bad, 400, "size", paint, prompt="x", size="1024x1024")
    assert f"{SIDE}x{SIDE}" in said
    refused(bad, 400, "n", paint, prompt="x", n=11)
    refused(bad, 400, "prompt", paint, prompt=None)
    refused(bad, 400, "colour", paint, prompt="x", extra_body={"colour": "red"})
    refused(bad, 400, "seed", paint, prompt="x", extra_body={"seed": "seven"})
    said = refused(bad, 400, "guidance", paint, prompt="x", extra_body={"guidance": -1})
    assert said.startswith("guidance: "), said
    refused(bad, 400, "background", paint, prompt="x", background="transparent")
    refused(bad, 400, "partial_images", paint, prompt="x", partial_images=1)
    refused(bad, 400, "partial_images", paint, prompt="x", partial_images=4, stream=True)
    said = refused(bad, 400, "init_image", paint, prompt="x", extra_body={"init_image": "AAAA", "keep_rows": 1})
    assert said.startswith("init_image: "), said
    refused(bad, 400, "keep_rows", paint, prompt="x", extra_body={"keep_rows": 1})
    said = refused(openai.NotFoundError, 404, "model", paint, prompt="x", model="dall-e-3")
    assert said == f"model: `dall-e-3` is not served here; `{model.id}` is", said
    say = [{"role": "user", "content": "hello"}]
    said = refused(openai.NotFoundError, 404, "model", ask, model="gpt-4", messages=say)
    assert said == f"model: `gpt-4` is not served here; `{model.id}` is", said
    refused(bad, 400, "messages", ask, model=model.id, messages=[])
    refused(bad, 400, "messages[0].role", ask, model=model.id, messages=[{"role": "king", "content": "x"}])
    said = refused(bad, 400, "messages[0].content[0].image_url", ask, model=model.id, messages=question("AAAA"))
    assert said.startswith("messages[0].content[0].image_url: "), said
    for url in ("http://127.0.0.1:1/a.png", "https://example.org/a.png", "file:///etc/passwd"):
        parts = [{"type": "image_url", "image_url": {"url": url}}]
        message = [{"role": "user", "content": parts}]
        refused(bad, 400, "messages[0].content[0].image_url", ask, model=model.id, messages=message)
    refused(bad, 400, "n", ask, model=model.id, messages=say, n=2)
    refused(bad, 400, "tools", ask, model=model.id, messages=say, tools=[{"type": "function", "function": {"name": "f"}}])
    refused(bad, 400, "max_tokens", ask, model=model.id, messages=say, max_tokens=0)
    refused(bad, 400, "stop", ask, model=model.id, messages=say, stop=["a"] * 5)
    refused(bad, 400, "temperature", ask, model=model.id, messages=say, temperature=-1)
    # A stream that is refused is refused before it begins.
    refused(bad, 400, "temperature", ask, model=model.id, messages=say, temperature=-1, stream=True)


model = models()
whole = pictures()
partial = pictures_as_they_grow(whole)
text = answers(model)
errors(model)
print(json.dumps({"model": model.id, "pictures": whole, "partial": partial, "answer": text}))
