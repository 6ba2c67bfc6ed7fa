// Two nodes side by side.

function showCompare() {
  const { node: a, other: b } = state;
  const panel = byId("panel-compare");
  if (!b) {
    panel.replaceChildren(el("p", { class: "note" }, "A tree of one node has nothing to compare."));
    return;
  }
  panel.replaceChildren(
    el("div", { class: "versus" }, chooser("node", a, "First node"), el("button", { type: "button", class: "swap", title: "Swap", "aria-label": "Swap the two nodes", click: () => set({ node: b, other: a }) }, "⇄"), chooser("other", b, "Second node")),
    el("p", { class: "note shift" }, "The tree sets the first; with Shift, the second."),
    section("Mean images", null, contrast(a, b)),
    section("They part at", null, parting(a, b)),
    twoColumns("New images", a, b, (node) => strip(node.samples.map((sample) => sample.tile), node)),
    a.classes ? twoColumns("Classes", a, b, (node) => (node.count ? el("div", {}, classBar(node), classLegend(node)) : el("p", { class: "note" }, "none"))) : "",
    twoColumns("Real images", a, b, (node) => strip(node.members, node)),
  );
}

function chooser(key, chosen, label) {
  const options = inOrder.map((node) => el("option", { value: node.name, selected: node === chosen }, `${"\u2007".repeat(node.depth)}${node.name} · ${percent(node.share)}`));
  return el("label", {}, dot(chosen), el("select", { "aria-label": label, change: (event) => set({ [key]: nodes.get(event.target.value) }) }, ...options));
}

function parting(a, b) {
  const top = meeting(a, b);
  const name = el("button", { type: "button", class: "child", click: () => set({ node: top, tab: "node" }) }, dot(top), top.name, el("b", {}, percent(top.share)));
  if (a === b) return el("p", {}, "These are the same node.");
  if (top === a || top === b) return el("p", {}, name, ` holds the other: ${percent((top === a ? b : a).share / Math.max(top.share, 1e-9))} of its images.`);
  const sure = top.router ? `, which is sure of ${percent(top.router.confidence)}` : "";
  return el("p", {}, name, sure);
}

function twoColumns(title, a, b, content) {
  const column = (node) => el("div", {}, el("h4", {}, dot(node), node.name, el("span", {}, percent(node.share))), content(node));
  const [first, second] = [column(a), column(b)];
  return section(title, null, el("div", { class: "columns" }, first, second));
}

function strip(tiles, node) {
  if (!tiles.length) return el("p", { class: "note" }, "none in this file");
  return el("div", { class: "grid" }, ...tiles.slice(0, 9).map((tile) => picture(tile, `Image of ${node.name}`)));
}
