// Texts about jobs, and the form's choices as a request.

export const FRAME_RATE = 24;

// Width and height in pixels. All are multiples of 32. The large size uses two stages, which need
// multiples of 64.
const SHAPES = {
  "3:2": [768, 512],
  "16:9": [896, 512],
  "1:1": [640, 640],
  "2:3": [512, 768],
  "9:16": [512, 896],
};
const SIZES = { draft: [0.5, 1], standard: [1, 1], large: [2, 2] }; // factor, stages

const STAGES = {
  encode_text: "Reading the prompt",
  denoise: "Denoising",
  decode: "Decoding",
  encode: "Making the MP4",
  upload: "Uploading",
};

// The form's choices as a VideoRequest.
export function request(fields) {
  const [factor, stages] = SIZES[fields.get("size")];
  const [width, height] = SHAPES[fields.get("shape")].map((side) => side * factor);
  const seed = fields.get("seed");
  return {
    prompt: fields.get("prompt"),
    width,
    height,
    stages,
    frame_rate: FRAME_RATE,
    num_frames: 8 * Number(fields.get("length")) + 1,
    audio: fields.has("audio"),
    seed: seed ? Number(seed) : null, // null: the queue draws one, and the request stays the same
    priority: fields.get("priority"),
    model: fields.get("model") || null,
  };
}

// The inverse: fields of the form, without the seed. A size or length that the form does not have
// stays as it is chosen.
export function choices(made) {
  const shapeAt = ([factor, stages]) =>
    stages === made.stages &&
    Object.keys(SHAPES).find(
      (name) => SHAPES[name][0] * factor === made.width && SHAPES[name][1] * factor === made.height,
    );
  const size = Object.keys(SIZES).find((name) => shapeAt(SIZES[name]));
  return {
    prompt: made.prompt,
    ...(size && { size, shape: shapeAt(SIZES[size]) }),
    ...(made.frame_rate === FRAME_RATE && { length: String((made.num_frames - 1) / 8) }),
    audio: made.audio,
    seed: "",
    priority: made.priority,
    model: made.model ?? "",
  };
}

export const pixels = ({ width, height, stages }) =>
  `${width}×${height}${stages === 2 ? ", in two stages" : ""}`;

export const length = (frames, rate) => `${(frames / rate).toFixed(1)} s`;

// A duration for people: 40 s, 3 min, 2 h, 4 d.
function about(seconds) {
  if (seconds < 60) return `${Math.max(1, Math.round(seconds))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 129600 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} d`;
}

export function where(job) {
  const none = job.ready_workers === 0 ? " · no worker is ready for it" : "";
  const left = job.eta_seconds == null ? none : ` · about ${about(job.eta_seconds)} left`;
  if (job.cancel_requested) return "Stopping";
  if (job.state === "queued") {
    if (job.queue_position == null) return "Waiting";
    const ahead = job.queue_position;
    return (ahead === 0 ? "Next in the queue" : `${ahead} ahead in the queue`) + left;
  }
  if (!job.progress) return "Starting";
  const { stage, step, steps } = job.progress;
  return `${STAGES[stage] ?? stage}${steps > 1 ? ` ${step}/${steps}` : ""}${left}`;
}

const size = (made) =>
  `${made.crop_width ?? made.width}×${made.crop_height ?? made.height}`;

// Everything about the request.
export function facts({ request: made }) {
  return [
    size(made),
    length(made.num_frames, made.frame_rate),
    made.audio ? "with sound" : "no sound",
    `seed ${made.seed}`,
    ...(made.priority === "normal" ? [] : [`${made.priority} priority`]),
    made.model,
  ].join(" · ");
}

// A short form for a tile; `now` in milliseconds.
export function brief(job, now) {
  const seconds = Math.max(0, now - Date.parse(job.finished_at ?? job.submitted_at)) / 1000;
  const ago = seconds < 60 ? "just now" : `${about(seconds)} ago`;
  return [size(job.request), job.request.audio ? "with sound" : "no sound", ago].join(" · ");
}

// For screen readers, when the job's state changes.
export function announced(job) {
  const prompt = short(job.request.prompt);
  if (job.state === "queued") return `Queued. ${where(job)}. ${prompt}`;
  if (job.state === "running") return `Started: ${prompt}`;
  if (job.state === "succeeded") return `The clip is ready: ${prompt}`;
  if (job.state === "cancelled") return `Cancelled: ${prompt}`;
  return `Failed: ${prompt}. ${job.error?.message ?? ""}`;
}

// Hints for fields that the form does not have.
const HINTS = {
  timed_out: "Ask for a shorter or smaller clip.",
  expired: "Try again when more workers are free.",
};

export const hint = (error) => HINTS[error.code] ?? error.hint.replaceAll("`", "");

export const short = (text) => (text.length > 80 ? `${text.slice(0, 79)}…` : text);

// Fields of a request as the form names them.
const LABELS = {
  prompt: "Prompt",
  width: "Size",
  height: "Size",
  stages: "Size",
  num_frames: "Length",
  seed: "Seed",
  priority: "Priority",
  model: "Model",
};

export function explained(error) {
  const problems = error.problems ?? [];
  const message = problems.length
    ? `${problems.map(({ field, reason }) => `${LABELS[field] ?? field}: ${reason}`).join("; ")}.`
    : error.message;
  return [message, error.hint].filter(Boolean).join(" ");
}

export function workers(models) {
  const ready = models.reduce((sum, model) => sum + model.ready_workers, 0);
  if (ready === 0) return "No worker is ready. Clips wait in the queue.";
  return ready === 1 ? "1 worker ready" : `${ready} workers ready`;
}
