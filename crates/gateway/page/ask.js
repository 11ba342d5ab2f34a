// Asking: a question, with a picture or without, and an answer that comes word by word.

import { Trouble, base64, model, stream } from "./api.js";
import { asks } from "./asks.js";
import { drop } from "./drop.js";

/** The section that asks; gives back what takes a picture. */
export function asking(section) {
  const answer = section.querySelector(".answer");
  const say = asks(section, async (form, say, signal) => {
    answer.textContent = "";
    say("Thinking");
    const content = [];
    if (zone.file) {
      const url = `data:${zone.file.type || "image/png"};base64,${await base64(zone.file)}`;
      content.push({ type: "image_url", image_url: { url } });
    }
    content.push({ type: "text", text: form.get("question") });
    const request = { model: (await model()).model, messages: [{ role: "user", content }], stream: true };
    for await (const { data } of stream("/v1/chat/completions", request, signal)) {
      if (data === "[DONE]") return say("");
      const news = JSON.parse(data);
      if (news.error) throw new Trouble(news.error.message);
      answer.append(news.choices?.[0]?.delta?.content ?? "");
      if (news.choices?.[0]?.finish_reason === "length") answer.append("…");
    }
    throw new Trouble("The server ended before the answer was complete.");
  });
  const zone = drop(section.querySelector(".drop"), () => say(""), (text) => say(text, true));
  return (file) => zone.take(file);
}
