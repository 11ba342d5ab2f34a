#!/usr/bin/env python3
"""Runs Janus Cluster and its peers in turn on one machine and prints the table of benches/README.md.

    benches/vs_peers.py --venv VENV --work DIR [--install] [--only PART,...] [--isa avx2]

With --isa avx2 everybody computes as on a machine without AVX-512: ours by its flag, torch and its libraries by their
variables, llama.cpp by how it is built (so VENV and DIR are for one of both). VENV gets the Python peers (--install: pip), DIR the random checkpoint, the GGUF files, a small cargo project and
results.json, which keeps the best that every part has measured; the table is made of all of it. DIR needs 20 GB, the machine
16 GB of memory. Nothing that is built or tested needs this script.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
PEERS = ["torch", "transformers", "gguf", "safetensors", "llama-cpp-python"]
# Janus-Pro-1B.
HIDDEN, INNER, LAYERS, HEADS, CODES, WORDS = 2048, 5632, 24, 16, 16384, 102400
STEPS, CONTEXT, PROMPT = 576, 32, 636
# From the first to the last step of a picture.
CONTEXTS = [32, 330, 620]
# Us and the peers in turn.
PARTS = ["ours-bf16", "llama-bf16", "ours-q8", "llama-q8", "ours-q4", "llama-q4", "oxinfer", "transformers-bf16",
         "transformers-f32", "pictures-1", "pictures-4"]


def best(run, times=5, warm=1):
    """Milliseconds: the best of several."""
    for _ in range(warm):
        run()
    taken = []
    for _ in range(times):
        begin = time.perf_counter()
        run()
        taken.append((time.perf_counter() - begin) * 1e3)
    return min(taken)


def better(before, now):
    """The best of both, figure by figure: what else a machine does makes everything slower."""
    rises = lambda key: key.startswith("floor ") or key in ("read_gb_s", "fma_gflop_s", "gemm_gflop_s")
    least = lambda key, a, b: b if isinstance(b, str) else max(a, b) if rises(key) else min(a, b)
    return {key: least(key, before.get(key, value), value) for key, value in now.items()}


# -- ours

def bench(args, *words):
    command = [args.janus, "bench", "--arch", "janus-pro-1b", "--json", "--kv", "bf16", *words]
    if args.isa:
        command += ["--isa", args.isa]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def ours(args, weights):
    out = {}
    phases = "llm_step,prefill,siglip,vq_decode" if weights == "bf16" else "llm_step"
    report = bench(args, "--phase", phases, "--weights", weights)
    for r in report["results"]:
        if r["phase"] == "llm_step" and r["context"] == CONTEXT:
            out[f"step {weights} {r['rows']}"] = r["ms"]
            out[f"floor {weights} {r['rows']}"] = r["fraction_of_floor"]
        elif r["phase"] != "llm_step":
            out[r["phase"]] = r["ms"]
            out[f"flops {r['phase']}"] = r["flops"]
    if weights == "bf16":
        out["read_gb_s"], out["fma_gflop_s"] = report["read_gb_s"], report["fma_gflop_s"]
        # A prompt of 636 positions is the tower, and chunks of 64 through all layers.
        out["understand"] = out["siglip"] + out["prefill"] * PROMPT / 576
    return out


def pictures(args, stages):
    report = bench(args, "--phase", "picture", "--stages", stages, "--pictures", "1,4,8" if stages == "1" else "8")
    return {f"picture {r['rows'] // 2} stages {stages}": r["ms"] for r in report["results"]}


# -- llama.cpp

def gguf_file(work, kind):
    """A random llama with a head as wide as the codebook."""
    import gguf
    import numpy as np
    path = work / f"llm-{kind}.gguf"
    if path.exists():
        return path
    types = {"bf16": gguf.GGMLQuantizationType.BF16, "q8_0": gguf.GGMLQuantizationType.Q8_0,
             "q4_0": gguf.GGMLQuantizationType.Q4_0}
    files = {"bf16": gguf.LlamaFileType.MOSTLY_BF16, "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
             "q4_0": gguf.LlamaFileType.MOSTLY_Q4_0}
    partial = path.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, "llama")
    writer.add_context_length(1024)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(CODES)
    writer.add_file_type(files[kind])
    writer.add_tokenizer_model("no_vocab")
    random = np.random.default_rng(1)
    packed = {}

    def matrix(name, n, k):
        # One random matrix per shape: speed does not depend on what weights mean.
        if (n, k) not in packed:
            weight = (random.standard_normal((n, k), dtype=np.float32) * 0.02)
            packed[n, k] = gguf.quants.quantize(weight, types[kind])
        writer.add_tensor(name, packed[n, k], raw_dtype=types[kind])

    norm = np.ones(HIDDEN, dtype=np.float32)
    matrix("token_embd.weight", CODES, HIDDEN)
    for i in range(LAYERS):
        writer.add_tensor(f"blk.{i}.attn_norm.weight", norm)
        for part in ["attn_q", "attn_k", "attn_v", "attn_output"]:
            matrix(f"blk.{i}.{part}.weight", HIDDEN, HIDDEN)
        writer.add_tensor(f"blk.{i}.ffn_norm.weight", norm)
        matrix(f"blk.{i}.ffn_gate.weight", INNER, HIDDEN)
        matrix(f"blk.{i}.ffn_up.weight", INNER, HIDDEN)
        matrix(f"blk.{i}.ffn_down.weight", HIDDEN, INNER)
    writer.add_tensor("output_norm.weight", norm)
    matrix("output.weight", CODES, HIDDEN)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(path)
    return path


def llama(args, ours_name):
    import ctypes
    import llama_cpp as lc
    quiet = lc.llama_log_callback(lambda level, text, data: None)
    lc.llama_log_set(quiet, ctypes.c_void_p(0))
    lc.llama_backend_init()
    out = {"system": lc.llama_print_system_info().decode()}
    if args.isa == "avx2" and "AVX512 = 1" in out["system"]:
        raise SystemExit("llama.cpp was built with AVX-512: make VENV anew, with --install and --isa avx2")
    kind = {"bf16": "bf16", "q8": "q8_0", "q4": "q4_0"}[ours_name]
    path = gguf_file(args.work, kind)
    model = lc.llama_model_load_from_file(str(path).encode(), lc.llama_model_default_params())
    for rows in [2, 8, 16]:
        params = lc.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.n_batch, params.n_ubatch = 64 * rows, rows, 1024, 1024
        params.n_threads = params.n_threads_batch = args.threads
        context = lc.llama_init_from_model(model, params)
        memory = lc.llama_get_memory(context)
        batch = lc.llama_batch_init(rows * CONTEXT, 0, rows)

        def fill(positions, logits):
            batch.n_tokens = rows * len(positions)
            for i in range(batch.n_tokens):
                batch.token[i] = (i * 31) % CODES
                batch.pos[i] = positions[i // rows]
                batch.n_seq_id[i] = 1
                batch.seq_id[i][0] = i % rows
                batch.logits[i] = logits

        def decode():
            if lc.llama_decode(context, batch) != 0:
                raise RuntimeError("llama_decode failed")
            lc.llama_synchronize(context)

        def step():
            decode()
            for row in range(rows):
                lc.llama_memory_seq_rm(memory, row, CONTEXT - 1, -1)

        fill(range(CONTEXT - 1), 0)
        decode()
        fill([CONTEXT - 1], 1)
        out[f"step {ours_name} {rows}"] = best(step, 8, 2)
        lc.llama_batch_free(batch)
        lc.llama_free(context)
    lc.llama_model_free(model)
    return out


# -- oxinfer

OXINFER = '''
use std::time::Instant;
use oxinfer::generate::Flow;
use oxinfer::janus::{ImageOptions, Janus, JanusOptions};

fn main() {
    let dir = std::env::args().nth(1).unwrap();
    let model = Janus::load(&dir, &JanusOptions::default()).unwrap();
    for n in [1, 4] {
        let options = ImageOptions { parallel_size: n, ..Default::default() };
        let (begin, mut first, mut last, mut steps) = (Instant::now(), 0.0, 0.0, 0);
        let _ = model.generate_images("a red circle left of a blue square", &options, &mut |p| {
            last = begin.elapsed().as_secs_f64() * 1e3;
            if steps == 0 { first = last; }
            steps += 1;
            if p.step >= 33 { Flow::Stop } else { Flow::Continue }
        });
        println!("first {n} {first}");
        println!("step {n} {}", (last - first) / (steps - 1) as f64);
    }
    let ids: Vec<u32> = (0..576).map(|i| i * 31 % 16384).collect();
    let mut best = f64::INFINITY;
    for _ in 0..2 {
        let begin = Instant::now();
        model.decode_tokens_f32(&ids).unwrap();
        best = best.min(begin.elapsed().as_secs_f64() * 1e3);
    }
    println!("vq {best}");
}
'''


def oxinfer(args):
    project = args.work / "oxinfer"
    (project / "src").mkdir(parents=True, exist_ok=True)
    (project / "Cargo.toml").write_text(
        '[package]\nname = "peer"\nversion = "0.0.0"\nedition = "2021"\n[workspace]\n[dependencies]\n'
        'oxinfer = { version = "=0.0.7", default-features = false, features = ["media"] }\n')
    (project / "src/main.rs").write_text(OXINFER)
    subprocess.run(["cargo", "build", "--release", "-q"], cwd=project, check=True)
    command = [project / "target/release/peer", checkpoint(args) / "original"]
    text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    seen = {}
    for line in text.splitlines():
        *key, value = line.split()
        seen[" ".join(key)] = float(value)
    out = {"vq_decode": seen["vq"], "step bf16 2": seen["step 1"], "step bf16 8": seen["step 4"]}
    for n in [1, 4]:
        # Steps grow slower with the context; counting all of them like the first 32 favours the peer.
        out[f"picture {n}"] = seen[f"first {n}"] + (STEPS - 1) * seen[f"step {n}"] + n * seen["vq"]
    return out


# -- transformers

def transformers(args, name):
    import torch
    from transformers import DynamicCache, JanusForConditionalGeneration
    torch.set_num_threads(args.threads)
    out = {}
    dtype = {"bf16": torch.bfloat16, "f32": torch.float32}[name]
    # Where the machine is held to AVX2, torch still believes that oneDNN multiplies bf16, and that takes minutes.
    torch.backends.mkldnn.enabled = not (args.isa == "avx2" and name == "bf16")
    model = JanusForConditionalGeneration.from_pretrained(checkpoint(args) / "transformers", dtype=dtype).eval()
    inner = model.model
    with torch.inference_mode():
        for rows in [2, 8]:
            ids = torch.ones(rows, 1, dtype=torch.long)
            for context in CONTEXTS:
                cache = DynamicCache()
                for layer in range(LAYERS):
                    filled = torch.randn(2, rows, HEADS, context - 1, HIDDEN // HEADS, dtype=dtype)
                    cache.update(filled[0], filled[1], layer)

                def step():
                    x = inner.generation_aligner(inner.generation_embeddings(ids))
                    hidden = inner.language_model(inputs_embeds=x, past_key_values=cache).last_hidden_state
                    inner.generation_head(hidden[:, -1])
                    cache.crop(-1)

                out[f"step {name} {rows} {context}"] = best(step, 4)
        if not torch.backends.mkldnn.enabled:
            # Products of many rows: without instructions for bf16 it only widens them.
            return out
        ids = torch.arange(STEPS)[None] * 31 % CODES
        out[f"vq_decode {name}"] = best(lambda: inner.vqmodel.decode(ids), 2)
        pixels = torch.randn(1, 3, 384, 384, dtype=dtype)
        out[f"siglip {name}"] = best(lambda: inner.aligner(inner.vision_model(pixels).last_hidden_state), 2)
        x = torch.randn(1, PROMPT, HIDDEN, dtype=dtype)
        prompt = best(lambda: model.lm_head(inner.language_model(inputs_embeds=x).last_hidden_state[:, -1]), 1, 0)
        out[f"understand {name}"] = prompt + out[f"siglip {name}"]
        if name == "f32":
            x, w = torch.randn(576, HIDDEN), torch.randn(2 * INNER, HIDDEN)
            ms = best(lambda: torch.nn.functional.linear(x, w), 5)
            out["gemm_gflop_s"] = 2 * 576 * HIDDEN * 2 * INNER / ms / 1e6
    return out


def best_dtype(out):
    """What transformers reaches with whichever type is faster, piece by piece."""
    least = lambda *keys: min(out[key] for key in keys if key in out)
    if not out:
        return out
    for what in ["vq_decode", "siglip", "understand"]:
        out[what] = least(f"{what} bf16", f"{what} f32")
    for n in [1, 4]:
        # A parabola through three contexts (Simpson's rule).
        first, middle, last = (least(f"step bf16 {2 * n} {c}", f"step f32 {2 * n} {c}") for c in CONTEXTS)
        out[f"picture {n}"] = STEPS * (first + 4 * middle + last) / 6 + n * out["vq_decode"]
    return out


# -- the random checkpoint

def checkpoint(args):
    """Random weights of Janus-Pro-1B in both layouts, with the tokeniser of the tests."""
    folder = args.work / "checkpoint"
    if not (folder / "done").exists():
        subprocess.run([args.janus, "bench", "--arch", "janus-pro-1b", "--save", folder], check=True)
        for layout, tiny in [("original", "original-safetensors"), ("transformers", "transformers")]:
            source = ROOT / "tests/data/tiny-a" / tiny
            for file in source.iterdir():
                if file.name not in ("config.json", "model.safetensors"):
                    shutil.copy(file, folder / layout)
            config = json.loads((source / "config.json").read_text())
            (folder / layout / "config.json").write_text(json.dumps(widened(config, layout), indent=1))
        (folder / "done").touch()
    return folder


def widened(config, layout):
    """tiny-a's configuration with the sizes of Janus-Pro-1B."""
    if layout == "original":
        config["language_config"].update(hidden_size=HIDDEN, intermediate_size=INNER, num_attention_heads=HEADS,
                                         num_key_value_heads=HEADS, num_hidden_layers=LAYERS, vocab_size=WORDS,
                                         max_position_embeddings=16384)
        config["vision_config"]["params"].update(image_size=384, width=1024, layers=24, heads=16)
        config["aligner_config"]["params"].update(input_dim=1024, n_embed=HIDDEN)
        config["gen_aligner_config"]["params"].update(n_embed=HIDDEN)
        config["gen_vision_config"]["params"].update(image_token_size=CODES, ch=128, ch_mult=[1, 1, 2, 2, 4], z_channels=256)
        config["gen_head_config"]["params"].update(image_token_embed=HIDDEN, image_token_size=CODES, n_embed=HIDDEN)
    else:
        config["text_config"].update(hidden_size=HIDDEN, intermediate_size=INNER, num_attention_heads=HEADS, head_dim=128,
                                     num_key_value_heads=HEADS, num_hidden_layers=LAYERS, vocab_size=WORDS,
                                     max_position_embeddings=16384)
        config["vision_config"].update(hidden_size=1024, image_size=384, num_attention_heads=16, num_hidden_layers=24,
                                       num_image_tokens=STEPS, projection_dim=HIDDEN)
        config["vq_config"].update(base_channels=128, channel_multiplier=[1, 1, 2, 2, 4], latent_channels=256,
                                   image_token_embed_dim=HIDDEN, num_embeddings=CODES, num_patches=24,
                                   projection_dim=HIDDEN)
    return config


# -- the table

def table(results):
    join = lambda name: {key: value for part in PARTS if part.startswith(name) for key, value in results.get(part, {}).items()}
    mine, llama_cpp, ox = join("ours"), join("llama"), join("oxinfer")
    hf, whole = best_dtype(join("transformers")), join("pictures")
    rows = []

    def row(what, bar, ours_value, peer, ratio, holds, unit="ms"):
        value = lambda x: "-" if x is None else f"{x:.0f} {unit}"
        if ratio is None:
            rows.append([what, bar, value(ours_value), peer, "not measured"])
        else:
            rows.append([what, bar, value(ours_value), peer, f"{ratio:.2f} {'holds' if holds(ratio) else 'MISSED'}"])

    def at_most(what, limit, key, peer_name, peer, peer_key=None, scale=1.0):
        a, b = mine.get(key), peer.get(peer_key or key)
        ratio = a / b if a and b else None
        row(what, f"<= {limit} x {peer_name}", a, f"{b:.0f} ms" if b else "-", ratio, lambda r: r <= limit)

    if "floor bf16 2" in mine:
        row("step bf16, 2 rows", ">= 0.85 of bandwidth", mine["step bf16 2"], f"{mine['read_gb_s']:.1f} GB/s",
            mine["floor bf16 2"], lambda r: r >= 0.85)
    at_most("step bf16, 2 rows", 1.05, "step bf16 2", "llama.cpp", llama_cpp)
    for rows_ in [8, 16]:
        at_most(f"step bf16, {rows_} rows", 0.75, f"step bf16 {rows_}", "llama.cpp", llama_cpp)
    for weights in ["q8", "q4"]:
        at_most(f"step {weights}, 2 rows", 1.0, f"step {weights} 2", "llama.cpp", llama_cpp)
        at_most(f"step {weights}, 8 rows", 0.85, f"step {weights} 8", "llama.cpp", llama_cpp)
    if "prefill" in mine:
        rate, gemm = mine["flops prefill"] / mine["prefill"] / 1e6, hf.get("gemm_gflop_s")
        row("prefill, 576 rows", ">= 0.95 x f32 gemm", mine["prefill"], f"{gemm:.0f} GFLOP/s" if gemm else "-",
            rate / gemm if gemm else None, lambda r: r >= 0.95)
    at_most("VQ decode 384 x 384", 0.75, "vq_decode", "transformers", hf)
    at_most("SigLIP + aligner", 0.9, "siglip", "transformers", hf)
    at_most("understanding, 636 positions", 0.75, "understand", "transformers", hf)
    for n, bars in [(1, (1.5, 2.5)), (4, (2.2, 4.2))]:
        for name, peer, least in [("oxinfer", ox, bars[0]), ("transformers", hf, bars[1])]:
            a, b = whole.get(f"picture {n} stages 1"), peer.get(f"picture {n}")
            row(f"whole picture, {n} at once", f">= {least} x faster than {name}", a, f"{b:.0f} ms" if b else "-",
                b / a if a and b else None, lambda r, least=least: r >= least)
    one, four = whole.get("picture 8 stages 1"), whole.get("picture 8 stages 4")
    row("four stages in a process, 8 pictures", ">= 0.95 of one's", four, f"{one:.0f} ms" if one else "-",
        one / four if one and four else None, lambda r: r >= 0.95)
    print("| what | bar | ours | peer, or limit | ratio |\n|---|---|---|---|---|")
    for cells in rows:
        print("| " + " | ".join(cells) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=pathlib.Path, required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--install", action="store_true")
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--janus", default=str(ROOT / "target/release/janus"))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--isa", choices=["avx2"], help="everybody does without AVX-512")
    parser.add_argument("--rounds", type=int, default=1, help="all of it so many times; the best of each counts")
    parser.add_argument("--prepare", action="store_true", help="make files, measure nothing")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    python = args.venv / "bin/python"
    if args.install:
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", args.venv], check=True)
        # Built here, for this machine, or for one without AVX-512.
        flags = {"avx2": "-DGGML_NATIVE=OFF -DGGML_AVX512=OFF " + " ".join(
            f"-DGGML_{name}=ON" for name in ["AVX", "AVX2", "FMA", "F16C", "BMI2"])}.get(args.isa, "-DGGML_NATIVE=ON")
        subprocess.run([python, "-m", "pip", "install", "-q", "--no-binary", "llama-cpp-python", *PEERS], check=True,
                       env={**os.environ, "CMAKE_ARGS": flags})
    if not args.inside:
        limits = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
        sys.exit(subprocess.run([python, __file__, *[a for a in sys.argv[1:] if a != "--install"], "--inside"],
                                env={**os.environ, **(limits if args.isa == "avx2" else {})}).returncode)
    if args.prepare:
        checkpoint(args)
        for kind in ["bf16", "q8_0", "q4_0"]:
            gguf_file(args.work, kind)
        return
    path = args.work / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    measure = {"ours": ours, "llama": llama, "oxinfer": oxinfer, "transformers": transformers, "pictures": pictures}
    for part in [part for part in args.only.split(",") if part] * args.rounds:
        print(f"{part} ...", file=sys.stderr)
        name, *format_ = part.split("-")
        results[part] = better(results.get(part, {}), measure[name](args, *format_))
        path.write_text(json.dumps(results, indent=1))
    table(results)


if __name__ == "__main__":
    main()
