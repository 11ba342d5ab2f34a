"""Paints a picture and asks a question over gRPC, with nothing but what the protos generate.

usage: client.py HOST:PORT PROMPT QUESTION [PICTURE]

Prints one JSON object: the picture's ids and their SHA-256, its size, and the answer.
"""

import hashlib
import json
import sys
import uuid

import grpc
from janus.v1 import inference_pb2 as pb
from janus.v1 import inference_pb2_grpc as rpc


def header():
    """Every request has an id of its caller's choice; the same id again joins the same request."""
    return pb.RequestHeader(request_id=str(uuid.uuid4()))


def paint(janus, prompt):
    request = pb.GenerateImageRequest(header=header(), prompt=prompt, temperature=0.0)
    for event in janus.GenerateImage(request, timeout=60):
        if event.WhichOneof("event") == "image":
            return event.image


def ask(janus, question, pictures):
    parts = [pb.Part(image=pb.Image(data=data)) for data in pictures] + [pb.Part(text=question)]
    request = pb.ChatRequest(header=header(), messages=[pb.Message(role="user", parts=parts)], max_tokens=24)
    for event in janus.Chat(request, timeout=60):
        if event.WhichOneof("event") == "done":
            return event.done


def main(address, prompt, question, *pictures):
    with grpc.insecure_channel(address) as channel:
        janus = rpc.InferenceStub(channel)
        image = paint(janus, prompt)
        answer = ask(janus, question, [open(path, "rb").read() for path in pictures])
    assert len(image.rgb) == 3 * image.width * image.height
    ids = b"".join(token.to_bytes(2, "little") for token in image.tokens)
    assert hashlib.sha256(ids).digest() == image.sha256
    painted = {"tokens": list(image.tokens), "sha256": image.sha256.hex(), "width": image.width, "height": image.height}
    print(json.dumps({"image": painted, "answer": {"tokens": list(answer.tokens), "text": answer.text}}))


if __name__ == "__main__":
    main(*sys.argv[1:])
