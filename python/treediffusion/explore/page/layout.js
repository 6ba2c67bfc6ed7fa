// Where nodes go: each node above the middle of its children, subtrees as close as they fit.
//
// A subtree is known by its contours: how far left and right it reaches at each depth, seen from
// its own root. Two subtrees stand as far apart as the closest of their depths demands. For the at
// most 63 nodes of a page this is all that the linear-time algorithms of libraries give.

/** Gives every node `across`, in places from 0 on; returns how many places the tree takes. */
function layOut() {
  contours(root);
  const settle = (node, from) => {
    node.across = from + node.aside;
    for (const child of node.children) settle(child, node.across);
  };
  root.aside = 0;
  settle(root, 0);
  const places = inOrder.map((node) => node.across);
  const least = Math.min(...places);
  for (const node of inOrder) node.across -= least;
  return 1 + Math.max(...places) - least;
}

function contours(node) {
  const [left, right] = node.children.map(contours);
  if (!left) return { low: [0], high: [0] };
  if (!right) {
    node.children[0].aside = 0;
    return { low: [0, ...left.low], high: [0, ...left.high] };
  }
  const shared = Math.min(left.low.length, right.low.length);
  const depths = [...Array(shared).keys()];
  const half = Math.max(...depths.map((d) => left.high[d] - right.low[d] + 1)) / 2;
  node.children[0].aside = -half;
  node.children[1].aside = half;
  const both = [...Array(Math.max(left.low.length, right.low.length)).keys()];
  return {
    low: [0, ...both.map((d) => (d in left.low ? left.low[d] - half : right.low[d] + half))],
    high: [0, ...both.map((d) => (d in right.high ? right.high[d] + half : left.high[d] - half))],
  };
}
