// The tree as it is seen, as a file: SVG with every style written out, or PNG at twice the size.

const PROPERTIES = ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-opacity", "stroke-linecap", "opacity", "font-family", "font-size", "font-weight", "paint-order", "image-rendering", "letter-spacing"];

/** A copy of the drawing that needs no style sheet and no page around it. */
function drawingAlone() {
  const shown = byId("tree");
  const copy = shown.cloneNode(true);
  const originals = [shown, ...shown.querySelectorAll("*")];
  [copy, ...copy.querySelectorAll("*")].forEach((element, k) => {
    const style = getComputedStyle(originals[k]);
    for (const name of PROPERTIES) {
      if (element.closest("defs") === null) element.setAttribute(name, plain(style.getPropertyValue(name)));
    }
    for (const name of ["class", "style", "tabindex"]) element.removeAttribute(name);
  });
  const [width, height] = shape.room;
  const paper = getComputedStyle(byId("stage")).backgroundColor;
  copy.prepend(svg("rect", { width, height, fill: paper }));
  for (const [name, value] of Object.entries({ xmlns: "http://www.w3.org/2000/svg", width, height })) copy.setAttribute(name, value);
  return new XMLSerializer().serializeToString(copy);
}

/** `url("file:///...#x")` as the `url(#x)` that it was. */
const plain = (value) => value.replace(/url\(["']?[^"')]*(#[^"')]+)["']?\)/g, "url($1)");

async function savePicture(kind) {
  const drawing = new Blob([drawingAlone()], { type: "image/svg+xml" });
  const name = `tree-${state.node.name}.${kind}`;
  if (kind === "svg") return download(drawing, name);
  const url = URL.createObjectURL(drawing);
  const image = new Image();
  image.src = url;
  await image.decode();
  const canvas = el("canvas", { width: 2 * shape.room[0], height: 2 * shape.room[1] });
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  URL.revokeObjectURL(url);
  canvas.toBlob((blob) => download(blob, name), "image/png");
}

function download(blob, name) {
  const url = URL.createObjectURL(blob);
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
  say(`${name} is saved`);
}
