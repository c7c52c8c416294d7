// The three dialogs: the player, the API key, and the question before a deletion.

import { key } from "./api.js";
import { find, safe } from "./view.js";
import * as words from "./words.js";

const player = find("#player");
const video = find("#player video");
const sure = find("#sure");
const keyDialog = find("#key-dialog");

let playing = null; // the job
let asked = null; // a promise, while the dialog asks for the key

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
  video.play().catch(() => {}); // autoplay is not allowed: the user can press play
}

export const close = () => player.close();

// Calls `act(name, job)` for the player's buttons.
export function onPlayer(act) {
  player.addEventListener("click", ({ target }) => {
    const name = target.closest("[data-do]")?.dataset.do;
    if (target === player || name === "close") player.close();
    else if (name && name !== "save") act(name, playing);
  });
  player.addEventListener("close", () => {
    video.pause();
    video.removeAttribute("src"); // otherwise it continues to load
    video.load();
  });
}

// Ask before a deletion. Resolves to true or false.
export function confirmDeletion(job) {
  find("#sure .what").textContent = words.short(job.request.prompt);
  sure.returnValue = "no";
  sure.showModal();
  return new Promise((answer) => {
    sure.addEventListener("close", () => answer(sure.returnValue === "yes"), { once: true });
  });
}

// Ask for the API key; `error`: why the last key failed. Resolves to whether the user gave a key.
// Calls while the dialog is open share its answer.
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
