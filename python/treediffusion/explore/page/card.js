// The card of a node: what is generated, what is really there, how the node decides.

function showCard() {
  const { node } = state;
  byId("panel-node").replaceChildren(
    ...[heading(node), liveForm(), generatedImages(node), classesHere(node), realImages(node), decision(node), separation(node), ownImages(node), again(node)]
      .filter((part) => part !== null),
  );
}

function section(title, note, ...content) {
  return el("section", {}, el("h3", {}, title), note ? el("p", { class: "note" }, note) : null, ...content);
}

function heading(node) {
  const kind = node.children.length ? `${node.leafIds.length} clusters` : "one cluster";
  const counted = node.count === null ? "of the images" : `${number(node.count)} images`;
  return el(
    "header",
    { class: "head" },
    el("img", { src: tileUrl(node.mean), alt: `Mean image of ${node.name}`, title: "Mean image", class: CRISP ? "crisp" : null }),
    el("div", {}, el("h2", {}, dot(node), node.name), el("p", {}, node.parent ? kind : `the whole tree, ${kind}`)),
    el("p", { class: "share" }, el("b", {}, percent(node.share)), el("span", {}, counted)),
  );
}

function dot(node) {
  const mark = el("i", { class: "dot" });
  mark.style.background = node.colour;
  return mark;
}

// ---- generated images -------------------------------------------------------------------------

/** Those of the file, or those just drawn by the server. */
function samplesOf(node) {
  return state.made?.node === node ? state.made.samples : node.samples.map((sample, k) => ({ ...sample, seed: atlas.seed, offset: k }));
}

function generatedImages(node) {
  const samples = samplesOf(node);
  if (!samples.length) return null;
  const real = samples.some((sample) => sample.nearest !== null && sample.nearest !== undefined);
  const tiles = samples.map((sample, k) => sampleButton(node, sample, k));
  return section(
    "New images",
    seedNote(),
    el("div", { class: "grid samples", id: "samples" }, ...tiles),
    real ? el("p", { class: "note legend" }, `Below each, the nearest of ${number(atlas.total)} real images. Choose one to see where it goes.`) : null,
    state.sample === null || !samples[state.sample] ? null : inspector(samples[state.sample]),
  );
}

function seedNote() {
  if (state.made?.node === state.node) return `seed ${state.made.seed}, just drawn by the server`;
  const said = `seed ${atlas.seed}, ${atlas.steps} steps`;
  if (state.seed === atlas.seed) return said;
  return live.on ? said : `${said} (seed ${state.seed} is not in this file; a served page can draw it)`;
}

function sampleButton(node, sample, k) {
  const pressed = state.sample === k;
  const where = leafOf(sample.leaf);
  return el(
    "button",
    {
      type: "button",
      class: "sample",
      "aria-pressed": String(pressed),
      title: `seed ${sample.seed}, image ${sample.offset}: ${where.name}`,
      click: () => inspect(pressed ? null : k),
    },
    picture(sample.url ?? sample.tile, `New image ${k + 1} of ${node.name}, in ${where.name}`),
    sample.nearest === null || sample.nearest === undefined ? null : picture(sample.nearest, "the nearest real image", { class: CRISP ? "near crisp" : "near" }),
  );
}

function inspect(k) {
  if (k === null) return set({ sample: null, flow: null });
  const sample = samplesOf(state.node)[k];
  const total = Math.max(sum(sample.prob), 1e-9);
  const prob = nodeProbabilities(sample.prob.map((part) => part / total));
  set({ sample: k, flow: { prob, of: "sample", text: `Where the latents of this new image lead; it is in ${leafOf(sample.leaf).name}` } });
  const chosen = document.querySelector('.sample[aria-pressed="true"]');
  chosen?.focus({ preventScroll: true });
}

function inspector(sample) {
  const where = leafOf(sample.leaf);
  return el(
    "div",
    { class: "inspector" },
    picture(sample.url ?? sample.tile, "The chosen image, larger"),
    el(
      "div",
      {},
      el("p", {}, el("b", {}, where.name), `, seed ${sample.seed}, image ${sample.offset}`),
      bars(sample.prob, 4),
    ),
  );
}

/** The likeliest leaves as bars that lead to their cards. */
function bars(prob, most) {
  const order = prob.map((_, id) => id).sort((a, b) => prob[b] - prob[a]);
  const shown = order.slice(0, most).filter((id, k) => k === 0 || prob[id] >= 0.005);
  return el(
    "ul",
    { class: "bars" },
    ...shown.map((id) => {
      const leaf = leafOf(id);
      const bar = el("i");
      bar.style.width = `${100 * prob[id]}%`;
      bar.style.background = leaf.colour;
      return el(
        "li",
        {},
        el("button", { type: "button", click: () => select(leaf) }, leaf.name),
        el("span", { class: "track" }, bar),
        el("span", {}, percent(prob[id])),
      );
    }),
  );
}

// ---- real images ------------------------------------------------------------------------------

function realImages(node) {
  if (!node.members.length) return null;
  const note = node.children.length ? null : "from the surest to the least sure";
  const tiles = node.members.map((tile) => picture(tile, `Real image in ${node.name}`));
  return section("Real images here", note, el("div", { class: "grid" }, ...tiles));
}

function classesHere(node) {
  if (!node.classes || !node.count) return null;
  return section("Classes here", "the labels were used for nothing but this", classBar(node), classLegend(node));
}

function classBar(node) {
  const parts = node.classes.map((count, k) => {
    const part = el("i", { title: `${atlas.classes[k]}: ${number(count)}` });
    part.style.flexGrow = count;
    part.style.background = classColours[k];
    return count ? part : null;
  });
  const said = mainClasses(node).join(" and ") || "many";
  return el("div", { class: "classes", role: "img", "aria-label": `Mostly ${said}` }, ...parts);
}

function classLegend(node) {
  const order = node.classes.map((_, k) => k).sort((a, b) => node.classes[b] - node.classes[a]);
  const shown = order.filter((k) => node.classes[k] / node.count >= 0.02).slice(0, 10);
  return el(
    "ul",
    { class: "legend" },
    ...shown.map((k) => {
      const mark = el("i", { class: "dot" });
      mark.style.background = classColours[k];
      return el("li", {}, mark, atlas.classes[k], el("span", {}, percent(node.classes[k] / node.count)));
    }),
  );
}

// ---- the router and its two sides -------------------------------------------------------------

function decision(node) {
  if (!node.router) return null;
  const { left, confidence, histogram } = node.router;
  const [a, b] = node.children;
  const of = atlas.total === null ? "draws of the prior" : "images";
  // Left is left: the likelier the left child, the further to the left.
  const most = Math.max(...histogram);
  const columns = histogram.toReversed().map((share, k) => {
    const column = el("i", { title: `${percent(share)} of the ${of} go to ${a.name} with ${90 - 10 * k} to ${100 - 10 * k} %` });
    column.style.height = `${Math.max(1.5, (100 * share) / most)}%`;
    column.style.background = k < 5 ? a.colour : b.colour;
    return column;
  });
  const side = (child, share) => el("button", { type: "button", class: "child", click: () => select(child) }, dot(child), child.name, el("b", {}, percent(share)));
  return section(
    "How it decides",
    `sure of ${percent(confidence)} on average, 50 % being a guess`,
    el("div", { class: "histogram", role: "img", "aria-label": `Sends ${percent(left)} left; sure of ${percent(confidence)}` }, ...columns),
    el("div", { class: "sides" }, side(a, left), el("span", {}, "surely left … surely right"), side(b, 1 - left)),
  );
}

function separation(node) {
  if (node.children.length < 2) return null;
  const [a, b] = node.children;
  const pairs = node.pairs.map(([left, right], k) =>
    el("div", { class: "pair" }, picture(left, `Root ${k + 1} through ${a.name}`), picture(right, `Root ${k + 1} through ${b.name}`)),
  );
  return section(
    `What separates ${a.name} from ${b.name}`,
    null,
    contrast(a, b),
    pairs.length ? el("p", { class: "note legend" }, `The same latents and noise, sent left (top) and right (below):`) : null,
    pairs.length ? el("div", { class: "grid" }, ...pairs) : null,
  );
}

/** Two mean images with their difference between them. */
function contrast(a, b) {
  const figure = (image, ...words) => el("figure", {}, image, el("figcaption", {}, ...words));
  return el(
    "div",
    {},
    el(
      "div",
      { class: "contrast" },
      figure(picture(a.mean, `Mean image of ${a.name}`), dot(a), a.name),
      figure(difference(a, b), "difference"),
      figure(picture(b.mean, `Mean image of ${b.name}`), dot(b), b.name),
    ),
    el("p", { class: "note" }, el("i", { class: "more" }), `brighter in ${a.name}`, el("i", { class: "less" }), `brighter in ${b.name}`),
  );
}

const MORE = [217, 95, 2];
const LESS = [32, 113, 181];

/** Where a's mean is brighter than b's, and where it is darker; opacity is the amount. */
function difference(a, b) {
  const canvas = el("canvas", { width: W, height: H, class: CRISP ? "crisp" : null, role: "img", "aria-label": `Where ${a.name} is brighter or darker than ${b.name}` });
  const [first, second] = [tilePixels(a.mean), tilePixels(b.mean)];
  const apart = Array.from({ length: W * H }, (_, k) => sum([0, 1, 2].map((c) => first[4 * k + c] - second[4 * k + c])) / 3);
  const most = Math.max(16, ...apart.map(Math.abs));
  const image = new ImageData(W, H);
  apart.forEach((by, k) => image.data.set([...(by > 0 ? MORE : LESS), (255 * Math.abs(by)) / most], 4 * k));
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

// ---- the model's two stages, and the way to get the same images again --------------------------

function ownImages(node) {
  if (!node.roots.length) return null;
  const pairs = node.roots.map(([own, drawn]) => el("div", { class: "pair" }, picture(own, "TreeVAE's image"), picture(drawn, "The denoiser's image")));
  return section("TreeVAE, and what diffusion makes of it", "the same latents: top, the tree's own image; below, the denoiser's", el("div", { class: "grid" }, ...pairs));
}

function again(node) {
  if (!node.samples.length) return null;
  const seed = state.made?.node === node ? state.made.seed : atlas.seed;
  const many = samplesOf(node).length;
  const command = `treediffusion generate --bundle BUNDLE --node ${node.name} --seed ${seed} --num-images ${many}`;
  const copy = el("button", { type: "button", click: () => copyText(command, "command") }, "Copy");
  const link = el("button", { type: "button", click: () => copyText(location.href, "link") }, "Copy link to this view");
  return section("The same images again", null, el("div", { class: "command" }, el("code", {}, command), copy), link);
}

async function copyText(text, what) {
  try {
    await navigator.clipboard.writeText(text);
    say(`The ${what} is copied`);
  } catch {
    say(`This browser does not let the page copy; the ${what} is: ${text}`);
  }
}
