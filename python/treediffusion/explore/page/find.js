// Where does this image go? The model answers when the page is served; the file alone lets a few
// known images vote, as `finder.py` does, and says how often that is right.

const finder = atlas.finder;
const asked = Object.assign(document.createElement("canvas"), { width: W, height: H });
const PAD = 224;
let known = null;

/** Built once, so that a drawing survives a look at another tab. */
function buildFind() {
  const panel = byId("panel-find");
  const file = el("input", { type: "file", id: "file", accept: "image/*", class: "unseen", change: (event) => readFile(event.target.files[0]) });
  const drop = el(
    "label",
    { class: "drop", for: "file" },
    C === 1 ? "Or drop an image here, paste one, or " : "Drop an image here, paste one, or ",
    el("u", {}, "choose a file"),
  );
  panel.replaceChildren(
    el("p", { class: "note method" }),
    C === 1 ? el("div", { class: "drawing" }, drawingPad(), el("div", {}, el("p", {}, "Draw with a mouse, pen or finger."), clearButton())) : "",
    el("section", { id: "answer", hidden: true }),
    drop,
    file,
    el("p", { class: "note" }, "or take one of these:"),
    el("div", { class: "grid examples" }, ...examples()),
  );
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", onDrop);
  document.addEventListener("paste", (event) => {
    const item = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
    if (item) readFile(item);
  });
}

function showFind() {
  document.querySelector("#panel-find .method").textContent = live.on
    ? "The model on this server answers."
    : approximation();
}

function approximation() {
  if (!finder) return "This file holds no images to compare with: serve it, and the model answers.";
  const known_ = `${number(finder.leaf.length)} ${finder.generated ? "generated" : "real"} images`;
  const right = finder.agreement === null ? "" : ` It agrees with the model on ${percent(finder.agreement)} of ${number(finder.heldOut)} other images.`;
  return `An approximation: this file has no model in it. The nearest of ${known_} vote, compared at ${finder.grid}×${finder.grid}.${right} A served page gives the exact answer.`;
}

/** Real images, or generated ones, from all over the tree. */
function examples() {
  const tiles = leaves.flatMap((leaf) => (leaf.members.length ? leaf.members : leaf.samples.map((s) => s.tile)).slice(1, 2));
  return tiles.slice(0, 12).map((tile) =>
    el("button", { type: "button", class: "sample", click: () => askPixels(tilePixels(tile)) }, picture(tile, "An example")),
  );
}

// ---- images from outside ----------------------------------------------------------------------

function onDrop(event) {
  event.preventDefault();
  readFile(event.dataTransfer.files[0]);
}

async function readFile(file) {
  if (!file) return;
  try {
    const bitmap = await createImageBitmap(file);
    set({ tab: "find" });
    askPicture(bitmap, bitmap.width, bitmap.height);
  } catch {
    say("That file is no image this browser can read");
  }
}

/** The middle square, scaled as the model's images are. */
function askPicture(source, width, height) {
  const side = Math.min(width, height);
  askPixels(scaled(source, [(width - side) / 2, (height - side) / 2, side, side]));
}

/** Pixels of a part (x, y, width, height) of a picture, at the model's size and on black. */
function scaled(source, part) {
  const pen = asked.getContext("2d", { willReadFrequently: true });
  pen.imageSmoothingQuality = "high";
  pen.fillRect(0, 0, W, H);
  pen.drawImage(source, ...part, 0, 0, W, H);
  return pen.getImageData(0, 0, W, H).data;
}

// ---- drawing ----------------------------------------------------------------------------------

function drawingPad() {
  const pad = el("canvas", { id: "pad", width: PAD, height: PAD, "aria-label": "Drawing pad: draw in white with a mouse, pen or finger" });
  const ink = pad.getContext("2d", { willReadFrequently: true });
  Object.assign(ink, { lineWidth: PAD / 11, lineCap: "round", lineJoin: "round", strokeStyle: "#fff" });
  // The mean image, faintly: where and how large things usually are.
  pad.style.backgroundImage = `linear-gradient(rgb(0 0 0 / 78%) 0 0), url(${tileUrl(root.mean)})`;
  let last = null;
  const place = (event) => [(event.offsetX * PAD) / pad.clientWidth, (event.offsetY * PAD) / pad.clientHeight];
  const draw = (event) => {
    const next = place(event);
    ink.beginPath();
    ink.moveTo(...last);
    ink.lineTo(...next);
    ink.stroke();
    last = next;
  };
  pad.addEventListener("pointerdown", (event) => {
    pad.setPointerCapture(event.pointerId);
    last = place(event);
    draw(event);
  });
  pad.addEventListener("pointermove", (event) => {
    if (!last) return;
    draw(event);
    // A server is asked when the pen is lifted.
    if (!live.on) askDrawing(pad);
  });
  for (const end of ["pointerup", "pointercancel"]) {
    pad.addEventListener(end, () => {
      if (last) askDrawing(pad);
      last = null;
    });
  }
  return pad;
}

/**
 * A hand draws anywhere and at any size. Taken is what is nearest to a known image: the drawing as
 * it is, or in one of three sizes with its weight where that of the mean image is.
 */
function askDrawing(pad) {
  const whole = scaled(pad, [0, 0, PAD, PAD]);
  if (!finder) return askPixels(whole);
  const [from, to] = [centreOfWeight(whole), centreOfWeight(tilePixels(root.mean))];
  const moved = [0.75, 1, 1.3].map((zoom) => {
    const side = PAD * zoom;
    return scaled(pad, [from[0] * PAD - to[0] * side, from[1] * PAD - to[1] * side, side, side]);
  });
  const all = [whole, ...moved];
  const apart = all.map((pixels) => nearestKnown(pixels)[0].distance);
  askPixels(all[apart.indexOf(Math.min(...apart))]);
}

/** Of bright pixels, as shares of width and height. */
function centreOfWeight(pixels) {
  const bright = greys(pixels);
  const total = Math.max(1, sum(bright));
  const along = sum(bright.map((b, k) => b * ((k % W) + 0.5)));
  const down = sum(bright.map((b, k) => b * (Math.floor(k / W) + 0.5)));
  return [along / total / W, down / total / H];
}

function clearButton() {
  const clear = () => {
    byId("pad").getContext("2d").clearRect(0, 0, PAD, PAD);
    byId("answer").hidden = true;
    set({ flow: null });
  };
  return el("button", { type: "button", id: "clear", click: clear }, "Clear");
}

// ---- the answer -------------------------------------------------------------------------------

let lastAsked = 0;

async function askPixels(pixels) {
  const turn = ++lastAsked;
  asked.getContext("2d").putImageData(new ImageData(new Uint8ClampedArray(pixels), W, H), 0, 0);
  let prob = null;
  let exact = live.on;
  try {
    prob = exact ? await assignByServer(asked.toDataURL()) : vote(pixels);
  } catch (fault) {
    say(`The server did not answer (${fault.message}); this is the approximation`);
    exact = false;
    prob = vote(pixels);
  }
  // A quick hand asks again before the server has answered.
  if (turn !== lastAsked || !prob) return;
  showAnswer(prob, exact, pixels);
}

function showAnswer(prob, exact, pixels) {
  const id = prob.indexOf(Math.max(...prob));
  const leaf = leafOf(id);
  const answer = byId("answer");
  answer.hidden = false;
  const invert = () => askPixels(pixels.map((byte, k) => (k % 4 === 3 ? byte : 255 - byte)));
  answer.replaceChildren(
    el("h3", {}, exact ? "The model's answer" : "Probably, by its neighbours"),
    el(
      "div",
      { class: "inspector" },
      picture(asked.toDataURL(), "Your image as the model sees it"),
      el("div", {}, bars(prob, 5), el("button", { type: "button", class: "quiet", click: invert }, "Swap dark and light")),
    ),
    el("div", { class: "grid" }, ...(leaf.members.length ? leaf.members : leaf.samples.map((s) => s.tile)).slice(0, 6).map((tile) => picture(tile, `Image in ${leaf.name}`))),
  );
  const how = exact ? "" : ", by approximation";
  set({ leaf, node: leaf, sample: null, made: null, flow: { prob: nodeProbabilities(prob), of: "find", text: `Where your image goes${how}: ${leaf.name}` } });
  say(`It goes to ${leaf.name} with ${percent(prob[id])}${how}`);
}

/** [L] the vote of the nearest known images; `finder.py` has the formula. */
function vote(pixels) {
  if (!finder) return null;
  const near = nearestKnown(pixels);
  const votes = atlas.leaves.map(() => 0);
  for (const { distance, leaf } of near) votes[leaf] += Math.exp((near[0].distance - distance) / finder.width);
  const total = sum(votes);
  return votes.map((count) => count / total);
}

/** The few known images that are nearest, the very nearest first. */
function nearestKnown(pixels) {
  known ??= knownFeatures();
  const mine = centred(features(pixels));
  return known
    .map((theirs, k) => ({ distance: 2 - 2 * sum(theirs.map((x, i) => x * mine[i])), leaf: finder.leaf[k] }))
    .sort((a, b) => a.distance - b.distance)
    .slice(0, finder.neighbours);
}

function knownFeatures() {
  const bytes = Uint8Array.from(atob(finder.features), (letter) => letter.charCodeAt(0));
  const long = C * finder.grid ** 2;
  return finder.leaf.map((_, k) => centred([...bytes.subarray(k * long, (k + 1) * long)]));
}

/** Means over the grid's fields, channel by channel, rounded to bytes. */
function features(pixels) {
  const [rows, columns] = [fields(H), fields(W)];
  const channels = C === 1 ? [greys(pixels)] : [0, 1, 2].map((c) => everyFourth(pixels, c));
  return channels.flatMap((channel) =>
    rows.flatMap((row) =>
      columns.map((column) =>
        Math.floor(0.5 + sum(row.map(([y, a]) => a * sum(column.map(([x, b]) => b * channel[y * W + x]))))),
      ),
    ),
  );
}

const everyFourth = (pixels, c) => Array.from({ length: W * H }, (_, k) => pixels[4 * k + c]);

function greys(pixels) {
  return Array.from({ length: W * H }, (_, k) => Math.round(0.299 * pixels[4 * k] + 0.587 * pixels[4 * k + 1] + 0.114 * pixels[4 * k + 2]));
}

/** For each field of a side, the pixels in it with their weights. */
function fields(side) {
  const long = side / finder.grid;
  return Array.from({ length: finder.grid }, (_, g) =>
    Array.from({ length: side }, (_, k) => [k, clamp(Math.min((g + 1) * long, k + 1) - Math.max(g * long, k), 0, 1) / long]).filter(([, part]) => part > 0),
  );
}

function centred(numbers) {
  const mean = sum(numbers) / numbers.length;
  const apart = numbers.map((x) => x - mean);
  const long = Math.hypot(...apart);
  return apart.map((x) => (long > 0 ? x / long : 0));
}
