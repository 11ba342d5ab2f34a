// Talking to this server: JSON, streams of events, and what went wrong, in words.

const KEY = "janus-key";

/** The API key of this tab; it ends with the tab. */
export function key() {
  return sessionStorage.getItem(KEY) ?? "";
}

export function keepKey(value) {
  if (value) sessionStorage.setItem(KEY, value);
  else sessionStorage.removeItem(KEY);
}

/** What went wrong, to be shown to a person. */
export class Trouble extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

function inWords(status, message, retry) {
  switch (status) {
    case 401: return `This server wants an API key: ${message}`;
    case 403: return `This key may not do that: ${message}`;
    case 429: return `Too much at once: ${message}. Try again in ${retry || "a few"} seconds.`;
    case 503: return `Not ready: ${message}`;
    default: return message;
  }
}

async function ask(path, { body, signal } = {}) {
  const headers = {};
  if (key()) headers.authorization = `Bearer ${key()}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  let response;
  try {
    const method = body === undefined ? "GET" : "POST";
    response = await fetch(path, { method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Trouble("The server cannot be reached.");
  }
  if (response.ok) return response;
  const answer = await response.json().catch(() => null);
  const message = answer?.error?.message ?? `${response.status} ${response.statusText}`;
  throw new Trouble(inWords(response.status, message, response.headers.get("retry-after")), response.status);
}

export async function get(path, signal) {
  return (await ask(path, { signal })).json();
}

export async function post(path, body, signal) {
  return (await ask(path, { body, signal })).json();
}

/** Events `{ name, data }` of a POST that answers with a stream; `data` is text. */
export async function* stream(path, body, signal) {
  const response = await ask(path, { body, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let piece;
    try {
      piece = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Trouble("The connection to the server was lost.");
    }
    if (piece.done) return;
    const blocks = (rest + piece.value).split(/\r?\n\r?\n/);
    rest = blocks.pop();
    for (const block of blocks) {
      let name = "message";
      const data = [];
      for (const line of block.split(/\r?\n/)) {
        if (line.startsWith("event:")) name = line.slice(6).trim();
        if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
      }
      if (data.length) yield { name, data: data.join("\n") };
    }
  }
}

/** A file's bytes in base64. */
export async function base64(file) {
  const url = await new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Trouble("The file cannot be read."));
    reader.readAsDataURL(file);
  });
  return url.slice(url.indexOf(",") + 1);
}

/** What is served; asked for once, and the colours of its codes beside it, which may take some seconds the first time. */
let described;
export function model() {
  described ??= get("/ui/api/model").catch((error) => {
    described = undefined;
    throw error;
  });
  return described;
}

let colours;
export function palette() {
  colours ??= get("/ui/api/model?palette=true")
    .then((told) => {
      if (!told.palette) throw new Trouble("no palette yet");
      return Uint8Array.from(atob(told.palette), (c) => c.charCodeAt(0));
    })
    .catch(() => {
      colours = undefined;
      return null;
    });
  return colours;
}

/** After the key changed, everything is asked again. */
export function forget() {
  described = colours = undefined;
}
