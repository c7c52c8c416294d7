// The page: the form, the queue and the clips, kept up to date with the gateway.

import * as api from "./api.js";
import * as dialogs from "./dialogs.js";
import * as view from "./view.js";
import { active, find } from "./view.js";
import * as words from "./words.js";

const BUSY_MS = 2000; // between refreshes while a job is queued or running
const IDLE_MS = 5000;
const HIDDEN_MS = 20000; // while the tab is hidden
const FOLLOWED = 2; // event streams; a browser opens only six connections to a host
const PAGE = 24; // clips
const MOST = 100; // jobs in one answer

find("#unloaded").remove();

const form = find("#form");

const jobs = new Map(); // by id
const updated = new Map(); // id → time of the last event, or of this tab's last action
const announced = new Map(); // id → state last announced; only jobs of this tab
const followed = new Map(); // id → AbortController
let older; // start of the next page of older clips; null: no more pages
let sending = false;
let locked = false; // the gateway needs an API key, and this tab has none
let timer = 0;

// `asked`: when the request was sent that read the job; Infinity: it is newer than all of them.
function update(job, asked = Infinity) {
  if (updated.get(job.id) > asked) return; // the known state is newer
  if (asked === Infinity) updated.set(job.id, performance.now());
  const before = jobs.get(job.id);
  if (before && !active(before) && active(job)) return; // old: a final state does not change
  jobs.set(job.id, job);
  if (announced.has(job.id) && announced.get(job.id) !== job.state) {
    announced.set(job.id, job.state);
    view.announce(words.announced(job));
  }
}

function draw() {
  view.show([...jobs.values()]);
  find("#older").hidden = !older;
  follow();
}

// Follow the first jobs by events. `refresh` reads the others, and these too if events fail.
// A hidden tab follows none: all tabs share the browser's six connections.
function follow() {
  const shown = document.hidden ? [] : [...document.querySelectorAll("#queue > .job")];
  const first = shown.slice(0, FOLLOWED);
  const wanted = new Set(first.map((item) => item.dataset.id));
  for (const [id, listening] of followed) if (!wanted.has(id)) listening.abort();
  for (const id of wanted) {
    if (followed.has(id)) continue;
    const listening = new AbortController();
    followed.set(id, listening);
    api
      .follow(id, listening.signal, (job) => {
        update(job);
        draw();
      })
      .catch(() => new Promise((done) => setTimeout(done, IDLE_MS)))
      .finally(() => followed.delete(id));
  }
}

async function refresh() {
  const asked = performance.now();
  const [running, queued, newest] = await Promise.all([
    api.list([["state", "running"], ["limit", MOST]]),
    api.list([["state", "queued"], ["limit", MOST], ["order", "asc"]]),
    api.list([["limit", PAGE]]),
  ]);
  forgetDeleted(newest);
  const listed = [...newest.jobs, ...queued.jobs, ...running.jobs];
  const ids = new Set(listed.map((job) => job.id));
  const unlisted = [...jobs.values()].filter((job) => active(job) && !ids.has(job.id));
  for (const job of listed) update(job, asked);
  if (unlisted.length) {
    const sought = unlisted.slice(0, MOST);
    const { jobs: there } = await api.list(sought.map((job) => ["id", job.id]));
    const found = new Set(there.map((job) => job.id));
    for (const job of sought) if (!found.has(job.id)) jobs.delete(job.id);
    for (const job of there) update(job, asked);
  }
  if (older === undefined) older = newest.after;
  view.showModels((await api.models()).data);
}

// Remove finished jobs that are missing among the newest: they were deleted.
function forgetDeleted(newest) {
  const there = new Set(newest.jobs.map((job) => job.id));
  const since = newest.after ? newest.jobs.at(-1).submitted_at : "";
  for (const job of jobs.values()) {
    if (!active(job) && job.submitted_at >= since && !there.has(job.id)) jobs.delete(job.id);
  }
}

async function poll() {
  clearTimeout(timer);
  if (locked) return;
  try {
    await refresh();
    view.trouble("queue", "");
  } catch (error) {
    if (await unlocked(error)) return poll();
    view.trouble("queue", words.explained(error));
    if (locked) return;
  }
  draw();
  const busy = [...jobs.values()].some(active);
  clearTimeout(timer);
  timer = setTimeout(poll, document.hidden ? HIDDEN_MS : busy ? BUSY_MS : IDLE_MS);
}

// After a 401, ask for the API key. Resolves to whether this tab has a key now.
async function unlocked(error) {
  if (error.status !== 401) return false;
  locked = true;
  const had = api.key.get();
  api.key.forget();
  locked = !(await dialogs.askForKey(had ? "The gateway does not know this key." : ""));
  showKey();
  return !locked;
}

function showKey() {
  const known = api.key.get();
  find("#key-button").hidden = !known && !locked;
  find("#key-button").textContent = known ? "Forget the API key" : "Enter the API key";
}

// Run an action of the user; show its error.
async function attempt(doing) {
  view.trouble("action", "");
  try {
    await doing();
  } catch (error) {
    if (await unlocked(error)) return attempt(doing);
    view.trouble("action", words.explained(error));
  }
  draw();
}

const actions = {
  cancel: async (job) => {
    announced.set(job.id, job.state);
    update(await api.cancel(job.id));
  },
  retry: async (job) => {
    const again = await api.retry(job.id);
    announced.set(again.id, "");
    update(again);
  },
  play: async (job) => dialogs.play(await api.get(job.id)), // read again for a newly signed URL
  reuse: async (job) => {
    dialogs.close();
    for (const [name, value] of Object.entries(words.choices(job.request))) {
      const field = form.elements.namedItem(name);
      if (field.type === "checkbox") field.checked = value;
      else field.value = value;
    }
    showChoices();
    find("#prompt").focus();
  },
  whole: async (job) => view.toggleWhole(job.id),
  delete: async (job) => {
    if (!(await dialogs.confirmDeletion(job))) return;
    dialogs.close();
    await api.remove(job.id);
    jobs.delete(job.id);
    view.announce("Deleted.");
  },
};

async function submit() {
  if (sending) return;
  sending = true;
  const button = form.querySelector("[type=submit]");
  button.setAttribute("aria-disabled", "true");
  view.formTrouble(null);
  try {
    const job = await api.submit(words.request(new FormData(form)));
    announced.set(job.id, "");
    update(job);
    draw();
  } catch (error) {
    sending = false;
    if (await unlocked(error)) return submit();
    view.formTrouble(error);
  } finally {
    sending = false;
    button.removeAttribute("aria-disabled");
  }
  poll();
}

async function showOlder() {
  const asked = performance.now();
  const page = await api.list([["limit", PAGE], ["after", older]]);
  older = page.after;
  for (const job of page.jobs) update(job, asked);
}

function showChoices() {
  const chosen = words.request(new FormData(form));
  find("#pixels").textContent = words.pixels(chosen);
  const seconds = words.length(chosen.num_frames, words.FRAME_RATE);
  find("#seconds").textContent = seconds;
  find("#length").setAttribute("aria-valuetext", seconds);
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
form.addEventListener("input", showChoices);
find("#prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
});
for (const list of [find("#queue"), find("#clips")]) {
  list.addEventListener("click", ({ target }) => {
    const button = target.closest("[data-do]");
    const job = button && jobs.get(button.closest("li").dataset.id);
    if (job) attempt(() => actions[button.dataset.do](job));
  });
}
dialogs.onPlayer((name, job) => attempt(() => actions[name](job)));
find("#older").addEventListener("click", () => attempt(showOlder));
find("#key-button").addEventListener("click", () => {
  api.key.forget();
  locked = false;
  older = undefined;
  jobs.clear();
  draw();
  showKey();
  poll();
});
document.addEventListener("visibilitychange", () => {
  if (document.hidden) follow();
  else poll();
});

showChoices();
showKey();
poll();
