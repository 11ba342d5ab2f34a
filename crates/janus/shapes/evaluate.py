#!/usr/bin/env python3
"""Held-out prompts and questions, and their scores.

    python evaluate.py lists                                  writes heldout_prompts.jsonl, heldout_questions.jsonl
    python evaluate.py score --checkpoint checkpoint          scores at the shipped settings
    python evaluate.py sweep --checkpoint checkpoint          guidance x temperature
"""

import argparse
import json
import os
import random
import time

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import DynamicCache, JanusForConditionalGeneration

import drawing as D
import train as T

HERE = os.path.dirname(os.path.abspath(__file__))
PER_CATEGORY, PER_KIND = 96, 120


# --------------------------------------------------------------------- lists
def build_prompts(seed=20):
    """Fixed held-out prompts: combinations never used as training captions wherever the category allows it."""
    rng = random.Random(f"{seed} prompts")
    rows = []

    def add(category, prompt, expected, relation, held):
        rows.append({"id": f"{category}-{sum(r['category'] == category for r in rows):03d}", "category": category,
                     "prompt": prompt, "expected": expected, "relation": relation, "held_out": held, "seed": len(rows)})

    def thing(shape, colour=None, count=1):
        return {"shape": shape, "colour": colour, "count": count}

    plain = lambda text: text if rng.random() < 0.6 else D.dress(rng, text)
    for i in range(PER_CATEGORY):
        s = D.SHAPES[i % 4]
        add("single_object", plain(D.noun(None, s)), [thing(s)], None, False)
    pairs = [(a, b) for a in D.SHAPES for b in D.SHAPES if a != b]
    order = [D.HELD_TWO[i % 2] if i % 3 == 0 else pairs[i % 12] for i in range(PER_CATEGORY)]
    for a, b in order:
        add("two_object", plain(f"{D.noun(None, a)} and {D.noun(None, b)}"), [thing(a), thing(b)], None, (a, b) in D.HELD_TWO)
    for i in range(PER_CATEGORY):
        if i % 2 == 0:
            n, c, s = D.HELD_COUNTS[(i // 2) % 12]
        else:
            n = 2 + (i // 2) % 3
            c, s = D.named_pair(rng)
        add("counting", plain(D.noun(c, s, n)), [thing(s, c, n)], None, (n, c, s) in D.HELD_COUNTS)
    every = [(c, s) for c in D.COLOUR_NAMES for s in D.SHAPES]
    for i in range(PER_CATEGORY):
        c, s = every[i % 24]
        add("colors", plain(D.noun(c, s)), [thing(s, c)], None, (c, s) in D.HELD_PAIRS)
    for category in ("position", "color_attr"):
        i = 0
        while i < PER_CATEGORY:
            held_pair = i % 12 == 11
            a, b = D.named_pair(rng, held_pair), D.named_pair(rng, held_pair)
            rel = D.RELATIONS[i % 4] if category == "position" else None
            if a == b or (a[1] == b[1] and rng.random() < 0.7):
                continue
            if held_pair:
                if a not in D.HELD_PAIRS and b not in D.HELD_PAIRS:
                    continue
            elif not D.held_combo(*a, *b, rel):
                continue
            text = f"{D.noun(*a)} {rel or 'and'} {D.noun(*b)}"
            add(category, plain(text), [thing(a[1], a[0]), thing(b[1], b[0])], rel, True)
            i += 1
    return rows


def build_questions(seed=21):
    rng = random.Random(f"{seed} questions")
    rows = []
    for kind in D.QUESTION_KINDS:
        n = tries = 0
        while n < PER_KIND:
            tries += 1
            held = tries % 8 == 0
            objects = D.question_scene(rng, held=held)
            got = D.ask(rng, objects, kind)
            if not got:
                continue
            has = any((o["colour"], o["shape"]) in D.HELD_PAIRS for o in objects)
            rows.append({"id": f"{kind}-{n:03d}", "kind": kind, "objects": objects, "question": D.dress_question(rng, got[0]),
                         "answer": got[1], "detail": got[2], "held_out": has})
            n += 1
    return rows


def write_lists():
    for name, rows in (("heldout_prompts.jsonl", build_prompts()), ("heldout_questions.jsonl", build_questions())):
        with open(os.path.join(HERE, name), "w") as f:
            for r in rows:
                f.write(json.dumps(r) + "\n")


def read_list(name):
    with open(os.path.join(HERE, name)) as f:
        return [json.loads(line) for line in f]


# ------------------------------------------------------------------ sampling
@torch.no_grad()
def paint(model, text, prompts, guidance, temperature, seed=0, rows=96):
    """[n, 64] ids. Guided logits u + w (c - u); temperature 0 is argmax. Own seed per picture."""
    m = model.model
    out = torch.zeros(len(prompts), T.TOKENS, dtype=torch.long)
    ids = [text.prompt(p) for p in prompts]
    by_length = {}
    for i, p in enumerate(ids):
        by_length.setdefault(len(p), []).append(i)
    batches = [v[k:k + rows] for v in by_length.values() for k in range(0, len(v), rows)]
    for index in batches:
        c = torch.tensor([ids[i] for i in index])
        n = len(index)
        uniform = torch.stack([torch.rand(T.TOKENS, generator=torch.Generator().manual_seed(seed * 100003 + i)) for i in index])
        if guidance == 1:
            x = c
        else:
            u = torch.full_like(c, text.pad)
            u[:, 0], u[:, -1] = c[:, 0], c[:, -1]
            x = torch.cat([c, u])
        emb, cache, pos = m.language_model.embed_tokens(x), DynamicCache(), 0
        for t in range(T.TOKENS):
            p = torch.arange(pos, pos + emb.shape[1])[None]
            h = m.language_model(inputs_embeds=emb, past_key_values=cache, position_ids=p, use_cache=True).last_hidden_state[:, -1]
            pos += emb.shape[1]
            logits = m.generation_head(h).float()
            if guidance != 1:
                logits = logits[n:] + guidance * (logits[:n] - logits[n:])
            if temperature == 0:
                tok = logits.argmax(-1)
            else:
                cdf = (logits / temperature).double().softmax(-1).cumsum(-1)
                tok = torch.searchsorted(cdf, uniform[:, t:t + 1].double() * cdf[:, -1:]).squeeze(-1).clamp(max=T.CODES - 1)
            out[index, t] = tok
            both = tok if guidance == 1 else torch.cat([tok, tok])
            emb = m.generation_aligner(m.generation_embeddings(both))[:, None].to(emb.dtype)
    return out


@torch.no_grad()
def answers(model, text, pictures, questions, rows=48):
    """Greedy answers: text of up to three tokens, stopped at EOS."""
    m = model.model
    ids = [text.question(q) for q in questions]
    by_length, out = {}, [None] * len(questions)
    for i, p in enumerate(ids):
        by_length.setdefault(len(p), []).append(i)
    prefix = torch.tensor(text.prefix)
    imgpos = (prefix == text.img).nonzero().flatten()
    for group in by_length.values():
        for k in range(0, len(group), rows):
            index = group[k:k + rows]
            f = m.aligner(m.vision_model(T.pixels([pictures[i] for i in index]).to(m.aligner.fc1.weight.dtype)).last_hidden_state)
            pre = m.language_model.embed_tokens(prefix)[None].expand(len(index), -1, -1).index_copy(1, imgpos, f)
            emb = torch.cat([pre, m.language_model.embed_tokens(torch.tensor([ids[i] for i in index]))], 1)
            cache, got = DynamicCache(), []
            for _ in range(3):
                h = m.language_model(inputs_embeds=emb, past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
                tok = model.lm_head(h).argmax(-1)
                got.append(tok)
                emb = m.language_model.embed_tokens(tok)[:, None]
            for j, i in enumerate(index):
                t = [int(g[j]) for g in got]
                t = t[:t.index(text.eos)] if text.eos in t else t
                out[i] = text.tok.decode(t).strip()
    return out


# ------------------------------------------------------------------- scoring
def score_prompts(model, text, rows, guidance, temperature, seed=0, keep=None):
    ids = paint(model, text, [r["prompt"] for r in rows], guidance, temperature, seed)
    table = {}
    for k in range(0, len(rows), 64):
        for r, p in zip(rows[k:k + 64], T.to_pictures(model, ids[k:k + 64])):
            ok = D.judge(p, r["expected"], r["relation"])
            table.setdefault(r["category"], []).append(ok)
            if r["held_out"]:
                table.setdefault("held:" + r["category"], []).append(ok)
            if keep is not None:
                keep.append((r, p, ok))
    res = {k: round(float(np.mean(v)), 3) for k, v in table.items()}
    res["overall"] = round(float(np.mean([res[c] for c in D.CATEGORIES if c in res])), 3)
    return res


def score_questions(model, text, rows):
    got = answers(model, text, [D.draw(r["objects"]) for r in rows], [r["question"] for r in rows])
    table, confusion = {}, {"tp": 0, "fp": 0, "tn": 0, "fn": 0}
    for r, g in zip(rows, got):
        ok = g == r["answer"]
        table.setdefault(r["kind"], []).append(ok)
        if r["held_out"]:
            table.setdefault("held:" + r["kind"], []).append(ok)
        if r["kind"] in ("presence", "relation"):
            table.setdefault(f"{r['kind']}/{r['detail']}", []).append(ok)
        if r["kind"] == "presence":
            confusion[("t" if ok else "f") + ("p" if g == "yes" else "n")] += 1
    res = {k: round(float(np.mean(v)), 3) for k, v in table.items()}
    res["answers"] = round(float(np.mean([ok for k in D.QUESTION_KINDS for ok in table.get(k, [])])), 3)
    return res, confusion


def quick(model, text, prompts=30, questions=25, settings=((2.0, 0.7),)):
    """A small sample during training."""
    t0 = time.time()
    rows, res = read_list("heldout_prompts.jsonl"), {}
    rows = [r for c in D.CATEGORIES for r in [x for x in rows if x["category"] == c][:prompts]]
    for g, temp in settings:
        res[f"g{g}t{temp}"] = score_prompts(model, text, rows, g, temp)
    q = read_list("heldout_questions.jsonl")
    q = [r for k in D.QUESTION_KINDS for r in [x for x in q if x["kind"] == k][:questions]]
    res["qa"] = score_questions(model, text, q)[0]
    res["seconds"] = round(time.time() - t0)
    return res


def load(folder):
    model = JanusForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    return model, T.Text(Tokenizer.from_file(os.path.join(folder, "tokenizer.json")))


def main():
    a = argparse.ArgumentParser()
    a.add_argument("what", choices=["lists", "score", "sweep"])
    a.add_argument("--checkpoint", default=os.path.join(HERE, "checkpoint"))
    a.add_argument("--guidance", type=float)
    a.add_argument("--temperature", type=float)
    a.add_argument("--guidances", type=float, nargs="+", default=[1, 1.5, 2, 3, 4])
    a.add_argument("--temperatures", type=float, nargs="+", default=[0, 0.5, 0.7, 0.85, 1.0])
    a.add_argument("--count", type=int, default=PER_CATEGORY)
    a.add_argument("--seed", type=int, default=0)
    a.add_argument("--picture", help="save a contact sheet here")
    args = a.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))
    if args.what == "lists":
        return write_lists()
    model, text = load(args.checkpoint)
    rows = read_list("heldout_prompts.jsonl")
    rows = [r for c in D.CATEGORIES for r in [x for x in rows if x["category"] == c][:args.count]]
    if args.what == "sweep":
        for g in args.guidances:
            for t in args.temperatures:
                print(json.dumps({"guidance": g, "temperature": t, **score_prompts(model, text, rows, g, t, args.seed)}), flush=True)
        return
    g = args.guidance or model.generation_config.guidance_scale
    t = model.generation_config.temperature if args.temperature is None else args.temperature
    keep = []
    print(json.dumps({"guidance": g, "temperature": t, "n": args.count, **score_prompts(model, text, rows, g, t, args.seed, keep)}))
    print(json.dumps(score_questions(model, text, read_list("heldout_questions.jsonl"))))
    print(json.dumps(T.vq_ceiling(model, 0)))
    for r, _, ok in keep:
        if not ok:
            print("wrong:", r["id"], r["prompt"])
    if args.picture:
        from PIL import Image
        pick = random.Random(0).sample(keep, 48)
        cells = [np.pad(p, ((1, 1), (1, 1), (0, 0)), constant_values=0 if ok else 255) for _, p, ok in pick]
        sheet = np.concatenate([np.concatenate(cells[8 * k:8 * k + 8], 1) for k in range(6)])
        Image.fromarray(sheet).resize((sheet.shape[1] * 2, sheet.shape[0] * 2), 0).save(args.picture)


if __name__ == "__main__":
    main()
