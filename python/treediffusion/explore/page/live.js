// A served page draws new images and lets the model assign; README.md has requests and answers.

const live = { on: false, key: null, busy: null, preview: new Map() };

const address = (path) => new URL(path, location.href);

function headers() {
  return { "Content-Type": "application/json", ...(live.key ? { Authorization: `Bearer ${live.key}` } : {}) };
}

/** A page from a file share asks nobody; a served one asks its own server whether it has this tree. */
async function lookForServer() {
  if (!location.protocol.startsWith("http")) return;
  try {
    const answer = await fetch(address("v1/tree"), { headers: headers() });
    if (answer.status === 401) return askForKey();
    const tree = answer.ok ? await answer.json() : null;
    live.on = tree !== null && tree.leaf_names?.join() === atlas.leaves.join();
  } catch {
    live.on = false;
  }
  byId("live").hidden = !live.on;
  if (!live.on) return;
  show();
  if (state.seed !== atlas.seed) generate();
}

function askForKey() {
  const given = el("input", { type: "password", autocomplete: "off", "aria-label": "Key of this server" });
  const form = el("form", { class: "key" }, given, el("button", {}, "Unlock drawing"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    live.key = given.value;
    form.remove();
    lookForServer();
  });
  byId("live").after(form);
}

async function assignByServer(url) {
  const body = JSON.stringify({ images: [url.slice(url.indexOf(",") + 1)] });
  const answer = await fetch(address("v1/assign"), { method: "POST", headers: headers(), body });
  if (!answer.ok) throw new Error(await reason(answer));
  return (await answer.json()).leaf_prob[0];
}

async function reason(answer) {
  try {
    const { error } = await answer.json();
    return error.message;
  } catch {
    return `status ${answer.status}`;
  }
}

// ---- the form ---------------------------------------------------------------------------------

const wanted = { n: 6, steps: null };

function liveForm() {
  if (!live.on) return null;
  const field = (label, id, value, most, change) =>
    el("label", {}, label, el("input", { type: "number", id, min: id === "seed" ? 0 : 1, max: most, value, required: true, change }));
  const form = el(
    "form",
    { class: "live", submit: onGenerate },
    field("images", "many", wanted.n, 64, (event) => (wanted.n = event.target.valueAsNumber)),
    field("seed", "seed", state.seed, Number.MAX_SAFE_INTEGER, (event) => set({ seed: event.target.valueAsNumber })),
    field("steps", "steps", wanted.steps ?? atlas.steps, 1000, (event) => (wanted.steps = event.target.valueAsNumber)),
    live.busy ? el("button", { type: "button", class: "main", click: () => live.busy.abort() }, "Stop") : el("button", { class: "main", id: "generate" }, "Generate"),
    el("div", { class: "previews", id: "previews" }, ...previews()),
  );
  return form;
}

function onGenerate(event) {
  event.preventDefault();
  generate();
}

function previews() {
  return live.busy ? [...live.preview.values()].map(({ url, progress }) => el("span", { class: "coming" }, picture(url, "An image on its way"), meter(progress))) : [];
}

function meter(progress) {
  const bar = el("i");
  bar.style.width = `${100 * progress}%`;
  return bar;
}

// ---- a request and its events -----------------------------------------------------------------

async function generate() {
  const { node, seed } = state;
  const request = { node: node.name, n: wanted.n, seed, num_inference_steps: wanted.steps ?? atlas.steps, stream: true };
  live.busy = new AbortController();
  live.preview.clear();
  set({ made: { node, seed, samples: [] }, sample: null });
  try {
    const answer = await fetch(address("v1/generate"), { method: "POST", headers: headers(), body: JSON.stringify(request), signal: live.busy.signal });
    if (!answer.ok) throw new Error(await reason(answer));
    for await (const { event, data } of events(answer.body)) react(event, data);
    say(`${state.made?.samples.length ?? 0} images of ${node.name} drawn`);
  } catch (fault) {
    if (fault.name !== "AbortError") say(`The server could not draw: ${fault.message}`);
  }
  live.busy = null;
  if (state.made && !state.made.samples.length) state.made = null;
  show();
}

function react(event, data) {
  const png = (text) => `data:image/png;base64,${text}`;
  if (event === "preview") {
    live.preview.set(data.index, { url: png(data.image), progress: (data.step + 1) / data.steps });
    byId("previews")?.replaceChildren(...previews());
  } else if (event === "image") {
    live.preview.delete(data.index);
    state.made?.samples.push(drawnSample(data, png(data.image)));
    show();
  } else if (event === "error") {
    throw new Error(data.message);
  }
}

/** As the file's own; of the leaves' probabilities, the server tells that of the image's leaf. */
function drawnSample({ leaf, leaf_prob, seed, offset }, url) {
  const id = atlas.leaves.indexOf(leaf);
  return { url, leaf: id, prob: atlas.leaves.map((_, k) => (k === id ? leaf_prob : 0)), nearest: null, seed, offset };
}

/** Server-sent events of a response: blocks of lines, an empty line after each. */
async function* events(body) {
  let text = "";
  for await (const part of chunks(body.pipeThrough(new TextDecoderStream()))) {
    text += part.replaceAll("\r\n", "\n");
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const lines = block.split("\n");
      const all = (name) => lines.filter((line) => line.startsWith(`${name}:`)).map((line) => line.slice(name.length + 1).trimStart());
      if (all("data").length) yield { event: all("event")[0] ?? "message", data: JSON.parse(all("data").join("\n")) };
    }
  }
}

/** Not every browser lets a stream be looped over. */
async function* chunks(stream) {
  const reader = stream.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } finally {
    reader.cancel();
  }
}
