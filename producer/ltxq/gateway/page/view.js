// Jobs and clips as elements. An element is created once and then changed in place, so that it
// keeps the keyboard focus.

import * as words from "./words.js";

const EXPIRES_SOON_MS = 60_000;

export const find = (selector, within = document) => within.querySelector(selector);

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// The URL of a clip's file. Other schemes than http(s) could run scripts. A gateway that sends the
// files itself is asked by the path beside this page: it may be behind a prefix or another name.
export function safe(url) {
  if (!/^https?:/.test(url ?? "")) return "";
  return /\/(v1\/videos\/[\w-]+\/content\?.*)$/.exec(url)?.[1] ?? url;
}

export const active = (job) => job.state === "queued" || job.state === "running";

function kindOf(job) {
  if (active(job)) return "job";
  return job.state === "succeeded" ? "clip" : "ended";
}

// Prompts are cut after two lines: then there is a button for the rest.
const prompts = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    const item = target.parentElement;
    if (item && !item.classList.contains("whole")) {
      find(".more", item).hidden = target.scrollHeight <= target.clientHeight + 1;
    }
  }
});

export function toggleWhole(id) {
  const item = find(`li[data-id="${CSS.escape(id)}"]`);
  const whole = item.classList.toggle("whole");
  const button = find(".more", item);
  button.setAttribute("aria-expanded", String(whole));
  setText(button, whole ? "Show less" : "Show the whole prompt");
}

function made(job, kind) {
  const item = find(`#${kind}`).content.firstElementChild.cloneNode(true);
  item.dataset.id = job.id;
  item.dataset.kind = kind;
  setText(find(":scope > .prompt", item), job.request.prompt);
  prompts.observe(find(":scope > .prompt", item));
  for (const button of item.querySelectorAll("button:not(.more)")) {
    const name = button.dataset.do === "play" ? "Play" : button.textContent;
    button.setAttribute("aria-label", `${name}: ${words.short(job.request.prompt)}`);
  }
  return item;
}

const changed = {
  job(item, job) {
    const fraction = job.progress?.fraction ?? 0;
    setText(find(".where", item), words.where(job));
    const bar = find("progress", item);
    bar.hidden = job.state === "queued";
    bar.value = Math.round(100 * fraction);
    bar.setAttribute("aria-label", `Progress of: ${words.short(job.request.prompt)}`);
    find("button", item).hidden = job.cancel_requested;
  },
  clip(item, job) {
    const picture = find("img", item);
    const { poster_url: url, expires_at: until, num_frames, frame_rate } = job.result;
    setText(find(".length", item), words.length(num_frames, frame_rate));
    // Each answer has a newly signed URL: load the picture again only when its URL expires.
    if (!picture.src || Date.parse(item.dataset.until) < Date.now() + EXPIRES_SOON_MS) {
      picture.src = safe(url);
      item.dataset.until = until ?? "9999-12-31";
    }
  },
  ended(item, job) {
    const failed = job.state === "failed";
    item.classList.toggle("failed", failed);
    setText(find(".state", item), failed ? "Failed" : "Cancelled");
    setText(find(".message", item), failed ? (job.error?.message ?? "") : "");
    setText(find(".hint", item), failed && job.error ? words.hint(job.error) : "");
    // The same request fails again, unless its error says otherwise.
    const again = !failed || Boolean(job.error?.retryable);
    find("[data-do=retry]", item).hidden = !again;
    find("[data-do=reuse]", item).hidden = again;
  },
};

// Show exactly these jobs in the list, in this order.
function arrange(list, jobs) {
  const there = new Map([...list.children].map((item) => [item.dataset.id, item]));
  let place = list.firstElementChild;
  for (const job of jobs) {
    const kind = kindOf(job);
    let item = there.get(job.id);
    if (item?.dataset.kind !== kind) item = made(job, kind);
    else there.delete(job.id);
    const text = kind === "job" ? words.facts : words.brief;
    setText(find(":scope > .facts", item), text(job, Date.now()));
    changed[kind](item, job);
    if (item === place) place = place.nextElementSibling;
    else list.insertBefore(item, place);
  }
  for (const item of there.values()) leave(list, item);
}

// Remove an element. Keyboard focus inside it moves to the next element, or to the heading.
function leave(list, item) {
  const had = item.contains(document.activeElement);
  const next = item.nextElementSibling ?? item.previousElementSibling;
  item.remove();
  if (!had) return;
  const button = next?.isConnected && find("button:not([hidden])", next);
  (button || find("h2", list.parentElement)).focus();
}

export function show(jobs) {
  const newest = (a, b) => b.submitted_at.localeCompare(a.submitted_at) || (a.id < b.id ? 1 : -1);
  const turn = (a, b) =>
    (b.state === "running") - (a.state === "running") ||
    (a.queue_position ?? 0) - (b.queue_position ?? 0) ||
    newest(b, a);
  const queue = jobs.filter(active);
  setText(find("#queue-title .count"), queue.length ? String(queue.length) : "");
  arrange(find("#queue"), queue.sort(turn));
  arrange(find("#clips"), jobs.filter((job) => !active(job)).sort(newest));
}

export function showModels(models) {
  const line = find("#workers");
  const select = find("#model");
  setText(line, words.workers(models));
  line.classList.toggle("none", models.every((model) => model.ready_workers === 0));
  const known = new Set([...select.options].map((option) => option.value));
  for (const { id } of models) if (!known.has(id)) select.append(new Option(id, id));
}

const troubles = { action: "", queue: "" };

// Show an error of the user's last action or of the queue; "" clears it.
export function trouble(of, text) {
  troubles[of] = text;
  setText(find("#trouble"), troubles.action || troubles.queue);
}

export function formTrouble(error) {
  setText(find("#form-error"), error ? words.explained(error) : "");
  const wrong = new Set((error?.problems ?? []).map((problem) => problem.field));
  for (const field of find("#form").elements) {
    field.removeAttribute("aria-invalid");
    if (wrong.has(field.name)) field.setAttribute("aria-invalid", "true");
  }
  find("#form [aria-invalid]")?.focus();
}

// For screen readers.
export const announce = (text) => setText(find("#said"), text);
