#!/usr/bin/env python3
"""Loss curves from a run's log: python plot.py RUN_DIR losses.png"""

import json
import os
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def main(run, out):
    rows = {}
    with open(os.path.join(run, "log.jsonl")) as f:
        for line in f:
            r = json.loads(line)
            if "step" in r:
                rows.setdefault(r["phase"], {})[r["step"]] = r      # a resumed run logs some steps again: the last one counts
    fig, axes = plt.subplots(1, 3, figsize=(11, 3.2), dpi=75)
    with open(os.path.join(run, "log.jsonl")) as f:       # in the order of training: the shipped tower was trained in three goes
        rows["vision"] = dict(enumerate(r for r in map(json.loads, f) if r["phase"] == "vision"))
    vq, vision, lm = ([rows.get(p, {})[k] for k in sorted(rows.get(p, {}))] for p in ("vq", "vision", "lm"))
    axes[0].plot([r["step"] for r in vq], [r["rec"] for r in vq], label="reconstruction, on the grid")
    axes[0].plot([r["step"] for r in vq], [r["rec_off"] for r in vq], label="reconstruction, off the grid", lw=0.8)
    axes[0].plot([r["step"] for r in vq], [r["ce"] for r in vq], label="code cross-entropy")
    axes[0].set(title="VQ tokeniser", yscale="log", xlabel="step")
    axes[1].plot([20 * k for k in range(len(vision))], [r["loss"] for r in vision], label="patch targets")
    axes[1].set(title="vision tower", yscale="log", xlabel="step")
    axes[2].plot([r["step"] for r in lm], [r["gen"] for r in lm], label="image tokens (nats)")
    axes[2].plot([r["step"] for r in lm], [r["answer"] for r in lm], label="answers (nats)")
    for a, b in zip(lm, lm[1:]):
        if a["stage"] != b["stage"]:
            axes[2].axvline(a["step"], color="grey", lw=0.8, ls=":")
    axes[2].set(title="stages I to III", yscale="log", xlabel="step")
    for a in axes:
        a.legend(fontsize=7)
        a.grid(alpha=0.3)
    fig.tight_layout()
    fig.savefig(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
