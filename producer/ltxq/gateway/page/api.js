// Calls to the gateway's `/v1/jobs`, with the API key of this tab.

const KEY = "ltxq-api-key";
const ANSWER_MS = 15000;
const TRIES = 3;

export class ApiError extends Error {
  // status: HTTP status, 0 without an answer. problems: {field, reason} of each wrong field.
  constructor(status, { message, hint = "", code = "", problems = [] }) {
    super(message);
    Object.assign(this, { status, hint, code, problems });
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (text) => sessionStorage.setItem(KEY, text),
  forget: () => sessionStorage.removeItem(KEY),
};

function headers(more = {}) {
  const known = key.get();
  return known ? { Authorization: `Bearer ${known}`, ...more } : more;
}

// Errors of a proxy in front of the gateway, by status: [message, hint].
const BY_A_PROXY = {
  404: ["There is no gateway at this address.", "Does the page's address end with a slash?"],
  413: [
    "A proxy in front of the gateway refuses a request of this size.",
    "Shorten the prompt, or raise the proxy's limit (nginx: client_max_body_size).",
  ],
  502: ["A proxy cannot reach the gateway.", "Check that the gateway runs."],
  503: ["A proxy cannot reach the gateway.", "Check that the gateway runs."],
  504: ["The gateway did not answer the proxy in front of it.", "Check that the gateway runs."],
};

async function failure(answer) {
  try {
    return new ApiError(answer.status, (await answer.json()).error);
  } catch {
    const [message, hint] = BY_A_PROXY[answer.status] ?? [
      "A proxy answered instead of the gateway.",
      "Check the proxy's settings and log.",
    ];
    return new ApiError(answer.status, { message: `${message} (Status ${answer.status}.)`, hint });
  }
}

// The body, which must have a field of that name with an object or a list; "": there is none.
async function read(answer, needs) {
  if (!needs && answer.status === 204) return null;
  const body = await answer.json().catch(() => null);
  if (needs && body?.[needs] && typeof body[needs] === "object") return body;
  const message = "The answer is not from an ltxq gateway.";
  throw new ApiError(answer.status, { message, hint: "A proxy may require a login." });
}

async function once(method, path, needs, options = {}) {
  let answer;
  try {
    answer = await fetch(`v1/${path}`, {
      method,
      cache: "no-store",
      signal: AbortSignal.timeout(ANSWER_MS),
      ...options,
      headers: headers(options.headers),
    });
  } catch {
    const message = "The gateway does not answer.";
    throw new ApiError(0, { message, hint: "Check that it runs. The page tries again by itself." });
  }
  if (!answer.ok) throw await failure(answer);
  return read(answer, needs);
}

// Send a change again if its answer was lost. That is safe: submissions have an idempotency key,
// and the other changes may be repeated. Reads are not repeated: the page reads again soon.
async function change(method, path, needs, options = {}) {
  for (let tried = 1; ; tried += 1) {
    try {
      return await once(method, path, needs, options);
    } catch (error) {
      const lost = error.status === 0 || [502, 504].includes(error.status);
      if (!lost || tried === TRIES) throw error;
      await new Promise((done) => setTimeout(done, 400 * tried));
    }
  }
}

// Idempotency keys of submissions without an answer, which may have arrived. Submitting the same
// again uses the same key and makes no second clip.
const unanswered = new Map(); // path and body → key

async function posting(path, request) {
  const body = request && JSON.stringify(request);
  const call = `${path} ${body ?? ""}`;
  const key = unanswered.get(call) ?? newKey();
  const sent = { "Idempotency-Key": key };
  if (body) sent["Content-Type"] = "application/json";
  unanswered.delete(call);
  try {
    return await change("POST", path, "request", { headers: sent, body });
  } catch (error) {
    if (error.status !== 0 && error.status < 500) throw error;
    unanswered.set(call, key);
    error.hint = "The clip may be in the queue already. Sending it again makes no second clip.";
    throw error;
  }
}

// Not randomUUID: browsers lack it on pages loaded over plain http from another host.
function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return `page-${Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}

export const submit = (request) => posting("jobs", request);
export const retry = (id) => posting(`jobs/${id}/retry`);
export const cancel = (id) => change("POST", `jobs/${id}/cancel`, "request");
export const models = () => once("GET", "models", "data");
export const get = (id) => once("GET", `jobs/${id}`, "request");

export const list = (query) => once("GET", `jobs?${new URLSearchParams(query)}`, "jobs");

export async function remove(id) {
  try {
    await change("DELETE", `jobs/${id}`, "");
  } catch (error) {
    if (error.status !== 404) throw error; // it is deleted already
  }
}

// Calls `seen` with the job at each change, until it is final or `signal` aborts. Uses fetch,
// because EventSource cannot send the API key.
export async function follow(id, signal, seen) {
  const answer = await fetch(`v1/jobs/${id}/events`, {
    headers: headers({ Accept: "text/event-stream" }),
    cache: "no-store",
    signal,
  });
  if (!answer.ok) throw await failure(answer);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value.replaceAll("\r", "");
    for (let end; (end = text.indexOf("\n\n")) >= 0; text = text.slice(end + 2)) {
      const lines = text.slice(0, end).split("\n");
      const data = lines.filter((line) => line.startsWith("data:"));
      if (lines.includes("event: error") || data.length === 0) continue;
      seen(JSON.parse(data.map((line) => line.slice(5)).join("\n")));
    }
  }
}
