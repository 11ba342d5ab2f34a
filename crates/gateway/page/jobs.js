// Jobs: the newest ones with their progress, a new one of prompts, and the end of one.

import { get, post } from "./api.js";

const OVER = ["succeeded", "failed", "cancelled"];

/** The section of jobs; gives back what looks at them again, and says whether any of them runs. */
export function jobs(section) {
  const form = section.querySelector("form");
  const status = section.querySelector(".status");
  const list = section.querySelector(".list");
  const rows = new Map();

  function say(text, problem = false) {
    status.textContent = text;
    status.classList.toggle("problem", problem);
  }

  async function tried(work) {
    try {
      await work();
    } catch (error) {
      say(error.status === 404 ? `There are no jobs here: ${error.message}` : error.message, true);
    }
  }

  function row(job) {
    const li = document.createElement("li");
    const head = Object.assign(document.createElement("div"), { className: "row" });
    const name = Object.assign(document.createElement("span"), { textContent: job.id });
    const state = document.createElement("span");
    const cancel = Object.assign(document.createElement("button"), { type: "button", textContent: "Cancel" });
    cancel.setAttribute("aria-label", `Cancel job ${job.id}`);
    cancel.addEventListener("click", () =>
      tried(async () => {
        await post(`/ui/api/jobs/${encodeURIComponent(job.id)}/cancel`, {});
        await look();
      }),
    );
    const progress = document.createElement("progress");
    progress.setAttribute("aria-label", `Job ${job.id}, progress`);
    head.append(name, state, cancel);
    li.append(head, progress);
    return { li, state, progress, cancel };
  }

  /** True while a job is not over. */
  async function look() {
    const found = await get("/ui/api/jobs");
    const shown = found.map((job) => {
      if (!rows.has(job.id)) rows.set(job.id, row(job));
      const { li, state, progress, cancel } = rows.get(job.id);
      const over = job.succeeded + job.failed + job.cancelled;
      const parts = [`${job.status}, ${over} of ${job.total}`];
      if (job.failed) parts.push(`${job.failed} failed`);
      if (job.error) parts.push(job.error);
      state.textContent = parts.join(", ");
      progress.max = Math.max(1, job.total);
      progress.value = over;
      cancel.hidden = OVER.includes(job.status);
      return li;
    });
    // Moved only when something is new: whoever is at a button stays there.
    if (shown.length !== list.children.length || shown.some((li, at) => li !== list.children[at])) list.replaceChildren(...shown);
    return found.some((job) => !OVER.includes(job.status));
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const fields = new FormData(form);
    const prompts = fields.get("prompts").split("\n").map((line) => line.trim()).filter(Boolean);
    const request = { prompts, seed: Number(fields.get("seed")) };
    if (fields.get("guidance") !== "") request.guidance = Number(fields.get("guidance"));
    tried(async () => {
      const job = await post("/ui/api/jobs", request);
      say(`Job ${job.id} has begun`);
      await look();
    });
  });
  return () => tried(look);
}
