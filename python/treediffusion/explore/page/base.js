// The page's numbers as a tree of nodes, their pictures, and helpers that build elements.

const atlas = JSON.parse(document.getElementById("atlas").textContent);
const { width: W, height: H, channels: C } = atlas.image;

const byId = (id) => document.getElementById(id);
const clamp = (x, low, high) => Math.min(high, Math.max(low, x));
const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);
const number = (n) => n.toLocaleString("en");

/** A share in whole per cent; what is small but not nothing stays visible. */
function percent(share) {
  if (share > 0 && share < 0.01) return "<1 %";
  if (share > 0.99 && share < 1) return ">99 %";
  return `${Math.round(100 * share)} %`;
}

/** An element; attributes that are functions become listeners, text children stay text. */
function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null));
  return element;
}

// ---- nodes ------------------------------------------------------------------------------------

const nodes = new Map(atlas.nodes.map((node) => [node.name, { ...node, children: [] }]));
const root = nodes.get(atlas.nodes[0].name);

for (const node of nodes.values()) {
  let above = node.name.slice(0, -1);
  while (above && !nodes.has(above)) above = above.slice(0, -1);
  node.parent = nodes.get(above) ?? null;
  node.parent?.children.push(node);
}
for (const node of nodes.values()) {
  node.children.sort((a, b) => (a.name < b.name ? -1 : 1));
  node.depth = node.parent ? node.parent.depth + 1 : 0;
  node.path = node.parent ? [...node.parent.path, node] : [node];
  node.leafIds = atlas.leaves.flatMap((leaf, id) => (leaf.startsWith(node.name) ? [id] : []));
}
/** Depth first, left to right: the order of reading, and of the arrow keys. */
const inOrder = [...nodes.values()].sort((a, b) => (a.name < b.name ? -1 : 1));
const leaves = inOrder.filter((node) => !node.children.length);
const leafOf = (id) => nodes.get(atlas.leaves[id]);

/** The node of a name, or the one shown in place of it: a node with a single child is left out. */
function resolve(name) {
  if (nodes.has(name)) return nodes.get(name);
  return /^r[01]*$/.test(name ?? "") ? inOrder.find((node) => node.name.startsWith(name)) ?? null : null;
}

/** The lowest node above both, or one of them. */
function meeting(a, b) {
  return a.path.findLast((node) => b.path.includes(node));
}

/** Below a node, where most images go. */
function likeliestLeaf(node) {
  while (node.children.length) node = node.children.reduce((a, b) => (b.share > a.share ? b : a));
  return node;
}

/** Probability of every node, by name, from that of every leaf. */
function nodeProbabilities(leafProb) {
  return new Map(inOrder.map((node) => [node.name, sum(node.leafIds.map((id) => leafProb[id]))]));
}

// ---- colours ----------------------------------------------------------------------------------

/** sRGB of a colour in OKLCh, as #rrggbb: other programs read saved drawings, too. */
function oklch(lightness, chroma, hue) {
  const a = chroma * Math.cos((hue * Math.PI) / 180);
  const b = chroma * Math.sin((hue * Math.PI) / 180);
  const l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
  const linear = [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
  ];
  const bytes = linear.map((x) => {
    const light = clamp(x, 0, 1);
    return Math.round(255 * (light <= 0.0031308 ? 12.92 * light : 1.055 * light ** (1 / 2.4) - 0.055));
  });
  return `#${bytes.map((byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}

// Leaves run through the hues from left to right; a node above has the mean hue of its leaves, and
// the less colour the more of the range they take. Colours only repeat what position says.
for (const node of nodes.values()) {
  const places = node.leafIds.map((id) => leaves.findIndex((leaf) => leaf.name === atlas.leaves[id]));
  const spread = (Math.max(...places) - Math.min(...places)) / Math.max(1, leaves.length - 1);
  const middle = (Math.max(...places) + Math.min(...places) + 1) / 2 / leaves.length;
  node.colour = oklch(0.68, 0.15 * (1 - 0.82 * spread), 15 + 320 * middle);
}

const MUTED = ["#332288", "#88ccee", "#44aa99", "#117733", "#999933", "#ddcc77", "#cc6677", "#882255", "#aa4499"];
const REST = "#a8a8a8";

/** Up to ten classes by number: of more, the nine largest keep a colour. */
const classColours = (atlas.classes ?? []).map(() => REST);
if (atlas.classes) {
  const bySize = atlas.classes.map((_, k) => k).sort((a, b) => root.classes[b] - root.classes[a]);
  const kept = bySize.slice(0, MUTED.length).sort((a, b) => a - b);
  kept.forEach((k, place) => (classColours[k] = MUTED[place]));
}

// ---- pictures ---------------------------------------------------------------------------------

const sheet = new Image();
sheet.src = atlas.sprite.src;
const cutter = Object.assign(document.createElement("canvas"), { width: W, height: H });
const pen = cutter.getContext("2d", { willReadFrequently: true });
const urls = new Map();

function cut(tile) {
  const column = tile % atlas.sprite.columns;
  const row = Math.floor(tile / atlas.sprite.columns);
  pen.drawImage(sheet, column * W, row * H, W, H, 0, 0, W, H);
}

/** A tile as a picture of its own, so that saved drawings need no sheet. */
function tileUrl(tile) {
  if (!urls.has(tile)) {
    cut(tile);
    urls.set(tile, cutter.toDataURL());
  }
  return urls.get(tile);
}

/** A tile's pixels, [H * W * 4] bytes. */
function tilePixels(tile) {
  cut(tile);
  return pen.getImageData(0, 0, W, H).data;
}

/** Small pictures are shown with their pixels, larger ones smoothed. */
const CRISP = Math.max(W, H) <= 20;

function picture(source, text, attributes = {}) {
  const src = typeof source === "number" ? tileUrl(source) : source;
  return el("img", { src, alt: text, width: W, height: H, class: CRISP ? "crisp" : null, ...attributes });
}
