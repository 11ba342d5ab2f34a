#!/usr/bin/env python3
"""Trains the `shapes` checkpoint. One command, resumable:

    python train.py --run RUN_DIR --out checkpoint

Parts first (VQ tokeniser, vision tower), then Janus' stages in miniature:
I adaptors and heads, II unified training, III fine-tuning with the vision
tower trained too. The VQ model (generation encoder) stays frozen in I to III.
Every step draws its own data from (seed, phase, step), so an interrupted run
started again goes on as if it had never stopped. See MODEL_CARD.md.
"""

import argparse
import itertools
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (GenerationConfig, JanusConfig, JanusForConditionalGeneration, JanusVisionConfig,
                          JanusVQVAEConfig, LlamaConfig)

import drawing as D

HERE = os.path.dirname(os.path.abspath(__file__))
BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
BOI, EOI, IMG, USER, ASSISTANT = ("<begin_of_image>", "<end_of_image>", "<image_placeholder>", "<|User|>", "<|Assistant|>")
SPECIALS = [BOS, EOS, PAD, BOI, IMG, EOI, USER, ASSISTANT]
SYSTEM = ("You are a helpful language and vision assistant. You are able to understand the visual content that the "
          "user provides, and assist the user with a variety of tasks using natural language.\n\n")
VOCAB, CODES, TOKENS, HIDDEN = 512, 512, 64, 192
PROMPT, SLOT, QUESTIONS = 26, 22, 6
GUIDANCE, TEMPERATURE = 1.25, 0.7

CHAT_TEMPLATE = """{%- for m in messages -%}{%- if m['role'] == 'user' -%}{{ '<|User|>: ' }}{%- else -%}{{ '<|Assistant|>: ' }}{%- endif -%}{%- for c in m['content'] -%}{%- if c['type'] == 'image' -%}{{ '<image_placeholder>
' }}{%- else -%}{{ c['text'] }}{%- endif -%}{%- endfor -%}{%- if m['role'] == 'user' -%}{{ '

' }}{%- else -%}{{ '<｜end▁of▁sentence｜>' }}{%- endif -%}{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|Assistant|>:' }}{%- endif -%}"""


# ----------------------------------------------------------------- tokeniser
def get_tokenizer(args):
    """The run's tokeniser: built once (before the workers start), then read."""
    path = os.path.join(args.run, "tokenizer.json")
    if not os.path.exists(path):
        build_tokenizer(args.seed).save(path)
    return Tokenizer.from_file(path)


def build_tokenizer(seed):
    rng = random.Random(f"{seed} tokenizer")
    corpus = []
    for _ in range(30000):
        caption, objects = D.sample_caption(rng)
        corpus.append(f": {D.dress(rng, caption)}\n\n")
        kind = rng.choice(D.QUESTION_KINDS)
        got = D.ask(rng, D.question_scene(rng), kind)
        if got:
            corpus += [f"\n{D.dress_question(rng, got[0])}\n\n", f": {got[1]}"]
    corpus += [SYSTEM] * 150
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex("[\r\n]"), "isolated"),
        pre_tokenizers.Split(Regex("\\s?\\p{L}+"), "isolated"),
        pre_tokenizers.Split(Regex("\\s?\\p{P}+"), "isolated"),
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tok.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tok.train_from_iterator(corpus, trainers.BpeTrainer(
        vocab_size=VOCAB - len(SPECIALS), initial_alphabet=alphabet, special_tokens=[], show_progress=False))
    tok.add_special_tokens([AddedToken(s, normalized=False, special=True) for s in SPECIALS])
    bos = tok.token_to_id(BOS)
    tok.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bos)])
    assert tok.get_vocab_size() <= VOCAB
    return tok


def write_small_files(tok, out):
    """Everything in the checkpoint except weights, config.json and generation_config.json."""
    tok.save(os.path.join(out, "tokenizer.json"))
    dump(os.path.join(out, "tokenizer_config.json"), {
        "backend": "tokenizers", "boi_token": BOI, "bos_token": BOS, "clean_up_tokenization_spaces": False,
        "eoi_token": EOI, "eos_token": EOS, "extra_special_tokens": [], "image_token": IMG, "model_max_length": 1024,
        "pad_token": PAD, "padding_side": "left", "processor_class": "JanusProcessor",
        "tokenizer_class": "TokenizersBackend"})
    image = {"background_color": [127, 127, 127], "do_normalize": True, "do_pad": True, "do_rescale": True,
             "do_resize": True, "image_mean": [0.5] * 3, "image_processor_type": "JanusImageProcessor",
             "image_std": [0.5] * 3, "min_size": 14, "resample": 3, "rescale_factor": 1 / 255,
             "size": {"height": D.CANVAS, "width": D.CANVAS}}
    dump(os.path.join(out, "preprocessor_config.json"), image)
    dump(os.path.join(out, "processor_config.json"), {
        "image_processor": image, "num_image_tokens": TOKENS, "processor_class": "JanusProcessor",
        "use_default_system_prompt": True})
    with open(os.path.join(out, "chat_template.jinja"), "w") as f:
        f.write(CHAT_TEMPLATE)


def dump(path, obj):
    with open(path, "w") as f:
        json.dump(obj, f, indent=2, ensure_ascii=False)
        f.write("\n")


# --------------------------------------------------------------------- model
def build_model(tok, seed):
    torch.manual_seed(seed)
    text = LlamaConfig(
        vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=512, num_hidden_layers=6, num_attention_heads=6,
        num_key_value_heads=6, head_dim=32, max_position_embeddings=1024, rms_norm_eps=1e-6,
        rope_parameters={"rope_theta": 10000.0, "rope_type": "default"}, tie_word_embeddings=False,
        bos_token_id=tok.token_to_id(BOS), eos_token_id=tok.token_to_id(EOS), pad_token_id=tok.token_to_id(PAD))
    vision = JanusVisionConfig(hidden_size=128, num_hidden_layers=4, num_attention_heads=4, image_size=64, patch_size=8,
                               num_image_tokens=TOKENS, projection_dim=HIDDEN, depth=2)
    vq = JanusVQVAEConfig(embed_dim=8, num_embeddings=CODES, latent_channels=64, base_channels=32,
                          channel_multiplier=[1, 1, 2, 2], num_res_blocks=1, num_patches=8,
                          projection_dim=HIDDEN, image_token_embed_dim=HIDDEN, num_hidden_layers=2)
    cfg = JanusConfig(text_config=text, vision_config=vision, vq_config=vq,
                      image_token_id=tok.token_to_id(IMG), tie_word_embeddings=False)
    model = JanusForConditionalGeneration._from_config(cfg, attn_implementation="sdpa", dtype=torch.float32)
    m = model.model
    with torch.no_grad():
        for p in m.vqmodel.parameters():      # plain convolution init: transformers' 0.02 is far too small here
            if p.dim() == 4:
                torch.nn.init.kaiming_uniform_(p, a=math.sqrt(5))
        e = m.vqmodel.quantize.embedding.weight
        e.copy_(F.normalize(torch.randn_like(e), dim=-1))
        for p in m.vision_model.parameters():
            if p.dim() == 2 and p.shape[0] >= 128:
                torch.nn.init.xavier_uniform_(p)
        torch.nn.init.normal_(m.vision_model.embeddings.position_embedding.weight, std=0.02)
        torch.nn.init.normal_(m.language_model.embed_tokens.weight, std=0.5)
        torch.nn.init.normal_(m.generation_embeddings.weight, std=1.0)
        for lin, gain in ((m.generation_aligner.fc1, 1.4), (m.generation_aligner.hidden_layers[0], 1.0),
                          (m.aligner.fc1, 1.4), (m.aligner.hidden_layers[0], 1.0), (m.generation_head.proj_out, 1.4)):
            torch.nn.init.normal_(lin.weight, std=gain / math.sqrt(lin.in_features))
        for layer in m.language_model.layers:
            for lin in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj,
                        layer.mlp.gate_proj, layer.mlp.up_proj):
                torch.nn.init.normal_(lin.weight, std=1 / math.sqrt(lin.in_features))
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        m.generation_head.vision_head.weight.zero_()
        model.lm_head.weight.zero_()
    return model


def export(model, tok, out, guidance=None, temperature=None):
    """Writes the checkpoint in bf16; every file is renamed into place."""
    tmp = os.path.join(out, f".tmp-{os.getpid()}")
    shutil.rmtree(tmp, ignore_errors=True)
    os.makedirs(tmp)
    with torch.no_grad():
        copy = JanusForConditionalGeneration._from_config(model.config, attn_implementation="sdpa", dtype=torch.bfloat16)
        copy.load_state_dict({k: v.to(torch.bfloat16) for k, v in model.state_dict().items()})
    copy.generation_config = generation_config(tok, guidance or GUIDANCE, temperature or TEMPERATURE)
    copy.save_pretrained(tmp)
    write_small_files(tok, tmp)
    for name in sorted(os.listdir(tmp)):
        os.chmod(os.path.join(tmp, name), 0o644)
        os.replace(os.path.join(tmp, name), os.path.join(out, name))
    os.rmdir(tmp)


def generation_config(tok, guidance, temperature):
    boi = tok.token_to_id(BOI)
    g = GenerationConfig(bos_token_id=tok.token_to_id(BOS), eos_token_id=tok.token_to_id(EOS),
                         pad_token_id=tok.token_to_id(PAD), boi_token_id=boi, generation_kwargs={"boi_token_id": boi},
                         guidance_scale=guidance, temperature=temperature, do_sample=True, top_k=0)
    g._from_model_config = False
    return g


# ---------------------------------------------------------------------- data
def pixels(pictures):
    x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float().contiguous()
    return x / 127.5 - 1.0


def canonical_types():
    """Patch types with equal pixels share a code: array type -> code, and the number of codes used."""
    seen, table = {}, np.zeros(D.PATCH_TYPES, np.int64)
    blank = np.empty((8, 8, 3), np.uint8)
    blank[:] = D.BACKGROUND
    seen[blank.tobytes()] = 0
    for size in D.SIZES:
        for shape in D.SHAPES:
            for colour in D.COLOUR_NAMES:
                s = D.sprite(shape, colour, size)
                for r in range(size // 8):
                    for c in range(size // 8):
                        key = s[8 * r:8 * r + 8, 8 * c:8 * c + 8].tobytes()
                        table[D.patch_type(shape, colour, size, r, c)] = seen.setdefault(key, len(seen))
    return table, seen


TABLE, KNOWN = canonical_types()
USED = len(KNOWN)


def known_codes(picture):
    """[8, 8] code of every patch whose pixels are a known patch, -1 elsewhere."""
    return np.array([[KNOWN.get(picture[y:y + 8, x:x + 8].tobytes(), -1) for x in range(0, 64, 8)] for y in range(0, 64, 8)])


def loose_scene(rng, held):
    """Sprites of both sizes anywhere (not on the grid), 4 pixels apart or more."""
    out = []
    for _ in range(rng.choice((1, 2, 3, 4))):
        c, s = D.named_pair(rng, held)
        size = rng.choice(D.SIZES)
        for _ in range(20):
            x, y = rng.randrange(65 - size), rng.randrange(65 - size)
            if all(x + size + 4 <= o["x"] or o["x"] + o["size"] + 4 <= x or y + size + 4 <= o["y"]
                   or o["y"] + o["size"] + 4 <= y for o in out):
                out.append({"shape": s, "colour": c, "size": size, "x": x, "y": y})
                break
    return out


ROWS, COLUMNS = np.arange(64) // 8, np.arange(64) % 8
TARGETS = (("shape", 5), ("colour", 7), ("row", 8), ("column", 8), ("middle", 3), ("relation", 5))


def patch_classes(objects):
    """[6, 64] what each patch shows: shape and colour of the sprite covering most of it (0 none), its own row and
    column, whether it holds the middle of a sprite (1 small, 2 large), and the relation of its sprite to the
    nearest other one (0 none)."""
    best = np.zeros((8, 8), np.int64)
    shape, colour, middle, relation = (np.zeros((8, 8), np.int64) for _ in range(4))
    for o in objects:
        cover = np.zeros((64, 64), np.int64)
        cover[o["y"]:o["y"] + o["size"], o["x"]:o["x"] + o["size"]] = D.sprite_coverage(o["shape"], o["size"])
        area = cover.reshape(8, 8, 8, 8).sum((1, 3))
        win = area > np.maximum(best, 128)
        best[win] = area[win]
        shape[win] = 1 + D.SHAPES.index(o["shape"])
        colour[win] = 1 + D.COLOUR_NAMES.index(o["colour"])
        others = [p for p in objects if p is not o]
        if others:
            near = min(others, key=lambda p: (p["x"] + p["size"] / 2 - o["x"] - o["size"] / 2) ** 2
                       + (p["y"] + p["size"] / 2 - o["y"] - o["size"] / 2) ** 2)
            r = D.relation_of(o, near)
            relation[win] = 0 if r is None else 1 + D.RELATIONS.index(r)
        half = o["size"] // 2 - 1
        middle[(o["y"] + half) // 8, (o["x"] + half) // 8] = 1 + D.SIZES.index(o["size"])
    return np.stack([shape.reshape(-1), colour.reshape(-1), ROWS, COLUMNS, middle.reshape(-1), relation.reshape(-1)])


class Text:
    def __init__(self, tok):
        self.tok = tok
        self.bos, self.eos, self.pad, self.boi, self.img, self.eoi = (tok.token_to_id(s) for s in (BOS, EOS, PAD, BOI, IMG, EOI))
        self.prefix = tok.encode(f"{SYSTEM}{USER}: {BOI}{IMG * TOKENS}{EOI}").ids
        self.cache = {}

    def enc(self, s):
        if s not in self.cache:
            self.cache[s] = self.tok.encode(s, add_special_tokens=False).ids
        return self.cache[s]

    def prompt(self, caption):
        return [self.bos] + self.enc(f"{USER}: {caption}\n\n{ASSISTANT}:{BOI}")

    def question(self, q):
        return self.enc(f"\n{q}\n\n{ASSISTANT}:")

    def answer(self, a):
        return self.enc(f" {a}") + [self.eos]


_PLACES = {}


def placements(n, relation, alike):
    """Every layout of drawing.place as a list of patch indices per sprite: n arrays [layouts, cells]."""
    key = (n, relation, alike)
    if key not in _PLACES:
        if n == 1:
            spots = [((x, y),) for x in range(6) for y in range(6)]
        elif n == 2 and relation is None:
            six = [(x, y) for x in range(6) for y in range(6)]
            spots = [(a, b) for a in six for b in six if max(abs(a[0] - b[0]), abs(a[1] - b[1])) >= 4]
        elif n == 2:
            spots = []
            for near, far in ((0, 4), (0, 5), (1, 5)):
                f, g = (near, far) if relation in ("left of", "above") else (far, near)
                for p in range(6):
                    for q in range(6):
                        if abs(p - q) <= 1:
                            spots.append(((f, p), (g, q)) if relation in ("left of", "right of") else ((p, f), (q, g)))
        else:
            cells = [(x, y) for x in (0, 3, 6) for y in (0, 3, 6)]
            spots = list((itertools.combinations if alike else itertools.permutations)(cells, n))
        m = 3 if n <= 2 else 2
        at = np.array(spots)                                                        # [layouts, n, 2]
        inner = (np.arange(m)[:, None] * 8 + np.arange(m)[None]).reshape(-1)
        _PLACES[key] = [at[:, k, 1, None] * 8 + at[:, k, 0, None] + inner for k in range(n)]
    return _PLACES[key]


def exact_targets(caption, objects, codes):
    """[64, CODES] the true distribution of each token given the ones before it, over every layout that shows the
    caption; the drawn picture itself (one-hot) where the caption leaves colours open."""
    one_hot = np.zeros((TOKENS, CODES), np.float32)
    one_hot[np.arange(TOKENS), codes] = 1
    words = set(caption.replace(",", " ").split())
    kinds = [(o["shape"], o["colour"]) for o in objects]
    alike = len(set(kinds)) == 1
    if any(c not in words for _, c in kinds) or len(kinds) == 4 and not alike:
        return one_hot
    relation = next((r for r in D.RELATIONS if r in caption), None)
    index = placements(len(kinds), relation, alike)
    grid = np.zeros((len(index[0]), TOKENS), np.int64)
    rows = np.arange(len(grid))[:, None]
    m = 3 if len(kinds) <= 2 else 2
    for (shape, colour), at in zip(kinds, index):
        first = D.patch_type(shape, colour, 8 * m, 0, 0)
        grid[rows, at] = TABLE[first:first + m * m]
    alive = np.ones(grid.shape)
    np.cumprod(grid[:, :-1] == codes[:-1], axis=1, out=alive[:, 1:])
    out = np.bincount((np.arange(TOKENS) * CODES + grid).reshape(-1), alive.reshape(-1), TOKENS * CODES).reshape(TOKENS, CODES)
    return (out / out.sum(1, keepdims=True)).astype(np.float32)


def generation_batch(text, rng, n, drop):
    ids = np.full((n, PROMPT), text.pad)
    codes, lengths = np.zeros((n, TOKENS), np.int64), np.zeros(n, np.int64)
    targets = np.zeros((n, TOKENS, CODES), np.float32)
    for i in range(n):
        caption, objects = D.sample_caption(rng)
        p = text.prompt(D.dress(rng, caption))
        dropped = rng.random() < drop
        if dropped:
            p = [p[0]] + [text.pad] * (len(p) - 2) + [p[-1]]
        ids[i, :len(p)] = p
        lengths[i] = len(p)
        codes[i] = TABLE[D.patch_types(objects)].reshape(-1)
        targets[i] = exact_targets("" if dropped else caption, objects, codes[i])
    return tuple(map(torch.from_numpy, (ids, lengths, codes, targets)))


KIND_WEIGHTS = (("colour", 0.5), ("shape", 0.7), ("count", 0.7), ("presence", 0.9), ("relation", 5.0))


def question_batch(text, rng, n):
    """Pictures, and per picture QUESTIONS slots of SLOT tokens; labels -100 except on answers."""
    P = len(text.prefix)
    pics = []
    ids = np.full((n, QUESTIONS, SLOT), text.pad)
    labels = np.full((n, QUESTIONS, SLOT), -100)
    noise = np.random.default_rng(rng.getrandbits(32))
    for i in range(n):
        objects = loose_scene(rng, False) if rng.random() < 0.12 else D.question_scene(rng, 2 if rng.random() < 0.5 else None)
        picture = D.draw(objects)
        if rng.random() < 0.5:
            picture = np.clip(picture + noise.normal(0, rng.random() * 6, picture.shape), 0, 255).astype(np.uint8)
        pics.append(picture)
        j = 0
        while j < QUESTIONS:
            kind = rng.choices([k for k, _ in KIND_WEIGHTS], [w for _, w in KIND_WEIGHTS])[0]
            got = D.ask(rng, objects, kind)
            if not got:
                continue
            q = text.question(D.dress_question(rng, got[0]))
            a = text.answer(got[1])
            ids[i, j, :len(q) + len(a)] = q + a
            labels[i, j, len(q) - 1:len(q) + len(a) - 1] = a      # position t predicts t + 1
            j += 1
    return pixels(pics), torch.from_numpy(ids.reshape(n, -1)), torch.from_numpy(labels.reshape(n, -1)), P


def question_mask(P):
    """Questions share the prefix and do not see each other: bool mask [1, 1, L, L] and position ids [1, L]."""
    L = P + QUESTIONS * SLOT
    group = torch.cat([torch.full((P,), -1), torch.arange(QUESTIONS).repeat_interleave(SLOT)])
    i = torch.arange(L)
    see = (i[:, None] >= i[None]) & ((group[None] == -1) | (group[:, None] == group[None]))
    pos = torch.cat([torch.arange(P), P + torch.arange(SLOT).repeat(QUESTIONS)])
    return see[None, None], pos[None]


# ---------------------------------------------------------------- optimisers
class Muon:
    """Orthogonalised momentum for matrices, AdamW for the rest."""

    def __init__(self, matrices, others, lr, wd, adam_lr, adam_wd=0.0, rank=0, world=1):
        self.matrices, self.lr, self.wd, self.rank, self.world = matrices, lr, wd, rank, world
        self.mom = [torch.zeros_like(p) for p in matrices]
        self.groups = {}
        for i, p in enumerate(matrices):
            self.groups.setdefault(tuple(p.shape), []).append(i)
        self.adam_lr = adam_lr
        self.adam = torch.optim.AdamW(others, lr=1.0, betas=(0.9, 0.98), weight_decay=adam_wd)

    def step(self, scale):
        for g in self.adam.param_groups:
            g["lr"] = self.adam_lr * scale * g.get("scale", 1.0)
        self.adam.step()
        lr = self.lr * scale
        live = [i for i, p in enumerate(self.matrices) if p.grad is not None]
        if not live:
            return
        update = {i: torch.zeros_like(self.matrices[i]) for i in live}
        with torch.no_grad():
            for shape, group in self.groups.items():
                group = [i for i in group if i in update]
                if not group:
                    continue
                for i in group:
                    self.mom[i].lerp_(self.matrices[i].grad, 0.05)
                mine = group[self.rank::self.world]         # each process orthogonalises its share
                if mine:
                    u = newton_schulz(torch.stack([self.matrices[i].grad.lerp(self.mom[i], 0.95) for i in mine])).float()
                    for k, i in enumerate(mine):
                        update[i].copy_(u[k])
            all_sum(list(update.values()), self.world)
            for i in live:
                rows, cols = self.matrices[i].shape
                self.matrices[i].mul_(1 - lr * self.wd).add_(update[i], alpha=-lr * math.sqrt(max(1.0, rows / cols)))

    def state_dict(self):
        return {"mom": self.mom, "adam": self.adam.state_dict()}

    def load_state_dict(self, s):
        for a, b in zip(self.mom, s["mom"]):
            a.copy_(b)
        self.adam.load_state_dict(s["adam"])


def newton_schulz(g):
    x = g.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.mT if tall else x


def all_sum(tensors, world):
    if world > 1:
        flat = torch.cat([t.reshape(-1) for t in tensors])
        torch.distributed.all_reduce(flat)
        at = 0
        for t in tensors:
            t.copy_(flat[at:at + t.numel()].view_as(t))
            at += t.numel()


# -------------------------------------------------------------------- phases
class Run:
    def __init__(self, args):
        self.args = args
        os.makedirs(args.run, exist_ok=True)
        os.makedirs(args.out, exist_ok=True)
        self.log_file = open(os.path.join(args.run, "log.jsonl"), "a")

    def path(self, name):
        return os.path.join(self.args.run, name)

    def log(self, **kw):
        line = json.dumps(kw)
        self.log_file.write(line + "\n")
        self.log_file.flush()
        print(time.strftime("%H:%M:%S"), line, flush=True)

    def save(self, name, obj):
        torch.save(obj, self.path(name + ".tmp"))
        os.replace(self.path(name + ".tmp"), self.path(name))

    def load(self, name):
        return torch.load(self.path(name), map_location="cpu") if os.path.exists(self.path(name)) else None

    def rng(self, phase, step):
        return random.Random(f"{self.args.seed} {phase} {step}")


def vq_scene(rng):
    k = rng.random()
    if k < 0.6:
        return D.sample_caption(rng)[1]
    return D.scene(rng, [D.any_pair(rng) for _ in range(rng.choice((2, 3, 4, 4)))])


def train_vq(run, model, steps, batch=24):
    """Codes are supervised: every distinct on-grid patch has its own code; spare codes learn off-grid patches."""
    vq = model.model.vqmodel
    E = vq.quantize.embedding.weight
    opt = torch.optim.AdamW([p for n, p in vq.named_parameters()], lr=2e-3, betas=(0.9, 0.98), weight_decay=1e-4)
    ema = {k: v.clone() for k, v in vq.state_dict().items()}
    start, idle = 0, torch.zeros(CODES)
    s = run.load("vq.pt")
    if s:
        vq.load_state_dict(s["model"]); opt.load_state_dict(s["opt"]); ema, start, idle = s["ema"], s["step"], s["idle"]
    vq.train()
    off = batch // 6
    on = batch - off
    bg = torch.tensor(D.BACKGROUND).float().view(1, 3, 1, 1) / 127.5 - 1
    t0 = time.time()
    for step in range(start, steps):
        rng = run.rng("vq", step)
        scenes = [vq_scene(rng) for _ in range(on)] + [loose_scene(rng, True) for _ in range(off)]
        pics = [D.draw(o) for o in scenes]
        x = pixels(pics)
        label = torch.from_numpy(np.stack([known_codes(p) for p in pics]))
        free = label[on:].reshape(-1) < 0
        with torch.autocast("cpu", torch.bfloat16, enabled=run.args.bf16):
            z = vq.quant_conv(vq.encoder(x)).float()
            z = F.normalize(z.permute(0, 2, 3, 1), dim=-1)
            En = F.normalize(E, dim=-1)
            logits = 24.0 * z @ En.T
            w = torch.ones(CODES)
            w[0] = 0.3
            ce = F.cross_entropy(logits.reshape(-1, CODES), label.reshape(-1), weight=w, ignore_index=-1)
            ids = torch.where(label[on:] < 0, logits[on:].argmax(-1), label[on:])
            q_on = En[label[:on]]
            q_off = En[ids].detach()
            q = torch.cat([q_on, z[on:] + (q_off - z[on:]).detach()])
            commit = (1 - (z[on:] * q_off).sum(-1)).mean()
            y = vq.decoder(vq.post_quant_conv(q.permute(0, 3, 1, 2).contiguous())).float()
        fg = ((x - bg).abs().amax(1, keepdim=True) > 0.02).float()
        weight = 1 + 3 * F.max_pool2d(fg, 5, 1, 2)
        d = (y - x).abs()
        rec_on = (weight[:on] * (d[:on] + 2 * d[:on] ** 2)).mean()
        rec_off = (weight[on:] * (d[on:] + 2 * d[on:] ** 2)).mean()
        edge = sum((torch.diff(y, dim=k) - torch.diff(x, dim=k)).abs().mean() for k in (2, 3))
        loss = 2 * rec_on + 0.5 * rec_off + edge + ce + 0.1 * commit
        lr = min(1, (step + 1) / 30) * max(0.01, 1 - step / steps)
        for g in opt.param_groups:
            g["lr"] = 2e-3 * lr
        opt.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(vq.parameters(), 1.0)
        opt.step()
        with torch.no_grad():                                   # spare codes follow the off-grid latents
            flat, fid = z[on:].reshape(-1, 8)[free], ids.reshape(-1)[free]
            count = torch.bincount(fid, minlength=CODES).float()
            total = torch.zeros(CODES, 8).index_add_(0, fid, flat)
            idle = torch.where(count > 0, torch.zeros_like(idle), idle + 1)
            move = (count > 0) & (torch.arange(CODES) >= USED)
            E[move] = F.normalize(0.9 * En[move] + 0.1 * total[move] / count[move, None], dim=-1)
            if step < 0.6 * steps:
                dead = ((idle > 20) & (torch.arange(CODES) >= USED)).nonzero().flatten()[:8]
                far = flat[logits[on:].amax(-1).reshape(-1)[free].argsort()[:len(dead)]]
                E[dead[:len(far)]] = far
                idle[dead] = 0
            E.copy_(F.normalize(E, dim=-1))
            k = min(0.995, step / (step + 20))
            for n, v in vq.state_dict().items():
                ema[n].lerp_(v, 1 - k) if n != "quantize.embedding.weight" else ema[n].copy_(v)
        if step % 20 == 0 or step == steps - 1:
            acc = (logits[:on].argmax(-1) == label[:on]).float()
            sh = acc[label[:on] > 0].mean().item()
            run.log(phase="vq", step=step, loss=loss.item(), rec=rec_on.item(), rec_off=rec_off.item(), ce=ce.item(),
                    acc=acc.mean().item(), acc_shapes=sh, norm=norm.item(), t=round(time.time() - t0, 1))
        if step % 100 == 99 or step == steps - 1:
            run.save("vq.pt", {"model": vq.state_dict(), "opt": opt.state_dict(), "ema": ema, "step": step + 1, "idle": idle})
    vq.load_state_dict(ema)
    with torch.no_grad():
        vq.quantize.embedding.weight.copy_(F.normalize(vq.quantize.embedding.weight, dim=-1))
    vq.eval().requires_grad_(False)
    return vq


@torch.no_grad()
def vq_ceiling(model, seed, n=300):
    rng = random.Random(f"{seed} ceiling")
    right = same = total = 0
    err = 0.0
    for _ in range(n // 50):
        scenes = [D.sample_caption(rng)[1] for _ in range(50)]
        pics = [D.draw(o) for o in scenes]
        ids = model.model.vqmodel.encode(pixels(pics)).image_tokens.view(50, -1)
        label = torch.from_numpy(np.stack([TABLE[D.patch_types(o)].reshape(-1) for o in scenes]))
        same += (ids == label).sum().item()
        total += label.numel()
        out = to_pictures(model, ids)
        for o, p, q in zip(scenes, pics, out):
            right += D.judge(q, D.expect(o))
            err += np.abs(p.astype(int) - q.astype(int)).mean()
    return {"ceiling": right / n, "ids_right": same / total, "mean_abs_error": err / n}


@torch.no_grad()
def to_pictures(model, ids):
    y = model.model.vqmodel.decode(ids).permute(0, 2, 3, 1)
    return ((y + 1) / 2 * 255).clamp(0, 255).to(torch.uint8).numpy()


def train_vision(run, model, steps, batch=64, rank=0, world=1):
    tower = model.model.vision_model
    torch.manual_seed(run.args.seed + 1)
    head = torch.nn.Linear(128, sum(n for _, n in TARGETS))
    params = list(tower.parameters()) + list(head.parameters())
    opt = torch.optim.AdamW(params, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01)
    start, s = 0, run.load("vision.pt")
    if s:
        tower.load_state_dict(s["model"]); head.load_state_dict(s["head"]); opt.load_state_dict(s["opt"]); start = s["step"]
    tower.train()
    t0 = time.time()
    for step in range(start, steps):
        rng = run.rng(f"vision {rank}", step)
        scenes = [loose_scene(rng, False) if rng.random() < 0.3 else D.question_scene(rng) for _ in range(batch // world)]
        x = pixels([D.draw(o) for o in scenes])
        labels = torch.from_numpy(np.stack([patch_classes(o) for o in scenes], 1))
        with torch.autocast("cpu", torch.bfloat16, enabled=run.args.bf16):
            h = tower(x).last_hidden_state
        parts = head(h.float()).split([n for _, n in TARGETS], -1)
        loss = sum(F.cross_entropy(p.reshape(-1, p.shape[-1]), y.reshape(-1)) for p, y in zip(parts, labels))
        for g in opt.param_groups:
            g["lr"] = run.args.vision_lr * min(1, (step + 1) / 50) * max(0.02, 1 - step / steps)
        opt.zero_grad(set_to_none=True)
        loss.backward()
        grads = [p.grad for p in params if p.grad is not None]
        all_sum(grads, world)
        torch._foreach_div_(grads, world)
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
        if rank == 0 and (step % 20 == 0 or step == steps - 1):
            on = labels[0] > 0
            run.log(phase="vision", step=step, loss=loss.item(), t=round(time.time() - t0, 1),
                    **{k: (p.argmax(-1) == y)[on].float().mean().item() for (k, _), p, y in zip(TARGETS, parts, labels)})
        if rank == 0 and (step % 200 == 199 or step == steps - 1):
            run.save("vision.pt", {"model": tower.state_dict(), "head": head.state_dict(), "opt": opt.state_dict(), "step": step + 1})
    tower.eval()


class LM:
    """The joint part: losses of a generation batch and a question batch."""

    def __init__(self, model, text, args):
        self.model, self.text = model, text
        self.mask, self.pos = question_mask(len(text.prefix))
        self.prefix = torch.tensor(text.prefix)
        self.imgpos = (self.prefix == text.img).nonzero().flatten()
        self.genpos = torch.arange(PROMPT + TOKENS - 1)[None]

        def trunk(embeds, mask, pos):
            return model.model.language_model(inputs_embeds=embeds, attention_mask=mask, position_ids=pos,
                                              use_cache=False).last_hidden_state
        self.trunk = torch.compile(trunk, dynamic=False) if args.compile else trunk

    def generation(self, ids, lengths, codes, targets):
        m = self.model.model
        n = len(ids)
        emb = m.language_model.embed_tokens(ids)
        img = m.generation_aligner(m.generation_embeddings(codes[:, :-1])).to(emb.dtype)
        x = torch.cat([emb, torch.zeros(n, TOKENS - 1, HIDDEN)], 1)
        at = lengths[:, None] + torch.arange(TOKENS - 1)[None]
        x = x.scatter(1, at[..., None].expand(-1, -1, HIDDEN), img)
        h = self.trunk(x, None, self.genpos)
        at = lengths[:, None] - 1 + torch.arange(TOKENS)[None]
        h = h.gather(1, at[..., None].expand(-1, -1, HIDDEN))
        logits = m.generation_head(h).float()
        loss = -(targets * logits.log_softmax(-1)).sum() / (n * TOKENS)
        floor = -torch.special.xlogy(targets, targets).sum() / (n * TOKENS)
        # Which sprite, given that there is one: this is a small part of the loss and would be learnt last.
        on = codes > 0
        some = targets[on][:, 1:]
        which = -(some * logits[on][:, 1:].log_softmax(-1)).sum() / some.sum()
        return loss, which, loss.detach() - floor

    def questions(self, pix, ids, labels, P, tower_grad):
        m = self.model.model
        n = len(ids)
        with torch.set_grad_enabled(tower_grad):
            f = m.vision_model(pix).last_hidden_state
        f = m.aligner(f)
        pre = m.language_model.embed_tokens(self.prefix)[None].expand(n, -1, -1)
        pre = pre.index_copy(1, self.imgpos, f.to(pre.dtype))
        x = torch.cat([pre, m.language_model.embed_tokens(ids)], 1)
        h = self.trunk(x, self.mask, self.pos)[:, P:]
        pick = labels >= 0
        logits = self.model.lm_head(h[pick]).float()
        loss = F.cross_entropy(logits, labels[pick])
        acc = (logits.argmax(-1) == labels[pick]).float().mean()
        return loss, acc


def lm_process(rank, args, folder):
    """One of args.threads single-threaded processes that share every batch (less waiting than threads)."""
    torch.set_num_threads(1)
    world = args.threads
    if world > 1:
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    run = Run(args)
    tok = get_tokenizer(args)
    model = build_model(tok, args.seed)
    train_vq(run, model, args.vq_steps)                # finished: this only loads it
    train_vision(run, model, args.vision_steps, rank=rank, world=world)
    if args.only == "vision":
        return
    train_lm(run, model, Text(tok), tok, args.stages, args.batch // world, args.pictures // world, rank, world)
    if rank == 0:
        export(model, tok, args.out)
    if world > 1:
        torch.distributed.barrier()


def train_lm(run, model, text, tok, plan, batch, pictures, rank, world):
    m = model.model
    m.vqmodel.requires_grad_(False)
    args = run.args
    matrices = [p for n, p in m.language_model.named_parameters() if p.dim() == 2 and "embed" not in n]
    matrices += [m.aligner.hidden_layers[0].weight, m.generation_aligner.hidden_layers[0].weight,
                 m.aligner.fc1.weight, m.generation_head.proj_out.weight]
    chosen = {id(p) for p in matrices}
    tower = list(m.vision_model.parameters())
    tower_ids = {id(p) for p in tower}
    others = [p for n, p in model.named_parameters() if not n.startswith("model.vqmodel.")
              and id(p) not in chosen and id(p) not in tower_ids]
    opt = Muon(matrices, [{"params": others, "scale": 1.0}, {"params": tower, "scale": 0.15}],
               lr=args.muon_lr, wd=args.muon_wd, adam_lr=args.adam_lr, rank=rank, world=world)
    lm = LM(model, text, args)
    trained = [(n, p) for n, p in model.named_parameters() if not n.startswith("model.vqmodel.")]
    ema = {n: p.detach().clone() for n, p in trained}
    start, s = 0, run.load("lm.pt")
    if s:
        model.load_state_dict(s["model"]); opt.load_state_dict(s["opt"]); ema, start = s["ema"], s["step"]
    one, two, three = plan
    total = one + two + three
    t0, last_export, last_eval = time.time(), time.time(), time.time()
    sums, count = {}, 0
    for step in range(start, total):
        stage = 1 if step < one else 2 if step < one + two else 3
        for n, p in trained:
            p.requires_grad_(stage == 3 or id(p) not in tower_ids)
        rng = run.rng(f"lm {rank}", step)
        pictured = generation_batch(text, rng, batch, args.drop)
        q = question_batch(text, rng, pictures)
        for p in matrices + others + tower:
            p.grad = None
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            lq, acc = lm.questions(*q, tower_grad=stage == 3)
            (args.answer_weight * lq).backward()
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            lg, lw, excess = lm.generation(*pictured)
            (3.0 * lg + args.which_weight * lw).backward()
        grads = [p.grad for p in matrices + others + tower if p.grad is not None]
        all_sum(grads, world)
        torch._foreach_div_(grads, world)
        if stage == 1:                        # adaptors and heads only: the language model stands still
            for p in m.language_model.parameters():
                p.grad = None
        norm = torch.nn.utils.clip_grad_norm_([p for p in others + tower if p.grad is not None], 1.0)
        warm = min(1.0, (step + 1) / 100) if step < one + 100 else 1.0
        if one <= step < one + 100:
            warm = (step - one + 1) / 100
        left = 1 - step / total
        scale = warm * min(1.0, left / args.decay) if left < args.decay else warm
        opt.step(max(scale, 0.005))
        k = min(args.ema, (step + 1) / (step + 20))
        with torch.no_grad():
            torch._foreach_lerp_([ema[n] for n, _ in trained], [p.detach() for _, p in trained], 1 - k)
        for name, v in (("gen", lg), ("which", lw), ("excess", excess), ("answer", lq), ("acc", acc), ("norm", norm)):
            sums[name] = sums.get(name, 0.0) + v.item()
        count += 1
        if rank != 0:
            continue
        if step % 25 == 24 or step == total - 1:
            run.log(phase="lm", stage=stage, step=step + 1, **{k: round(v / count, 4) for k, v in sums.items()},
                    scale=round(scale, 3), t=round(time.time() - t0, 1))
            sums, count = {}, 0
        done = step == total - 1
        if step % 200 == 199 or done:
            run.save("lm.pt", {"model": model.state_dict(), "opt": opt.state_dict(), "ema": ema, "step": step + 1})
        if done or time.time() - last_export > 60 * args.export_minutes:
            last_export = time.time()
            with swapped(model, trained, ema):
                export(model, tok, args.out)
        if args.eval_minutes and (done or time.time() - last_eval > 60 * args.eval_minutes):
            last_eval = time.time()
            with swapped(model, trained, ema):
                import evaluate
                torch.set_num_threads(args.threads)        # the others wait
                run.log(phase="eval", step=step + 1, **evaluate.quick(model, text))
                torch.set_num_threads(1)
    with torch.no_grad():
        for n, p in trained:
            p.copy_(ema[n])


class swapped:
    """The averaged weights, for a while."""

    def __init__(self, model, trained, ema):
        self.model, self.trained, self.ema = model, trained, ema

    def swap(self):
        with torch.no_grad():
            for n, p in self.trained:
                keep = p.detach().clone()
                p.copy_(self.ema[n])
                self.ema[n].copy_(keep)

    def __enter__(self):
        self.swap()
        self.model.eval()

    def __exit__(self, *_):
        self.swap()


def arguments():
    a = argparse.ArgumentParser()
    a.add_argument("--run", required=True, help="folder for logs and intermediate state")
    a.add_argument("--out", default=os.path.join(HERE, "checkpoint"))
    a.add_argument("--seed", type=int, default=0)
    a.add_argument("--threads", type=int, default=2)
    a.add_argument("--vq-steps", type=int, default=1000)
    a.add_argument("--vision-steps", type=int, default=900)
    a.add_argument("--vision-lr", type=float, default=1e-3)
    a.add_argument("--stages", type=int, nargs=3, default=[100, 2050, 950])
    a.add_argument("--batch", type=int, default=12)
    a.add_argument("--pictures", type=int, default=16)
    a.add_argument("--muon-lr", type=float, default=0.006)
    a.add_argument("--muon-wd", type=float, default=0.1)
    a.add_argument("--adam-lr", type=float, default=1.2e-3)
    a.add_argument("--answer-weight", type=float, default=3.0)
    a.add_argument("--which-weight", type=float, default=3.0)
    a.add_argument("--drop", type=float, default=0.1)
    a.add_argument("--decay", type=float, default=0.25)
    a.add_argument("--ema", type=float, default=0.995)
    a.add_argument("--export-minutes", type=float, default=12)
    a.add_argument("--eval-minutes", type=float, default=8)
    a.add_argument("--no-bf16", dest="bf16", action="store_false")
    a.add_argument("--no-compile", dest="compile", action="store_false")
    a.add_argument("--only", choices=["init", "vq", "vision"], default=None)
    a.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    a.add_argument("--rendezvous", help=argparse.SUPPRESS)
    return a.parse_args()


def main():
    args = arguments()
    if args.rank is not None:
        return lm_process(args.rank, args, args.rendezvous)
    torch.set_num_threads(args.threads)
    run = Run(args)
    tok = get_tokenizer(args)
    model = build_model(tok, args.seed)
    if args.only == "init":
        export(model, tok, args.out)
        return
    if args.only in (None, "vq"):
        train_vq(run, model, args.vq_steps)
        if not run.load("vision.pt"):
            run.log(phase="ceiling", **vq_ceiling(model, args.seed))
    if args.only != "vq":
        with tempfile.TemporaryDirectory() as folder:
            workers = [subprocess.Popen([sys.executable, os.path.abspath(__file__), *sys.argv[1:], "--rank", str(r),
                                         "--rendezvous", folder], start_new_session=True) for r in range(args.threads)]
            try:
                codes = [w.wait() for w in workers]
            finally:
                for w in workers:
                    w.kill()
            sys.exit(max(map(abs, codes)))


if __name__ == "__main__":
    main()
