// The drawing of the tree: flows as wide as the share of images they carry, images at the nodes.
//
// On a wide page the root is on top, on a narrow one at the left. It is a tree for screen readers
// (role tree, one tab stop, arrow keys as in the ARIA pattern for either orientation).

const CAPTION = 19;
const MARGIN = 14;
let view = { x: 0, y: 0, scale: 1 };
let shape = null;

/** Sizes for the room there is, and the place of every node's box. */
function measure() {
  const stage = byId("stage");
  const width = stage.clientWidth;
  const across = layOut();
  const deep = Math.max(...inOrder.map((node) => node.depth));
  const sideways = width < 640;
  shape = sideways ? sizeSideways(width, deep) : sizeUpright(width, stage.clientHeight, across, deep);
  const { box, slot, level } = shape;
  for (const node of inOrder) {
    const [along, down] = [node.across * slot, node.depth * level];
    [node.x, node.y] = sideways ? [down, along] : [along, down];
  }
  shape.sideways = sideways;
  shape.width = Math.max(...inOrder.map((node) => node.x)) + box;
  shape.height = Math.max(...inOrder.map((node) => node.y)) + shape.tall;
  shape.room = [width, sideways ? shape.height + 2 * MARGIN : stage.clientHeight];
}

function sizeUpright(width, height, across, deep) {
  const slot = (width - 2 * MARGIN) / across;
  const level = (height - 2 * MARGIN - CAPTION) / (deep + 1);
  const box = Math.round(clamp(Math.min(slot * 0.84, level - 44), 46, 112));
  const gap = deep ? clamp((height - 2 * MARGIN - (deep + 1) * (box + CAPTION)) / deep, 44, 110) : 0;
  return {
    box,
    tall: box + CAPTION,
    slot: clamp(slot, box * 1.16, box * 1.9),
    level: box + CAPTION + gap,
  };
}

function sizeSideways(width, deep) {
  const level = deep ? (width - 2 * MARGIN) / (deep + 0.8) : width;
  const box = Math.round(clamp(level - 26, 40, 58));
  const tall = box + CAPTION + 15;
  return { box, tall, slot: tall + 9, level: deep ? Math.max(box + 20, (width - 2 * MARGIN - box) / deep) : 0 };
}

/** Draws everything anew; what only the state changes is left to `showTree`. */
function drawTree() {
  measure();
  const drawing = svg(
    "svg",
    {
      id: "tree",
      role: "tree",
      "aria-label": `Tree of ${leaves.length} clusters`,
      "aria-orientation": shape.sideways ? "vertical" : "horizontal",
      viewBox: `0 0 ${shape.room[0]} ${shape.room[1]}`,
      keydown: onTreeKey,
    },
    svg("defs", {}, roundedCorners(), inOrder.filter((node) => node.parent).map(gradient)),
    svg(
      "g",
      { id: "scene" },
      svg("g", { class: "flows", "aria-hidden": "true" }, inOrder.filter((node) => node.parent).map(flow)),
      svg("g", { class: "shares", "aria-hidden": "true" }, inOrder.map(shareLabel)),
      inOrder.map(nodeBox),
    ),
  );
  drawing.style.height = shape.sideways ? `${shape.room[1]}px` : "";
  byId("stage").replaceChildren(drawing);
  byId("zoom").hidden = shape.sideways;
  fitTree();
}

function roundedCorners() {
  const side = shape.box - 8;
  return svg("clipPath", { id: "corners" }, svg("rect", { x: 4, y: 4, width: side, height: side, rx: 6 }));
}

/** Ends of the edge above a node; `from` is the middle of all that leaves the parent. */
function ends(node) {
  const { box, sideways } = shape;
  const { parent } = node;
  const half = box / 2;
  return sideways
    ? { from: [parent.x + box, parent.y + half], to: [node.x, node.y + half] }
    : { from: [parent.x + half, parent.y + shape.tall], to: [node.x + half, node.y] };
}

function gradient(node) {
  const { from, to } = ends(node);
  return svg(
    "linearGradient",
    // A line of its own direction only: across it, colours are the same.
    shape.sideways
      ? { id: `flow-${node.name}`, gradientUnits: "userSpaceOnUse", x1: from[0], x2: to[0], y1: 0, y2: 0 }
      : { id: `flow-${node.name}`, gradientUnits: "userSpaceOnUse", y1: from[1], y2: to[1], x1: 0, x2: 0 },
    svg("stop", { offset: 0, "stop-color": node.parent.colour }),
    svg("stop", { offset: 1, "stop-color": node.colour }),
  );
}

function flow(node) {
  return svg("path", { class: "flow", "data-to": node.name, stroke: `url(#flow-${node.name})` });
}

function shareLabel(node) {
  const { box, sideways } = shape;
  const place = sideways
    ? { x: node.x + box / 2, y: node.y + box + CAPTION + 12 }
    : { x: node.x + box / 2, y: node.y - 7 };
  return svg("text", { class: "share", "data-of": node.name, "text-anchor": "middle", ...place });
}

function nodeBox(node) {
  const { box } = shape;
  const siblings = node.parent ? node.parent.children : [node];
  return svg(
    "g",
    {
      class: "node",
      role: "treeitem",
      id: `node-${node.name}`,
      "data-name": node.name,
      "aria-level": node.depth + 1,
      "aria-setsize": siblings.length,
      "aria-posinset": siblings.indexOf(node) + 1,
      "aria-expanded": node.children.length ? "true" : null,
      transform: `translate(${node.x} ${node.y})`,
      click: (event) => (event.shiftKey ? set({ other: node, tab: "compare" }) : select(node)),
    },
    svg("title", {}, describe(node)),
    svg("rect", { class: "card", width: box, height: box + CAPTION, rx: 10, stroke: node.colour }),
    svg("g", { class: "images", "clip-path": "url(#corners)" }),
    nameOf(node),
  );
}

/** Deep names are long: they are written smaller, down to a size that can still be read. */
function nameOf(node) {
  const room = (shape.box - 6) / 0.61;
  const size = clamp(room / node.name.length, 7.5, 11.5);
  const most = Math.floor(room / size);
  const text = node.name.length <= most ? node.name : `…${node.name.slice(1 - most)}`;
  return svg("text", { class: "name", x: shape.box / 2, y: shape.box + 11.5, "font-size": size, "text-anchor": "middle" }, text);
}

function describe(node) {
  const kind = node.children.length ? `${node.leafIds.length} clusters below` : "a cluster";
  const classes = node.classes ? `, mostly ${mainClasses(node).join(" and ")}` : "";
  return `${node.name}, ${percent(node.share)} of the images, ${kind}${classes}`;
}

/** Names of the classes that make up most of a node, two at most. */
function mainClasses(node) {
  const total = sum(node.classes);
  const order = node.classes.map((_, k) => k).sort((a, b) => node.classes[b] - node.classes[a]);
  return order.slice(0, 2).filter((k) => node.classes[k] > 0.2 * total).map((k) => atlas.classes[k]);
}

// ---- what the state changes -------------------------------------------------------------------

function showTree() {
  showFlows();
  for (const node of inOrder) {
    const item = byId(`node-${node.name}`);
    const chosen = node === state.node;
    item.setAttribute("aria-selected", chosen);
    item.setAttribute("tabindex", chosen ? 0 : -1);
    item.classList.toggle("on-path", state.leaf.path.includes(node));
    item.classList.toggle("other", state.tab === "compare" && node === state.other);
    showImages(node, item.querySelector(".images"));
  }
}

function showFlows() {
  const carried = state.flow?.prob ?? new Map(inOrder.map((node) => [node.name, node.share]));
  const widest = shape.box * (shape.sideways ? 0.72 : 0.62);
  for (const parent of inOrder) {
    const widths = parent.children.map((child) => Math.max(1.5, widest * carried.get(child.name)));
    let start = -sum(widths) / 2;
    parent.children.forEach((child, k) => {
      const path = document.querySelector(`.flow[data-to="${child.name}"]`);
      path.setAttribute("d", curve(child, start + widths[k] / 2));
      path.style.strokeWidth = `${widths[k].toFixed(2)}px`;
      const part = carried.get(child.name);
      path.classList.toggle("on-path", state.flow ? part > 0.5 : state.leaf.path.includes(child));
      path.classList.toggle("faint", state.flow !== null && part < 0.01);
      start += widths[k];
    });
  }
  for (const label of document.querySelectorAll(".share")) {
    const share = carried.get(label.dataset.of);
    const plain = (state.flow && share < 0.005) || (label.dataset.of === root.name && !shape.sideways);
    label.textContent = plain ? "" : percent(share);
  }
}

/** An edge that leaves and arrives straight. */
function curve(node, aside) {
  const { from, to } = ends(node);
  const straight = 3;
  if (shape.sideways) {
    const [x0, y0, x1, y1] = [from[0], from[1] + aside, to[0], to[1]];
    const middle = (x0 + x1) / 2;
    return `M${x0} ${y0}h${straight}C${middle} ${y0} ${middle} ${y1} ${x1 - straight} ${y1}h${straight}`;
  }
  const [x0, y0, x1, y1] = [from[0] + aside, from[1], to[0], to[1]];
  const middle = (y0 + y1) / 2;
  return `M${x0} ${y0}v${straight}C${x0} ${middle} ${x1} ${middle} ${x1} ${y1 - straight}v${straight}`;
}

/** One picture, or four of them, as chosen. */
function showImages(node, group) {
  const tiles = picturesOf(node);
  const key = tiles.join();
  if (group.dataset.key === key) return;
  group.dataset.key = key;
  const side = shape.box - 8;
  const [columns, gap] = tiles.length > 1 ? [2, 1.5] : [1, 0];
  const each = (side - gap * (columns - 1)) / columns;
  group.replaceChildren(
    ...tiles.map((tile, k) =>
      svg("image", {
        href: tileUrl(tile),
        x: 4 + (k % columns) * (each + gap),
        y: 4 + Math.floor(k / columns) * (each + gap),
        width: each,
        height: each,
        preserveAspectRatio: "xMidYMid slice",
        class: CRISP ? "crisp" : null,
      }),
    ),
  );
}

function picturesOf(node) {
  const four = (tiles) => (tiles.length >= 4 ? tiles.slice(0, 4) : tiles.slice(0, 1));
  if (state.look === "samples") return four(node.samples.map((sample) => sample.tile));
  if (state.look === "real") return four(node.members);
  return [state.look === "vae" ? node.vae : node.mean];
}

// ---- keys and moving about --------------------------------------------------------------------

/** The ARIA tree's keys: along the tree's own direction to a child or the parent, else in order. */
function onTreeKey(event) {
  const place = inOrder.indexOf(state.node);
  const child = state.node.children[0];
  const moves = {
    next: inOrder[place + 1],
    previous: inOrder[place - 1],
    child,
    parent: state.node.parent,
    first: inOrder[0],
    last: inOrder.at(-1),
  };
  const keys = shape.sideways
    ? { ArrowDown: "next", ArrowUp: "previous", ArrowRight: "child", ArrowLeft: "parent" }
    : { ArrowRight: "next", ArrowLeft: "previous", ArrowDown: "child", ArrowUp: "parent" };
  const move = { ...keys, Home: "first", End: "last" }[event.key];
  if (!move || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  if (moves[move]) {
    select(moves[move]);
    byId(`node-${state.node.name}`).focus({ preventScroll: !shape.sideways });
  }
}

function fitTree() {
  const [width, height] = shape.room;
  const scale = Math.min(1, (width - 2 * MARGIN) / shape.width, (height - 2 * MARGIN) / shape.height);
  view = {
    scale,
    x: (width - shape.width * scale) / 2,
    y: Math.max(MARGIN, (height - shape.height * scale) / (shape.sideways ? 2 : 2.6)),
  };
  moveTree();
}

function moveTree() {
  byId("scene").setAttribute("transform", `translate(${view.x} ${view.y}) scale(${view.scale})`);
}

function zoomTree(factor, x = shape.room[0] / 2, y = shape.room[1] / 2) {
  const scale = clamp(view.scale * factor, 0.2, 6);
  const grown = scale / view.scale;
  view = { scale, x: x - (x - view.x) * grown, y: y - (y - view.y) * grown };
  moveTree();
}

/** Drags and wheels; on a narrow page the page itself scrolls. */
function listenToMoves() {
  const stage = byId("stage");
  let held = null;
  stage.addEventListener("pointerdown", (event) => {
    if (shape.sideways || event.button !== 0 || event.target.closest(".node")) return;
    held = { x: event.clientX - view.x, y: event.clientY - view.y };
    stage.setPointerCapture(event.pointerId);
  });
  stage.addEventListener("pointermove", (event) => {
    if (!held) return;
    view = { ...view, x: event.clientX - held.x, y: event.clientY - held.y };
    moveTree();
  });
  for (const end of ["pointerup", "pointercancel"]) stage.addEventListener(end, () => (held = null));
  stage.addEventListener(
    "wheel",
    (event) => {
      if (shape.sideways) return;
      event.preventDefault();
      const place = stage.getBoundingClientRect();
      zoomTree(Math.exp(-event.deltaY / 500), event.clientX - place.left, event.clientY - place.top);
    },
    { passive: false },
  );
  byId("zoom").addEventListener("click", (event) => {
    const how = event.target.closest("button")?.dataset.zoom;
    if (how === "fit") fitTree();
    else if (how) zoomTree(how === "in" ? 1.3 : 1 / 1.3);
  });
}

// ---- the path's slider ------------------------------------------------------------------------

/** From the root to the leaf: a slider, and below each of its stops the node. */
function drawPath() {
  const { path } = state.leaf;
  const stop = path.indexOf(state.node);
  const slider = el("input", {
    type: "range",
    id: "slider",
    min: 0,
    max: path.length - 1,
    step: 1,
    value: stop,
    "aria-label": `Path from the root to ${state.leaf.name}`,
    "aria-valuetext": describe(state.node),
    input: (event) => select(path[Number(event.target.value)]),
  });
  const stops = path.map((node, k) =>
    el(
      "button",
      { type: "button", tabindex: -1, class: k === stop ? "here" : null, click: () => select(node) },
      el("b", {}, node.name),
      el("span", {}, percent(node.share)),
    ),
  );
  const old = byId("slider");
  if (old && byId("path").dataset.leaf === state.leaf.name) {
    // A slider in the hand must not be replaced.
    old.value = stop;
    old.setAttribute("aria-valuetext", describe(state.node));
    byId("stops").replaceChildren(...stops);
    return;
  }
  byId("path").dataset.leaf = state.leaf.name;
  byId("path").style.setProperty("--stops", path.length);
  byId("path").replaceChildren(slider, el("div", { id: "stops" }, ...stops));
}
