// The three dialogs: a clip playing, the API key, and whether to delete.

import { key } from "./api.js";
import { safe } from "./view.js";
import * as words from "./words.js";

const find = (selector) => document.querySelector(selector);
const player = find("#player");
const video = find("#player video");
const sure = find("#sure");
const keyDialog = find("#key-dialog");

let playing = null; // the job
let asked = null; // the answer to come, while the key is asked for

export function play(job) {
  playing = job;
  const url = safe(job.result.url);
  find("#player-prompt").textContent = job.request.prompt;
  find("#player .facts").textContent = words.facts(job);
  find("#player [data-do=save]").href = url;
  video.style.setProperty("--ratio", job.result.width / job.result.height);
  video.poster = safe(job.result.poster_url);
  video.src = url;
  player.showModal();
  video.focus();
  video.play().catch(() => {}); // not allowed to start by itself: the controls are there
}

export const close = () => player.close();

// What is done in the player: `act(name, job)`.
export function onPlayer(act) {
  player.addEventListener("click", ({ target }) => {
    const name = target.closest("[data-do]")?.dataset.do;
    if (target === player || name === "close") player.close();
    else if (name && name !== "save") act(name, playing);
  });
  player.addEventListener("close", () => {
    video.pause();
    video.removeAttribute("src"); // or it goes on loading
    video.load();
  });
}

// Whether the job's clip is to be deleted: a promise of true or false.
export function askWhetherToDelete(job) {
  find("#sure .what").textContent = words.short(job.request.prompt);
  sure.returnValue = "no";
  sure.showModal();
  return new Promise((answer) => {
    sure.addEventListener("close", () => answer(sure.returnValue === "yes"), { once: true });
  });
}

// Ask for the key; `error` is what was wrong with the last one. Resolves to whether one was given,
// for all who ask while the dialog is open.
export function askForKey(error) {
  asked ??= new Promise((answer) => {
    const input = find("#key");
    find("#key-error").textContent = error;
    input.setAttribute("aria-invalid", error !== "");
    input.value = "";
    keyDialog.returnValue = "";
    keyDialog.showModal();
    const closed = () => {
      const text = input.value.trim();
      input.value = "";
      asked = null;
      const given = keyDialog.returnValue === "given" && text !== "";
      if (given) key.set(text);
      answer(given);
    };
    keyDialog.addEventListener("close", closed, { once: true });
  });
  return asked;
}
