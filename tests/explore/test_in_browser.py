"""The page in a real browser: clicks, keys, drags, any width and tree, and nothing from outside."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.atlases import LEAVES, NAMES, bars
from support.browser import Visit
from treediffusion.explore import RealImages, clusters_atlas, write_page
from treediffusion.topology import TreeTopology


def test_it_opens_from_a_disk_and_asks_nobody(visit: Visit, file: Path) -> None:
    page = visit.open(file.as_uri())
    assert page.locator("[role=treeitem]").count() == len(NAMES)
    assert page.inner_text("#facts").startswith(f"{len(LEAVES)} clusters")
    page.click("#tab-find")
    page.click(".examples .sample >> nth=0")
    page.wait_for_selector("#answer:not([hidden])")
    assert visit.outside(file.as_uri()) == []
    assert page.locator("#live").is_hidden()
    assert not page.locator("#generate").count()


def test_a_click_opens_a_card_and_writes_the_permalink(page: Any, visit: Visit) -> None:
    page.click("#node-r01")
    assert visit.selected() == "r01"
    assert page.inner_text("#panel-node h2") == "r01"
    assert page.evaluate("location.hash") == "#node=r01&seed=0"


def test_a_permalink_opens_what_it_names(visit: Visit, file: Path) -> None:
    page = visit.open(f"{file.as_uri()}#node=r01&seed=7")
    assert visit.selected() == "r01"
    assert page.evaluate("location.hash") == "#node=r01&seed=7"
    assert "seed 7 is not in this file" in page.inner_text("#panel-node")
    page.evaluate("location.hash = 'node=r1&compare=r00'")
    page.wait_for_selector("#panel-compare:not([hidden])")
    assert visit.selected() == "r1"
    assert page.input_value("[aria-label='Second node']") == "r00"


@pytest.mark.parametrize(
    "fragment", ["#node=r9", "#node=<img src=x>", "#seed=-1&node=r01010101", "#%", "#compare=zz"]
)
def test_a_permalink_that_names_nothing_opens_the_root(
    visit: Visit, file: Path, fragment: str
) -> None:
    visit.open(file.as_uri() + fragment)
    assert visit.selected() == "r"


def test_arrow_keys_walk_the_tree(page: Any, visit: Visit) -> None:
    """The root is on top: down is to a child, right and left are on and back in reading order."""
    page.focus("#node-r")
    for key, name in [
        ("ArrowDown", "r0"), ("ArrowDown", "r00"), ("ArrowRight", "r01"), ("ArrowUp", "r0"),
        ("End", NAMES[-1]), ("ArrowRight", NAMES[-1]), ("ArrowLeft", "r10"), ("Home", "r"),
    ]:  # fmt: skip
        page.keyboard.press(key)
        assert visit.selected() == name, key
        assert page.evaluate("document.activeElement.id") == f"node-{name}"
    assert page.inner_text("#status").startswith("r, 100 % of the images")


def test_it_is_a_tree_for_screen_readers(page: Any) -> None:
    tree = page.locator("[role=tree]")
    assert tree.get_attribute("aria-orientation") == "horizontal"
    levels = {
        item.get_attribute("data-name"): item.get_attribute("aria-level")
        for item in page.locator("[role=treeitem]").all()
    }
    assert levels == {name: str(len(name)) for name in NAMES}
    assert page.locator("[role=treeitem][tabindex='0']").count() == 1
    assert page.locator("#node-r0").get_attribute("aria-expanded") == "true"
    assert page.locator("#node-r00").get_attribute("aria-expanded") is None
    assert page.locator("img:not([alt])").count() == 0
    unnamed = "button:not([aria-label]):not([title])"
    assert all(button.inner_text().strip() or button.locator("img").count()
               for button in page.locator(unnamed).all() if button.is_visible())  # fmt: skip
    assert page.locator(".unseen:not([role]):not(input)").count() == 0


def test_the_slider_walks_the_path_from_the_root_to_the_leaf(page: Any, visit: Visit) -> None:
    page.click("#node-r00")
    page.focus("#slider")
    page.keyboard.press("ArrowLeft")
    assert visit.selected() == "r0"
    box = page.locator("#slider").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + 4, box["y"] + box["height"] / 2, steps=4)
    assert visit.selected() == "r"
    page.mouse.move(box["x"] + box["width"] - 4, box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()
    assert visit.selected() == "r00"


def test_a_drag_moves_the_tree_and_a_wheel_enlarges_it(page: Any) -> None:
    before = page.locator("#node-r").bounding_box()
    stage = page.locator("#stage").bounding_box()
    start = (stage["x"] + 30, stage["y"] + stage["height"] - 30)
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(start[0] + 40, start[1] - 25, steps=4)
    page.mouse.up()
    after = page.locator("#node-r").bounding_box()
    assert after["x"] - before["x"] == pytest.approx(40, abs=1)
    assert after["y"] - before["y"] == pytest.approx(-25, abs=1)
    page.mouse.wheel(0, -300)
    page.wait_for_selector("#scene:not([transform$='scale(1)'])", state="attached")
    assert page.locator("#node-r").bounding_box()["width"] > 1.2 * after["width"]
    page.click("[data-zoom=fit]")
    assert page.locator("#node-r").bounding_box() == before


def test_two_nodes_are_compared(page: Any, visit: Visit) -> None:
    page.click("#node-r00")
    page.click("#node-r11", modifiers=["Shift"])
    assert visit.selected() == "r00"
    assert page.locator("#panel-compare").is_visible()
    assert page.input_value("[aria-label='Second node']") == "r11"
    assert page.evaluate("location.hash") == "#node=r00&seed=0&compare=r11"
    page.click("[aria-label='Swap the two nodes']")
    assert visit.selected() == "r11"
    page.select_option("[aria-label='First node']", "r0")
    assert "r0 100 %" not in page.inner_text("#panel-compare")
    assert page.locator("#panel-compare canvas").count() == 1


def test_an_image_of_the_page_shows_where_its_latents_lead(page: Any) -> None:
    page.click("#node-r01")
    page.click("#samples .sample >> nth=0")
    assert page.locator(".inspector").is_visible()
    assert page.locator("#flowing").is_visible()
    page.click("#flowing button")
    assert page.locator("#flowing").is_hidden()


def test_a_drawing_goes_to_the_leaf_of_its_kind(page: Any, visit: Visit) -> None:
    """Leaves of the page hold bars in four places; a bar is drawn into the third."""
    page.click("#tab-find")
    assert "It agrees with the model on" in page.inner_text("#panel-find")
    pad = page.locator("#pad").bounding_box()
    x = pad["x"] + pad["width"] * 5 / 8
    page.mouse.move(x, pad["y"] + 5)
    page.mouse.down()
    page.mouse.move(x, pad["y"] + pad["height"] - 5, steps=8)
    page.mouse.up()
    page.wait_for_selector("#answer:not([hidden])")
    assert visit.selected() == LEAVES[2]
    assert "by approximation" in page.inner_text("#flowing")


def test_tab_order_skips_the_tree_without_losing_the_node(page: Any, visit: Visit) -> None:
    page.click("#node-r01")
    page.focus(".skip")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "card"
    assert visit.selected() == "r01"


def test_a_drawing_may_lie_beside_its_place(page: Any) -> None:
    """Between two places it goes to the nearer one."""
    page.click("#tab-find")
    pad = page.locator("#pad").bounding_box()
    x = pad["x"] + pad["width"] * 3.3 / 8
    page.mouse.move(x, pad["y"] + 5)
    page.mouse.down()
    page.mouse.move(x, pad["y"] + pad["height"] - 5, steps=8)
    page.mouse.up()
    page.wait_for_selector("#answer:not([hidden])")
    assert page.locator("#answer .bars button >> nth=0").inner_text() == LEAVES[1]
    page.click("#clear")
    assert page.locator("#answer").is_hidden()


@pytest.mark.parametrize("shape", [(1, 13, 13), (3, 10, 10), (1, 5, 5)])
def test_a_file_goes_where_python_says(
    visit: Visit, tmp_path: Path, shape: tuple[int, int, int]
) -> None:
    """The vote in the browser is the vote of `Finder`, where fields cut pixels, too."""
    rng = np.random.default_rng(5)
    images = rng.integers(0, 256, (90, *shape), np.uint8)
    leaf = np.arange(90) % 4
    atlas = clusters_atlas(TreeTopology.of(NAMES), leaf, RealImages(images))
    page = visit.open(write_page(atlas, tmp_path / "page.html").as_uri())
    noise = rng.integers(0, 256, (1, *shape), np.uint8)
    pixels = noise[0].transpose(1, 2, 0)
    Image.fromarray(pixels[..., 0] if shape[0] == 1 else pixels).save(tmp_path / "noise.png")
    page.click("#tab-find")
    page.set_input_files("#file", str(tmp_path / "noise.png"))
    page.wait_for_selector("#answer:not([hidden])")
    assert atlas.finder is not None
    expected = atlas.finder.leaf_probabilities(noise, 4)[0]
    assert visit.selected() == atlas.leaves[int(expected.argmax())]
    bar = "[...document.querySelectorAll('#answer .bars i')]"
    found = page.evaluate(bar + ".map((bar) => parseFloat(bar.style.width))")
    best = np.sort(100 * expected)[::-1]
    assert found == pytest.approx(best[best >= 0.5].tolist(), abs=1e-3)


def test_what_is_no_image_is_said_and_breaks_nothing(
    page: Any, visit: Visit, tmp_path: Path
) -> None:
    (tmp_path / "words.png").write_text("no picture")
    page.click("#tab-find")
    page.set_input_files("#file", str(tmp_path / "words.png"))
    visit.wait_to_hear("no image")


def test_the_tree_is_saved_as_it_is_seen(page: Any, tmp_path: Path) -> None:
    for kind in ("png", "svg"):
        page.click("#save summary")
        with page.expect_download() as download:
            page.click(f"[data-save={kind}]")
        download.value.save_as(tmp_path / f"tree.{kind}")
    size = page.locator("#tree").bounding_box()
    with Image.open(tmp_path / "tree.png") as picture:
        assert picture.size == pytest.approx((2 * size["width"], 2 * size["height"]), abs=2)
        assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 50
    drawing = (tmp_path / "tree.svg").read_text()
    assert drawing.count("<image") == 4 * len(NAMES)
    assert "file:" not in drawing
    assert "class=" not in drawing


def test_dark_by_preference_and_by_hand(visiting: Callable[..., Visit], file: Path) -> None:
    page = visiting(color_scheme="dark").open(file.as_uri())
    colour = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(colour)
    page.click("#theme")
    light = page.evaluate(colour)
    assert sum(map(int, dark[4:-1].split(","))) < 100 < 600 < sum(map(int, light[4:-1].split(",")))


@pytest.mark.parametrize("width", [360, 820, 1920])
def test_nothing_sticks_out_at_any_width(
    visiting: Callable[..., Visit], file: Path, width: int
) -> None:
    visit = visiting(viewport={"width": width, "height": 740})
    page = visit.open(file.as_uri())
    for tab in ("node", "compare", "find"):
        page.click(f"#tab-{tab}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    if width == 360:  # on its side, with the keys of that
        assert page.get_attribute("#tree", "aria-orientation") == "vertical"
        page.focus("#node-r")
        page.keyboard.press("ArrowRight")
        assert visit.selected() == "r0"


def chain(leaves: int) -> TreeTopology:
    """A tree as deep as it can be, down to six levels; one leaf is the root alone."""
    tree = TreeTopology.of(["r"]) if leaves == 1 else TreeTopology.initial()
    while tree.num_leaves < leaves:
        tree = tree.grow(max((n for n in tree.leaf_names if len(n) < 7), key=len))
    return tree


@pytest.mark.parametrize("leaves", [1, 2, 7, 20])
def test_trees_of_every_shape_can_be_walked(visit: Visit, tmp_path: Path, leaves: int) -> None:
    """Of clusters alone, in which nothing is generated; every node in reading order, then on."""
    images, place = bars(120)
    tree = chain(leaves)
    atlas = clusters_atlas(tree, place % leaves, RealImages(images, place))
    page = visit.open(write_page(atlas, tmp_path / "page.html").as_uri())
    page.focus("#node-r")
    for name in sorted(tree.names)[1:]:
        page.keyboard.press("ArrowRight")
        assert leaves > 7 or visit.selected() == name
    assert visit.selected() == max(tree.names)
    for tab in ("compare", "find", "node"):
        page.click(f"#tab-{tab}")
    stage, boxes = page.locator("#stage").bounding_box(), page.locator(".node").all()
    for box in (each.bounding_box() for each in boxes):
        assert box["x"] >= stage["x"] - 3
        assert box["x"] + box["width"] <= stage["x"] + stage["width"] + 3
        assert box["y"] + box["height"] <= stage["y"] + stage["height"] + 3


def test_no_two_nodes_lie_on_each_other(visit: Visit, tmp_path: Path) -> None:
    images, place = bars(120)
    leaves = ["r000", "r001", "r010", "r0110", "r0111", "r1000", "r10010", "r10011", "r11"]
    tree = TreeTopology.of({name[:k] for name in leaves for k in range(1, len(name) + 1)})
    leaf = np.arange(120) % tree.num_leaves
    atlas = clusters_atlas(tree, leaf, RealImages(images, place))
    page = visit.open(write_page(atlas, tmp_path / "page.html").as_uri())
    boxes = [box.bounding_box() for box in page.locator(".node .card").all()]
    for k, one in enumerate(boxes):
        for other in boxes[:k]:
            aside = abs(one["x"] - other["x"]) >= min(one["width"], other["width"])
            assert aside or abs(one["y"] - other["y"]) >= min(one["height"], other["height"])


def test_names_that_are_markup_stay_text(visit: Visit, tmp_path: Path) -> None:
    evil = "</script ><img src=x onerror='document.title=1'>"
    images, place = bars(40)
    real = RealImages(images, place, (evil, "<b>b</b>", "&amp;", '"'))
    atlas = clusters_atlas(TreeTopology.of(NAMES), place, real, title=evil)
    page = visit.open(write_page(atlas, tmp_path / "page.html").as_uri())
    assert page.inner_text("#title") == evil
    page.click("#node-r00")
    assert page.inner_text("ul.legend li >> nth=0").startswith(evil)
    assert page.locator("b b, img[src=x]").count() == 0
    assert page.title().startswith(evil)
