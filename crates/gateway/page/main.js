// The page: tabs, key, colours, and when to look at what changes.

import { forget, keepKey, key, model, palette } from "./api.js";
import { asking } from "./ask.js";
import { cluster } from "./cluster.js";
import { jobs } from "./jobs.js";
import { completing, painting } from "./paint.js";

/** Milliseconds between two looks. */
const LOOK = 500;

const section = (id) => document.getElementById(id);
const tabs = [...document.querySelectorAll("[role=tab]")];

function select(tab, focus = false) {
  for (const other of tabs) {
    const chosen = other === tab;
    other.setAttribute("aria-selected", chosen);
    other.tabIndex = chosen ? 0 : -1;
    section(other.getAttribute("aria-controls")).hidden = !chosen;
  }
  history.replaceState(null, "", `#${tab.getAttribute("aria-controls")}`);
  if (focus) tab.focus();
}

for (const [at, tab] of tabs.entries()) {
  tab.addEventListener("click", () => select(tab));
  tab.addEventListener("keydown", (event) => {
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tabs.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    select(tabs[(to + tabs.length) % tabs.length], true);
  });
}
const named = () => tabs.find((tab) => `#${tab.getAttribute("aria-controls")}` === location.hash);
if (named()) select(named());
addEventListener("hashchange", () => named() && select(named()));

for (const area of document.querySelectorAll("textarea")) {
  area.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) area.form.requestSubmit();
  });
}

/** Takes a finished picture to another section. */
const takers = {};
async function pass(to, file, prompt) {
  select(section(`tab-${to}`), true);
  await takers[to](file, prompt);
}
painting(section("paint"), pass);
takers.complete = completing(section("complete"), pass);
takers.ask = asking(section("ask"));
const lookAtJobs = jobs(section("jobs"));
const lookAtCluster = cluster(section("cluster"));

async function introduce() {
  const line = section("model");
  try {
    const told = await model();
    line.textContent = `${told.model}, ${told.image_size} × ${told.image_size}`;
    line.title = `${told.numerics}, digest ${told.digest}`;
    for (const field of document.querySelectorAll("[name=guidance]")) field.placeholder = told.guidance;
    // So that it is there when the first picture is.
    palette();
  } catch (error) {
    line.textContent = error.message;
  }
}

const keyField = section("key");
keyField.value = key();
keyField.addEventListener("change", () => {
  keepKey(keyField.value.trim());
  forget();
  introduce();
});
section("access").addEventListener("submit", (event) => {
  event.preventDefault();
  keyField.dispatchEvent(new Event("change"));
});

const THEMES = { auto: "those of the system", light: "light", dark: "dark" };
const themeButton = section("theme");
function colours(theme) {
  document.documentElement.dataset.theme = theme;
  themeButton.textContent = theme[0].toUpperCase() + theme.slice(1);
  themeButton.setAttribute("aria-label", `Colours: ${THEMES[theme]}`);
  localStorage.setItem("janus-theme", theme);
}
colours(Object.hasOwn(THEMES, localStorage.getItem("janus-theme")) ? localStorage.getItem("janus-theme") : "auto");
themeButton.addEventListener("click", () => {
  const names = Object.keys(THEMES);
  colours(names[(names.indexOf(document.documentElement.dataset.theme) + 1) % names.length]);
});

async function look() {
  if (!document.hidden) {
    await lookAtCluster();
    if (!section("jobs").hidden) await lookAtJobs();
  }
  setTimeout(look, LOOK);
}
introduce();
look();
