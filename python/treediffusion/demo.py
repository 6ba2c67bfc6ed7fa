"""The demo: the main job on the digits that come with scikit-learn, with nothing fetched.

Unlabelled images -> tree -> diffusion -> bundle -> new images from the torch-free runtime.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from .baselines.flat import k_means, ward
from .config import load_preset
from .data import load_images, to_bytes
from .evaluate.card import write_card
from .evaluate.clustering import accuracy, nmi
from .evaluate.report import write_report
from .explore import RealImages, collect, write_page
from .export import EXPORT_STEPS, export_bundle
from .progress import Progress
from .runtime import Engine
from .train.run import HISTORY, train


def demo(out: Path, *, seed: int = 0) -> str:
    """Runs everything and returns what to tell the user.

    Args:
        out: folder of the run; an unfinished one is continued.
        seed: of everything random.
    """
    start = time.monotonic()
    config = load_preset("tiny").model_copy(update={"seed": seed})
    data = load_images(config.data)
    print(f"{len(data.images)} images of 8x8 pixels, labels set aside; grow a tree, learn to draw")
    model = train(config, out)
    with Progress(EXPORT_STEPS, "exporting") as progress:
        bundle = export_bundle(model, out / "bundle", progress=progress)
    history = json.loads((out / HISTORY).read_text("utf-8"))
    assert data.labels is not None
    rivals = {
        name: {"acc": accuracy(data.labels, found), "nmi": nmi(data.labels, found)}
        for name, found in (
            ("ward", ward(data.images, 10)),
            ("k_means", k_means(data.images, 10, seed)),
        )
    }
    extra = {
        "baselines": rivals,
        "elbo": history["tree"][-1],
        "diffusion_loss": history["diffusion"][-1]["loss"],
    }
    with Engine.load(bundle) as engine:
        metrics = write_report(engine, data, out, seed=seed, extra=extra)
        real = RealImages(to_bytes(data.images), data.labels, data.class_names)
        write_page(collect(engine, real, title=data.name, seed=seed), out / "explorer.html")
    write_card(out)
    rows = [("this tree", metrics["clustering"]), *rivals.items()]
    table = "\n".join(f"  {name:10} {row['acc']:.3f}  {row['nmi']:.3f}" for name, row in rows)
    seconds = time.monotonic() - start
    return f"""
              ACC    NMI   (labels used for nothing but this table)
{table}

look at
  {out / "tree.png"}     the tree, an image at every node
  {out / "sheet.png"}    the same roots drawn through every leaf
  {out / "gallery.png"}  new images of each leaf
  {out / "samples.png"}  100 images along sampled paths
  {out / "explorer.html"}  all of it in one page: open it in a browser
  {out / "metrics.json"} all numbers; {out / "bundle"} generates without PyTorch
done in {seconds:.0f} s; draw more:
  treediffusion generate --bundle {bundle} --leaf {engine.topology.leaf_names[0]} --seed 7
"""
