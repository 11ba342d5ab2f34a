// Painting and completing: a request, and pictures that appear row by row.

import { Trouble, base64, model, palette, stream } from "./api.js";
import { asks } from "./asks.js";
import { Sketch } from "./canvas.js";
import { drop } from "./drop.js";

/** A form whose pictures hang below it. `wish(form)` makes the request of its fields. */
function easel(section, wish, pass) {
  const pictures = section.querySelector(".pictures");
  return asks(section, async (form, say, signal) => {
    say("Sending");
    const begun = performance.now();
    let waits = "";
    const [told, request] = [await model(), await wish(form)];
    const frames = hang(pictures, request, told.grid, pass);
    palette().then((colours) => frames.forEach((frame) => frame.sketch.colour(colours)));
    let left = frames.length;
    for await (const { name, data } of stream("/v1/images/generations", request, signal)) {
      const news = JSON.parse(data);
      if (name === "error") throw new Trouble(news.error.message);
      if (name === "image_generation.queued") say(`Waiting: ${news.position} before it`);
      if (name === "image_generation.resumed") {
        waits = `, went on after ${news.count === 1 ? "a loss" : `${news.count} losses`}`;
        say("A part of the cluster was lost; the picture goes on");
      }
      if (name === "image_generation.progress") {
        frames[news.index].grow(news);
        if (!waits) say("Painting");
      }
      if (name === "image_generation.completed") {
        await frames[news.index].finish(news);
        left -= 1;
      }
    }
    if (left) throw new Trouble("The server ended before the picture was done.");
    say(`Done in ${((performance.now() - begun) / 1000).toFixed(1)} s${waits}`);
  });
}

/** Frames for the pictures to come. */
function hang(place, request, grid, pass) {
  place.querySelectorAll("a").forEach((link) => URL.revokeObjectURL(link.href));
  place.replaceChildren();
  return Array.from({ length: request.n }, (_, index) => {
    const figure = document.createElement("figure");
    const canvas = document.createElement("canvas");
    const progress = document.createElement("progress");
    const caption = document.createElement("figcaption");
    const title = request.n === 1 ? "Picture" : `Picture ${index + 1}`;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${title}, not begun`);
    progress.max = grid * grid;
    progress.value = 0;
    progress.setAttribute("aria-label", `${title}, progress`);
    caption.textContent = title;
    figure.append(canvas, progress, caption);
    place.append(figure);
    const sketch = new Sketch(canvas, grid);
    return {
      sketch,
      grow({ ids, known, total }) {
        sketch.add(ids);
        progress.value = known;
        canvas.setAttribute("aria-label", `${title}, ${Math.floor((100 * known) / total)} % painted`);
      },
      async finish({ b64_json, seed, sha256 }) {
        const bytes = Uint8Array.from(atob(b64_json), (c) => c.charCodeAt(0));
        const file = new File([bytes], `janus-${seed}.png`, { type: "image/png" });
        await sketch.finish(file);
        progress.remove();
        canvas.setAttribute("aria-label", `${title}: ${request.prompt}`);
        caption.textContent = `${title}, seed ${seed}`;
        caption.title = `ids ${sha256}`;
        const link = Object.assign(document.createElement("a"), { textContent: "Save", download: file.name });
        link.href = URL.createObjectURL(file);
        const button = (text, to) => {
          const made = Object.assign(document.createElement("button"), { type: "button", textContent: text });
          made.addEventListener("click", () => pass(to, file, request.prompt));
          return made;
        };
        const links = Object.assign(document.createElement("div"), { className: "links" });
        links.append(link, button("Ask about it", "ask"), button("Complete it", "complete"));
        caption.append(links);
      },
    };
  });
}

/** What the fields of a form ask for. */
function fields(form) {
  const request = { prompt: form.get("prompt"), n: Number(form.get("n")), seed: Number(form.get("seed")) };
  Object.assign(request, { stream: true, stream_ids: true });
  if (form.get("guidance") !== "") request.guidance = Number(form.get("guidance"));
  return request;
}

/** The section that paints; `pass(section, file, prompt)` takes a finished picture elsewhere. */
export function painting(section, pass) {
  easel(section, async (form) => fields(form), pass);
}

/** The section that keeps the upper part of a picture and repaints the rest; gives back what takes a picture. */
export function completing(section, pass) {
  const rows = section.querySelector("[name=rows]");
  const kept = section.querySelector("output");
  const show = () => {
    const [keep, all] = [Number(rows.value), Number(rows.max)];
    kept.textContent = `${keep} of ${all} rows`;
    zone.mark(keep / all);
  };
  const say = easel(
    section,
    async (form) => {
      if (!zone.file) throw new Trouble("Choose a picture first.");
      return { ...fields(form), keep_rows: Number(rows.value), init_image: await base64(zone.file) };
    },
    pass,
  );
  const zone = drop(section.querySelector(".drop"), show, (text) => say(text, true));
  rows.addEventListener("input", show);
  model().then(
    ({ grid }) => {
      rows.max = grid;
      rows.value = Math.floor(grid / 2);
      show();
    },
    () => {},
  );
  return (file, prompt) => {
    section.querySelector("[name=prompt]").value = prompt;
    return zone.take(file);
  };
}
