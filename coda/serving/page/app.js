// Watches a completion being denoised: every draft event names the tokens that a step changed.
"use strict";

const element = (id) => document.getElementById(id);
const canvas = element("canvas");
const NUMBERS = ["max_tokens", "steps", "block_length", "temperature", "seed"];
const HUES = [[0, 262], [0.45, 330], [0.8, 384], [1, 408]]; // as the legend of the style sheet

let run = null; // what is being shown: its cells, and the changes of every step

function say(text, bad = false) {
  element("status").textContent = text;
  element("status").classList.toggle("bad", bad);
}

// Colours

function hueAt(share) {
  const right = HUES.findIndex(([place]) => place >= share);
  if (right <= 0) return HUES[0][1];
  const [[start, from], [stop, to]] = [HUES[right - 1], HUES[right]];
  return from + ((to - from) * (share - start)) / (stop - start);
}

function paint(cell, step) {
  cell.style.setProperty("--hue", hueAt(Math.min((step - 1) / Math.max(run.total - 1, 1), 1)).toFixed(0));
}

function repaint() {
  run.cells.forEach((cell, place) => run.born[place] && paint(cell, run.born[place]));
}

// The canvas

function span(kind, text) {
  const made = document.createElement("span");
  made.className = kind;
  made.textContent = text; // never markup: the model may write anything
  return made;
}

function lay(length) {
  run.cells = Array.from({ length }, () => span("token mask", ""));
  run.born = Array(length).fill(0);
  run.total = Number(element("steps").value) || length;
  canvas.replaceChildren(span("given", run.prompt), ...run.cells, span("given", run.suffix));
}

function change({ position, text }, step, fresh) {
  const cell = run.cells[position];
  cell.textContent = text ?? "";
  cell.className = text === null ? "token mask" : text === "" ? "token end" : "token";
  run.born[position] = text === null ? 0 : run.born[position] || step; // a neighbour may complete its character later
  if (text === null) return;
  cell.title = `step ${run.born[position]}`;
  paint(cell, run.born[position]);
  if (fresh) {
    cell.classList.add("fresh");
    requestAnimationFrame(() => requestAnimationFrame(() => cell.classList.remove("fresh")));
  }
}

function count({ step, masked, length }) {
  element("step").textContent = step;
  element("masked").textContent = masked;
  element("progress").style.clipPath = `inset(0 ${(100 * masked) / length}% 0 0)`;
}

function show(draft) {
  if (draft.step === 0) {
    run.start = performance.now();
    lay(draft.length);
  }
  run.drafts.push(draft);
  draft.changes.forEach((one) => change(one, draft.step, true));
  count(draft);
  const seconds = (performance.now() - run.start) / 1000;
  element("speed").textContent = draft.step ? ((draft.length - draft.masked) / seconds).toFixed(1) : "0";
  const newest = draft.changes.length && run.cells[draft.changes[draft.changes.length - 1].position];
  if (newest && canvas.scrollHeight > canvas.clientHeight) newest.scrollIntoView({ block: "nearest" });
}

function replay(step) {
  lay(run.drafts[0].length);
  run.total = run.drafts[run.drafts.length - 1].step;
  for (const draft of run.drafts.slice(0, step + 1)) draft.changes.forEach((one) => change(one, draft.step, false));
  count(run.drafts[step]);
}

// The server

function headers() {
  const key = element("key").value;
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function refusal(response) {
  if (response.status === 401) element("key-label").hidden = false;
  const body = await response.json().catch(() => null);
  return new Error(body?.error?.message ?? `the server answered with ${response.status}`);
}

function question() {
  const asked = { stream: true, stream_drafts: true, stream_options: { include_usage: true }, alg: element("alg").value };
  for (const name of NUMBERS) if (element(name).value !== "") asked[name] = Number(element(name).value);
  const [prompt, suffix] = [element("prompt").value, element("suffix").value];
  if (element("chat").checked) return ["v1/chat/completions", { ...asked, messages: [{ role: "user", content: prompt }] }];
  return ["v1/completions", { ...asked, prompt, ...(suffix && { suffix }) }];
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (buffer + value).split("\n\n");
    buffer = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").find((line) => line.startsWith("data: "))?.slice(6);
      if (data && data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

function take(chunk) {
  if (chunk.error) throw new Error(chunk.error.message);
  if (chunk.usage) run.usage = chunk.usage;
  const choice = chunk.choices[0];
  if (!choice) return;
  if (choice.draft) show(choice.draft);
  run.text += choice.text ?? choice.delta?.content ?? "";
  run.reason = choice.finish_reason ?? run.reason;
}

function busy(yes) {
  element("stop").disabled = !yes;
  element("time").disabled = element("copy").disabled = yes || !run?.drafts.length;
}

function finish() {
  const steps = run.drafts[run.drafts.length - 1].step;
  run.total = Math.max(steps, 1);
  repaint();
  Object.assign(element("time"), { max: steps, value: steps });
  const seconds = ((performance.now() - run.start) / 1000).toFixed(1);
  const why = run.reason === "stop" ? "the text ended itself" : "the gap is full";
  say(`${run.usage.completion_tokens} tokens in ${steps} steps and ${seconds} s; ${why}.`);
}

async function denoise() {
  run?.abort.abort();
  const chat = element("chat").checked;
  const given = { prompt: chat ? "" : element("prompt").value, suffix: chat ? "" : element("suffix").value };
  const mine = (run = { ...given, abort: new AbortController(), drafts: [], cells: [], born: [], text: "", start: 0 });
  canvas.replaceChildren();
  busy(true);
  if (matchMedia("(max-width: 820px)").matches) document.querySelector("section").scrollIntoView({ behavior: "smooth" });
  say("Waiting for a place in a batch …");
  try {
    const [path, asked] = question();
    const body = JSON.stringify(asked);
    const head = { "Content-Type": "application/json", ...headers() };
    const response = await fetch(path, { method: "POST", headers: head, body, signal: mine.abort.signal });
    if (!response.ok) throw await refusal(response);
    say("Denoising …");
    for await (const chunk of events(response)) {
      if (run !== mine) return;
      take(chunk);
    }
    if (!mine.usage) throw new Error("the connection was lost");
    finish();
  } catch (error) {
    if (run !== mine) return;
    if (error.name === "AbortError") say("Stopped.");
    else say(error instanceof TypeError ? "The server cannot be reached." : error.message, true);
    if (mine.drafts.length) Object.assign(element("time"), { max: mine.drafts.length - 1, value: mine.drafts.length - 1 });
  }
  busy(false);
  if (document.activeElement === document.body) element("run").focus({ preventScroll: true });
}

async function introduce() {
  const response = await fetch("v1/models", { headers: headers() });
  if (!response.ok) throw await refusal(response);
  const [card] = (await response.json()).data;
  element("model").textContent = `${card.id} writes everywhere at once, ${card.max_model_len} tokens at most.`;
  element("chat-label").hidden = !card.chat;
  element("alg").value = card.sampler.alg;
  for (const name of ["temperature", "steps", "block_length"]) element(name).value = card.sampler[name] ?? "";
  element("max_tokens").value = Math.min(card.sampler.max_tokens, 96);
}

// The controls

function theme(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
}

theme(matchMedia("(prefers-color-scheme: dark)").matches);
element("theme").addEventListener("click", () => theme(document.documentElement.dataset.theme !== "dark"));
element("form").addEventListener("submit", (event) => { event.preventDefault(); denoise(); });
element("stop").addEventListener("click", () => run?.abort.abort());
element("time").addEventListener("input", () => replay(Number(element("time").value)));
element("copy").addEventListener("click", () => navigator.clipboard?.writeText(run.text).then(() => say("Copied."), () => say("The browser does not let this page copy.", true)));
element("chat").addEventListener("change", () => { element("suffix").disabled = element("chat").checked; });
element("key").addEventListener("change", () => introduce().then(() => say(""), (error) => say(error.message, true)));
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) element("form").requestSubmit();
  if (event.key === "Escape") run?.abort.abort();
});
introduce().catch((error) => say(error.message, true));
