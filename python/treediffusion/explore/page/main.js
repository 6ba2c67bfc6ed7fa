// The state, the address that holds it, and what happens when either changes.

const LOOKS = [
  ["samples", "New", root.samples.length],
  ["real", "Real", root.members.length],
  ["mean", "Mean", true],
  ["vae", "TreeVAE", root.vae !== null],
].filter(([, , there]) => there);

const state = {
  node: root, // whose card is shown
  leaf: likeliestLeaf(root), // end of the path that the slider walks
  other: null, // compared with it
  tab: "node",
  seed: atlas.seed,
  look: LOOKS[0][0], // pictures at the nodes
  sample: null, // which of the node's images is looked at
  made: null, // images the server has just drawn
  flow: null, // an image's own probabilities, shown in place of the shares
};

/** Changes the state and shows it. */
function set(changes) {
  Object.assign(state, changes);
  if (!state.leaf.path.includes(state.node)) state.leaf = likeliestLeaf(state.node);
  if (state.tab === "compare" && !state.other) state.other = neighbour(state.node);
  show();
}

function select(node) {
  const keep = state.flow?.of === "find";
  set({ node, sample: null, made: null, flow: keep ? state.flow : null, tab: state.tab === "find" ? "node" : state.tab });
  say(describe(node));
}

/** What one would compare a node with: its sibling, for the root its first child. */
function neighbour(node) {
  return node.parent?.children.find((child) => child !== node) ?? node.parent ?? node.children[0] ?? null;
}

function show() {
  showTree();
  drawPath();
  showTabs();
  if (state.tab === "node") showCard();
  if (state.tab === "compare") showCompare();
  if (state.tab === "find") showFind();
  const flowing = byId("flowing");
  flowing.hidden = state.flow === null;
  byId("idle").hidden = state.flow !== null;
  flowing.querySelector("span").textContent = state.flow?.text ?? "";
  writeAddress();
}

function say(text) {
  byId("status").textContent = text;
}

// ---- the address ------------------------------------------------------------------------------

function writeAddress() {
  const parts = { node: state.node.name, seed: state.seed };
  if (state.tab === "compare" && state.other) parts.compare = state.other.name;
  if (state.tab === "find") parts.find = 1;
  const fragment = `#${new URLSearchParams(parts)}`;
  if (fragment !== location.hash) history.replaceState(null, "", fragment);
}

/** An address of another hand may hold anything; what is not a node is the root. */
function readAddress() {
  const parts = new URLSearchParams(location.hash.slice(1));
  const seed = Number(parts.get("seed") ?? atlas.seed);
  const other = resolve(parts.get("compare"));
  const tab = other ? "compare" : parts.has("find") ? "find" : "node";
  const node = resolve(parts.get("node")) ?? root;
  set({ node, other: other ?? state.other, tab, seed: Number.isSafeInteger(seed) && seed >= 0 ? seed : atlas.seed, sample: null, made: null, flow: null });
}

// ---- tabs, looks and themes -------------------------------------------------------------------

function showTabs() {
  for (const tab of byId("tabs").children) {
    const chosen = tab.dataset.tab === state.tab;
    tab.setAttribute("aria-selected", chosen);
    tab.setAttribute("tabindex", chosen ? 0 : -1);
    byId(`panel-${tab.dataset.tab}`).hidden = !chosen;
  }
}

function listenToTabs() {
  const tabs = [...byId("tabs").children];
  byId("tabs").addEventListener("click", (event) => {
    const tab = event.target.closest("button");
    if (tab) set({ tab: tab.dataset.tab });
  });
  byId("tabs").addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const place = tabs.findIndex((tab) => tab.dataset.tab === state.tab);
    const next = tabs[(place + step + tabs.length) % tabs.length];
    set({ tab: next.dataset.tab });
    next.focus();
  });
}

function buildLooks() {
  byId("looks").append(
    ...LOOKS.flatMap(([look, label]) => [
      el("input", { type: "radio", name: "look", id: `look-${look}`, value: look, checked: look === state.look, change: () => set({ look }) }),
      el("label", { for: `look-${look}` }, label),
    ]),
  );
}

function listenToTheme() {
  const remembered = memory("theme");
  if (remembered) document.documentElement.dataset.theme = remembered;
  byId("theme").addEventListener("click", () => {
    const dark = getComputedStyle(document.documentElement).getPropertyValue("--is-dark").trim() === "1";
    const theme = dark ? "light" : "dark";
    document.documentElement.dataset.theme = theme;
    memory("theme", theme);
  });
}

/** A browser may refuse a file from a share its storage; the page works without. */
function memory(key, value) {
  try {
    if (value !== undefined) localStorage.setItem(`treediffusion-${key}`, value);
    return localStorage.getItem(`treediffusion-${key}`);
  } catch {
    return value ?? null;
  }
}

function listenToSave() {
  byId("save").addEventListener("click", (event) => {
    const kind = event.target.dataset.save;
    if (!kind) return;
    byId("save").open = false;
    savePicture(kind);
  });
  document.addEventListener("click", (event) => {
    if (!event.target.closest("#save")) byId("save").open = false;
  });
}

// ---- start ------------------------------------------------------------------------------------

function introduce() {
  const kind = `${H}×${W} ${C === 1 ? "grey" : "colour"}`;
  const images = atlas.total === null ? "" : `${number(atlas.total)} images, `;
  byId("title").textContent = atlas.title || "A tree of images";
  byId("facts").textContent = `${leaves.length} ${leaves.length === 1 ? "cluster" : "clusters"} · ${images}${kind}${atlas.sprite.lossless ? "" : " · pictures compressed"}`;
}

async function start() {
  await sheet.decode();
  introduce();
  buildLooks();
  buildFind();
  drawTree();
  listenToTabs();
  listenToTheme();
  listenToSave();
  listenToMoves();
  byId("flowing").querySelector("button").addEventListener("click", () => set({ flow: null, sample: null }));
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault(); // the address holds the node
    byId("card").focus();
  });
  window.addEventListener("hashchange", readAddress);
  new ResizeObserver(() => {
    if (byId("stage").clientWidth === shape.room[0] && (shape.sideways || byId("stage").clientHeight === shape.room[1])) return;
    drawTree();
    show();
  }).observe(byId("stage"));
  readAddress();
  document.documentElement.dataset.ready = "yes";
  await lookForServer();
}

start();
