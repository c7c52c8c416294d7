// The page: the form, the queue and the clips, kept as the gateway says they are.

import * as api from "./api.js";
import * as dialogs from "./dialogs.js";
import * as view from "./view.js";
import * as words from "./words.js";

const BUSY_MS = 2000; // between looks at the queue while something is under way
const IDLE_MS = 5000;
const HIDDEN_MS = 20000; // and while nobody looks
const FOLLOWED = 2; // jobs heard of at once; a browser opens six connections to a host
const PAGE = 24; // clips
const MOST = 100; // jobs in one answer

const find = (selector) => document.querySelector(selector);
const form = find("#form");

const jobs = new Map(); // by id
const heard = new Map(); // id → when an event or an action of this tab last told of it
const mine = new Map(); // id → state last announced, of what this tab submitted
const followed = new Map(); // id → AbortController
let older; // where the next page of older clips begins; null: there are no more
let sending = false;
let locked = false; // the API key is asked for, or was not given
let timer = 0;

const active = (job) => job.state === "queued" || job.state === "running";

// `asked`: when this answer was asked for, where it was read rather than heard just now.
function learn(job, asked = Infinity) {
  if (heard.get(job.id) > asked) return; // newer than that answer
  if (asked === Infinity) heard.set(job.id, performance.now());
  const before = jobs.get(job.id);
  if (before && !active(before) && active(job)) return; // final is final: that answer is old
  jobs.set(job.id, job);
  if (mine.has(job.id) && mine.get(job.id) !== job.state) {
    mine.set(job.id, job.state);
    view.announce(words.announced(job));
  }
}

function draw() {
  view.show([...jobs.values()]);
  find("#older").hidden = !older;
  follow();
}

// Hear of the foremost jobs at once; the others, and these if that fails, are looked at in turn. A
// tab that nobody sees hears none: all tabs share the six connections.
function follow() {
  const there = document.hidden ? [] : [...document.querySelectorAll("#queue > .job")];
  const foremost = there.slice(0, FOLLOWED);
  const wanted = new Set(foremost.map((item) => item.dataset.id));
  for (const [id, listening] of followed) if (!wanted.has(id)) listening.abort();
  for (const id of wanted) {
    if (followed.has(id)) continue;
    const listening = new AbortController();
    followed.set(id, listening);
    api
      .follow(id, listening.signal, (job) => {
        learn(job);
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
  const told = [...newest.jobs, ...queued.jobs, ...running.jobs];
  const ids = new Set(told.map((job) => job.id));
  const unheard = [...jobs.values()].filter((job) => active(job) && !ids.has(job.id));
  for (const job of told) learn(job, asked);
  if (unheard.length) {
    const sought = unheard.slice(0, MOST);
    const { jobs: there } = await api.list(sought.map((job) => ["id", job.id]));
    const found = new Set(there.map((job) => job.id));
    for (const job of sought) if (!found.has(job.id)) jobs.delete(job.id);
    for (const job of there) learn(job, asked);
  }
  if (older === undefined) older = newest.after;
  view.showModels((await api.models()).data);
}

// What is not among the newest, and would have to be, is gone.
function forgetDeleted(newest) {
  const there = new Set(newest.jobs.map((job) => job.id));
  const since = newest.after ? newest.jobs.at(-1).submitted_at : "";
  for (const job of jobs.values()) {
    if (!active(job) && job.submitted_at >= since && !there.has(job.id)) jobs.delete(job.id);
  }
}

async function look() {
  clearTimeout(timer);
  if (locked) return;
  try {
    await refresh();
    view.trouble("queue", "");
  } catch (error) {
    if (await unlocked(error)) return look();
    view.trouble("queue", words.explained(error));
    if (locked) return;
  }
  draw();
  const busy = [...jobs.values()].some(active);
  clearTimeout(timer);
  timer = setTimeout(look, document.hidden ? HIDDEN_MS : busy ? BUSY_MS : IDLE_MS);
}

// Where the answer was 401: ask for the key. Whether there is one now.
async function unlocked(error) {
  if (error.status !== 401) return false;
  locked = true;
  const had = api.key.get();
  api.key.forget();
  locked = !(await dialogs.askForKey(had ? "This key is not known here." : ""));
  showKey();
  return !locked;
}

function showKey() {
  const known = api.key.get();
  find("#key-button").hidden = !known && !locked;
  find("#key-button").textContent = known ? "Forget the API key" : "Enter the API key";
}

// Do something for the person; what goes wrong is shown.
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
    mine.set(job.id, job.state);
    learn(await api.cancel(job.id));
  },
  retry: async (job) => {
    const again = await api.retry(job.id);
    mine.set(again.id, "");
    learn(again);
  },
  play: async (job) => dialogs.play(await api.get(job.id)), // its URL signed anew
  reuse: async (job) => {
    dialogs.close();
    find("#prompt").value = job.request.prompt;
    find("#seed").value = "";
    find("#prompt").focus();
  },
  delete: async (job) => {
    if (!(await dialogs.askWhetherToDelete(job))) return;
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
    mine.set(job.id, "");
    learn(job);
    draw();
  } catch (error) {
    sending = false;
    if (await unlocked(error)) return submit();
    view.formTrouble(error);
  } finally {
    sending = false;
    button.removeAttribute("aria-disabled");
  }
  look();
}

async function showOlder() {
  const asked = performance.now();
  const page = await api.list([["limit", PAGE], ["after", older]]);
  older = page.after;
  for (const job of page.jobs) learn(job, asked);
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
  look();
});
document.addEventListener("visibilitychange", () => {
  if (document.hidden) follow();
  else look();
});

showChoices();
showKey();
look();
