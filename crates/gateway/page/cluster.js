// The cluster as it is now: pipelines with their stages, microbatches on their way, nodes, and what happened lately.

import { get } from "./api.js";

/** Lines of history that are kept. */
const LINES = 50;

const text = (tag, className, words) => Object.assign(document.createElement(tag), { className, textContent: words });

function layers([first, end]) {
  if (end <= first) return "";
  return end - first === 1 ? `layer ${first}` : `layers ${first}–${end - 1}`;
}

/** Dots that run along the stages, as fast as microbatches do. */
class Track {
  constructor() {
    this.canvas = document.createElement("canvas");
    this.canvas.setAttribute("aria-hidden", "true");
    this.rate = 0;
    this.phase = 0;
    this.last = 0;
  }

  /** Microbatches that were sent in so many seconds, through so many stages. */
  set(sent, seconds, stages) {
    this.stages = Math.max(1, stages);
    // Over about a second: a slow pipeline sends none between two looks.
    const weight = Math.min(1, seconds);
    this.rate += weight * (sent / seconds - this.rate);
    if (this.rate < 0.2) this.rate = 0;
  }

  draw(now) {
    const passed = Math.min(0.1, (now - this.last) / 1000);
    this.last = now;
    const { canvas } = this;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, width, height);
    if (this.rate <= 0) return;
    // Real ones are too fast for eyes: at most two passes a second are shown.
    this.phase = (this.phase + passed * Math.min(2, this.rate / this.stages)) % 1;
    const dots = Math.min(this.stages + 1, Math.max(1, Math.round(this.rate / 10)));
    context.fillStyle = getComputedStyle(canvas).color;
    for (let dot = 0; dot < dots; dot++) {
      const x = ((this.phase + dot / dots) % 1) * width;
      context.beginPath();
      context.arc(x, height / 2, height / 3, 0, 2 * Math.PI);
      context.fill();
    }
  }
}

/** The section; gives back what looks at the cluster again. */
export function cluster(section) {
  const status = section.querySelector(".status");
  const pipelines = section.querySelector(".pipelines");
  const nodes = section.querySelector(".nodes");
  const history = section.querySelector(".history");
  const tracks = new Map();
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  let before = null;

  function happened(words) {
    const time = new Date().toLocaleTimeString();
    history.prepend(text("li", "", `${time} ${words}`));
    while (history.children.length > LINES) history.lastChild.remove();
  }

  function compare(now) {
    if (!before) return;
    const byName = (seen) => new Map(seen.members.map((member) => [member.id, member]));
    const [old, fresh] = [byName(before), byName(now)];
    for (const [id, { state, pid }] of fresh) {
      if (!old.has(id)) happened(`${id} joined`);
      else if (old.get(id).pid !== pid) happened(`${id} was lost and started again`);
      else if (old.get(id).state !== state) happened(`${id} is ${state}`);
    }
    for (const id of old.keys()) if (!fresh.has(id)) happened(`${id} is gone`);
    for (const pipeline of now.pipelines) {
      const was = before.pipelines.find((other) => other.id === pipeline.id);
      if (!was) continue;
      const because = pipeline.reason ? `: ${pipeline.reason}` : "";
      // A loss may be over before anybody looked; its count stays.
      if (was.failures < pipeline.failures) happened(`pipeline ${pipeline.id} was lost${because}`);
      if (was.state !== pipeline.state) happened(`pipeline ${pipeline.id} is ${pipeline.state}${because}`);
      const [past, present] = [was, pipeline].map(({ stages }) => stages.map((stage) => stage.node));
      const [left, came] = [past.filter((node) => !present.includes(node)), present.filter((node) => !past.includes(node))];
      if (left.length) happened(`pipeline ${pipeline.id} goes on without ${left.join(", ")}`);
      if (came.length) happened(`${came.join(", ")} took a place in pipeline ${pipeline.id}`);
      if (was.epoch !== pipeline.epoch) happened(`pipeline ${pipeline.id} has epoch ${short(pipeline.epoch)}`);
      if (was.recovery_seconds !== pipeline.recovery_seconds) {
        happened(`pipeline ${pipeline.id} went on after ${pipeline.recovery_seconds.toFixed(1)} s`);
      }
    }
    if (before.leader !== now.leader) happened(now.leader ? `${now.leader} leads` : "nobody leads");
    if (before.store_reachable !== now.store_reachable) {
      happened(now.store_reachable ? "the store is back" : "the store is away: work goes on, new requests are not durable");
    }
  }

  function drawPipeline(pipeline, sent, seconds, members) {
    if (!tracks.has(pipeline.id)) tracks.set(pipeline.id, new Track());
    const track = tracks.get(pipeline.id);
    if (seconds > 0) track.set(sent, seconds, pipeline.stages.length);
    const { rate } = track;
    const box = text("div", "pipeline", "");
    box.dataset.state = pipeline.state;
    const head = text("div", "row", "");
    const speed = rate > 0 ? `${rate.toFixed(rate < 10 ? 1 : 0)} microbatches/s` : "at rest";
    head.append(
      text("span", "", `Pipeline ${pipeline.id}, epoch ${short(pipeline.epoch)}`),
      text("span", `state ${pipeline.state}`, pipeline.state),
      text("span", "faint", speed),
    );
    const line = text("div", "track", "");
    line.setAttribute("role", "list");
    line.setAttribute("aria-label", `Stages of pipeline ${pipeline.id}`);
    for (const stage of pipeline.stages) {
      const state = members.get(stage.node) ?? "gone";
      const lost = ["gone", "suspect"].includes(state);
      const made = text("div", lost ? "stage lost" : "stage", "");
      made.setAttribute("role", "listitem");
      made.append(text("div", "", stage.node), text("div", "faint", lost ? state : layers(stage.layers)));
      line.append(made);
    }
    line.append(track.canvas);
    box.append(head, line);
    if (pipeline.reason) box.append(text("div", "reason", pipeline.reason));
    if (pipeline.failures) {
      const last = pipeline.recovery_seconds ? `, the last time for ${pipeline.recovery_seconds.toFixed(1)} s` : "";
      box.append(text("div", "faint", `lost ${pipeline.failures} ${pipeline.failures === 1 ? "time" : "times"}${last}`));
    }
    return box;
  }

  function drawNode(member) {
    const item = document.createElement("li");
    const row = text("div", "row", "");
    row.append(text("span", "", member.id), text("span", `state ${member.state}`, member.state));
    const facts = [member.roles.join(", "), layers(member.layers), member.zone && `zone ${member.zone}`];
    if (member.memory_bytes) facts.push(`${(member.memory_bytes / 2 ** 30).toFixed(1)} GiB`);
    if (member.ms_per_layer) facts.push(`${member.ms_per_layer.toFixed(2)} ms a layer`);
    item.append(row, text("div", "faint", facts.filter(Boolean).join(" · ")));
    return item;
  }

  function show(now) {
    const members = new Map(now.members.map((member) => [member.id, member.state]));
    const drawn = now.pipelines.map((pipeline) => {
      const was = before?.pipelines.find((other) => other.id === pipeline.id);
      const seconds = before ? (now.at - before.at) / 1000 : 0;
      // After a change of coordinators they are counted from 0 again.
      const sent = was ? Math.max(0, pipeline.microbatches - was.microbatches) : 0;
      return drawPipeline(pipeline, sent, seconds, members);
    });
    pipelines.replaceChildren(...drawn);
    nodes.replaceChildren(...now.members.map(drawNode));
    const { running, queued, parked } = now.requests;
    const words = [`${now.leader || "nobody"} leads`, `${running} running`, `${queued} waiting`];
    if (parked) words.push(`${parked} waiting for a pipeline to come back`);
    if (!now.store_reachable) words.push("the store is away");
    // Only news are put there: it is read aloud.
    const line = words.join(" · ");
    if (status.textContent !== line) status.textContent = line;
    status.classList.remove("problem");
  }

  function animate(now) {
    if (!document.hidden && !still.matches) for (const track of tracks.values()) if (track.canvas.isConnected) track.draw(now);
    requestAnimationFrame(animate);
  }
  requestAnimationFrame(animate);

  return async () => {
    try {
      const now = await get("/ui/api/cluster");
      now.at = performance.now();
      compare(now);
      show(now);
      before = now;
    } catch (error) {
      if (status.textContent !== error.message) status.textContent = error.message;
      status.classList.add("problem");
    }
  };
}

/** An epoch's two halves: the coordinator's, and the count of placements under it. */
function short(epoch) {
  const whole = BigInt(epoch);
  return whole >> 32n ? `${whole >> 32n}.${whole & 0xffffffffn}` : `${whole}`;
}
