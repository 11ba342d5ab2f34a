// Asking: a question, with a picture or without, and an answer that comes word by word.

import { Trouble, base64, model, stream } from "./api.js";
import { drop } from "./drop.js";

/** The section that asks; gives back what takes a picture. */
export function asking(section) {
  const form = section.querySelector("form");
  const status = section.querySelector(".status");
  const answer = section.querySelector(".answer");
  const stop = section.querySelector(".stop");
  let running = null;

  function say(text, problem = false) {
    status.textContent = text;
    status.classList.toggle("problem", problem);
  }
  const zone = drop(section.querySelector(".drop"), () => say(""), (text) => say(text, true));

  async function run() {
    running?.abort();
    const mine = (running = new AbortController());
    stop.hidden = false;
    answer.textContent = "";
    say("Thinking");
    try {
      const content = [];
      if (zone.file) {
        const url = `data:${zone.file.type || "image/png"};base64,${await base64(zone.file)}`;
        content.push({ type: "image_url", image_url: { url } });
      }
      content.push({ type: "text", text: new FormData(form).get("question") });
      const request = { model: (await model()).model, messages: [{ role: "user", content }], stream: true };
      for await (const { data } of stream("/v1/chat/completions", request, mine.signal)) {
        if (data === "[DONE]") return say("");
        const news = JSON.parse(data);
        if (news.error) throw new Trouble(news.error.message);
        answer.append(news.choices?.[0]?.delta?.content ?? "");
        if (news.choices?.[0]?.finish_reason === "length") answer.append("…");
      }
      throw new Trouble("The server ended before the answer was complete.");
    } catch (error) {
      if (error.name === "AbortError") {
        if (running === mine) say("Stopped");
      } else {
        say(error.message, true);
        if (error.status === 401) document.getElementById("key").focus();
      }
    } finally {
      if (running === mine) {
        running = null;
        stop.hidden = true;
      }
    }
  }

  stop.addEventListener("click", () => {
    running?.abort();
    form.querySelector("button.main").focus();
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    run();
  });
  return (file) => zone.take(file);
}
