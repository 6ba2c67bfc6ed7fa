"""The file: pictures as they were, HTML that stands, nothing in it that could run or phone."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.atlases import LEAVES, NAMES, bars, page_values, small_atlas
from treediffusion.explore import Amounts, Atlas, RealImages, clusters_atlas, render
from treediffusion.explore.sprites import BUDGET, pack
from treediffusion.topology import TreeTopology

# ---- pictures ---------------------------------------------------------------------------------


def unpacked(sprite: dict[str, Any], shape: tuple[int, ...]) -> np.ndarray:
    """Tiles cut out of the page's own picture, as its script does it."""
    channels, height, width = shape
    content = base64.b64decode(sprite["src"].partition(",")[2])
    with Image.open(io.BytesIO(content)) as picture:
        pixels = np.asarray(picture.convert("L" if channels == 1 else "RGB"))
    pixels = pixels.reshape(*pixels.shape[:2], channels).transpose(2, 0, 1)
    tiles = []
    for k in range(sprite["count"]):
        row, column = divmod(k, sprite["columns"])
        y, x = row * height, column * width
        tiles.append(pixels[:, y : y + height, x : x + width])
    return np.stack(tiles)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 40), st.sampled_from([1, 3]), st.integers(1, 17), st.integers(1, 17),
    st.integers(0, 99),
)  # fmt: skip
def test_every_tile_comes_back_as_it_was(n: int, c: int, h: int, w: int, seed: int) -> None:
    tiles = np.random.default_rng(seed).integers(0, 256, (n, c, h, w), np.uint8)
    sheet = pack(tiles)
    assert sheet.lossless
    assert np.array_equal(unpacked(sheet.to_dict(), (c, h, w)), tiles)


def test_every_picture_of_a_page_comes_back_as_it_was() -> None:
    atlas = small_atlas()
    told = page_values(render(atlas))
    assert np.array_equal(unpacked(told["sprite"], atlas.tiles.shape[1:]), atlas.tiles)
    shown = set(re.findall(r"'(?:tile|nearest|mean|vae)': (\d+)", repr(told["nodes"])))
    assert max(map(int, shown)) < len(atlas.tiles)


def test_without_webp_it_is_a_png(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("treediffusion.explore.sprites.features.check", lambda name: False)
    tiles = np.random.default_rng(0).integers(0, 256, (7, 3, 5, 5), np.uint8)
    sheet = pack(tiles)
    assert sheet.kind == "png"
    assert np.array_equal(unpacked(sheet.to_dict(), (3, 5, 5)), tiles)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
def test_ten_leaves_are_less_than_three_megabytes(shape: tuple[int, int, int]) -> None:
    """Of noise, which nothing makes smaller; real images take half of that."""
    rng = np.random.default_rng(0)
    tree = TreeTopology.initial()
    while tree.num_leaves < 10:
        tree = tree.grow(
            tree.leaf_names[-1] if len(tree.leaf_names[-1]) < 6 else tree.leaf_names[0]
        )
    images = rng.integers(0, 256, (2000, *shape), np.uint8)
    leaf = rng.integers(0, 10, 2000)
    found = clusters_atlas(tree, leaf, RealImages(images, leaf), amounts=Amounts(members=12))
    many = Amounts()
    inner = tree.num_nodes - 10
    count = 2 * (many.leaf * 10 + many.inner * inner) + (2 * many.roots + many.members) * 10
    tiles = rng.integers(0, 256, (count + 2 * tree.num_nodes, *shape), np.uint8)
    page = render(Atlas(**(vars(found) | {"tiles": tiles})))
    assert len(page.encode()) < 3_000_000
    assert len(pack(tiles).content) <= BUDGET


def test_a_sheet_above_its_budget_gives_up_quality_and_says_so() -> None:
    tiles = np.random.default_rng(0).integers(0, 256, (50, 3, 16, 16), np.uint8)
    sheet = pack(tiles, budget=20_000)
    assert not sheet.lossless
    assert len(sheet.content) <= 20_000


# ---- the page ---------------------------------------------------------------------------------


class Parsed(HTMLParser):
    """A page as a browser's parser sees it; unbalanced tags are faults."""

    VOID = frozenset({"meta", "link", "img", "input", "br"})

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.faults: list[str] = []

    @classmethod
    def of(cls, page: str) -> Parsed:
        parser = cls()
        parser.feed(page)
        parser.close()
        assert not parser.faults
        assert not parser.open
        return parser

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)


def test_the_page_is_html_with_one_of_each_id() -> None:
    parsed = Parsed.of(render(small_atlas()))
    ids = [found["id"] for _, found in parsed.tags if "id" in found]
    assert len(ids) == len(set(ids))
    pointed = [
        found[key]
        for _, found in parsed.tags
        for key in ("aria-controls", "aria-labelledby")
        if key in found
    ]
    assert set(pointed) <= set(ids)
    assert [tag for tag, _ in parsed.tags].count("html") == 1
    assert "".join(parsed.texts["pre"]).splitlines()[0].split() == ["r", "100.0", "%"]


def test_the_page_names_no_origin_but_namespaces() -> None:
    page = render(small_atlas())
    assert set(re.findall(r"https?:[^\s\"'`<>)]*", page)) <= {"http://www.w3.org/2000/svg"}
    for tag, found in Parsed.of(page).tags:
        assert not {"src", "srcset", "action", "data"} & set(found), tag
        assert not any(name.startswith("on") for name in found), tag
        assert "style" not in found, tag
        assert (found.get("href") or "#").startswith(("#", "data:,")), tag


def test_the_policy_allows_this_script_and_this_style_alone() -> None:
    parsed = Parsed.of(render(small_atlas()))
    (policy,) = [
        f["content"] for tag, f in parsed.tags if f.get("http-equiv") == "Content-Security-Policy"
    ]
    rules = dict(rule.strip().split(" ", 1) for rule in str(policy).split(";"))
    for kind, text in (
        ("script-src", parsed.texts["script"][1]),
        ("style-src", parsed.texts["style"][0]),
    ):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[kind] == f"'sha256-{digest}'"
    assert rules["default-src"] == "'none'"
    assert rules["connect-src"] == "'self'"
    assert "unsafe" not in str(policy)


HOSTILE = (
    "</script><img src=x onerror=alert(1)>",
    "<!--<script ></script x",
    "{{script}} & {{atlas}}",
    "\u2028'\"`\\",
)


def test_names_stay_text_whatever_they_are() -> None:
    images, place = bars(40)
    real = RealImages(images, place, HOSTILE)
    tree = TreeTopology.of(NAMES)
    atlas = clusters_atlas(tree, place, real, title=HOSTILE[0])
    page = render(atlas)
    parsed = Parsed.of(page)
    plain = Parsed.of(render(small_atlas()))
    assert [tag for tag, _ in parsed.tags] == [tag for tag, _ in plain.tags]
    assert page_values(page)["classes"] == list(HOSTILE)
    assert page_values(page)["title"] == HOSTILE[0]
    assert parsed.texts["title"][0].startswith(HOSTILE[0])


def test_clusters_alone_are_a_page_too() -> None:
    images, place = bars(40)
    atlas = clusters_atlas(TreeTopology.of(NAMES), place, RealImages(images))
    told = page_values(render(atlas))
    assert told["steps"] is None
    assert all(node["samples"] == [] and node["router"] is None for node in told["nodes"])
    assert told["leaves"] == list(LEAVES)
