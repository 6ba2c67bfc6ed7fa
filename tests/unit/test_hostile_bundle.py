"""Bundles made to do harm: every one is refused by a typed error, before anything large exists."""

from __future__ import annotations

import ast
import copy
import json
import random
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import treediffusion
from onnx import TensorProto, helper, numpy_helper
from support.models import tiny_bundle
from support.plain_bundles import TREE, Edit, change, plain_bundle, seal, setting, write_manifest
from treediffusion.bundle import Bundle
from treediffusion.bundle_files import TEXT_LIMIT, seal_of
from treediffusion.errors import BundleError, BundleFormatError, BundleIntegrityError
from treediffusion.onnx_wire import read_interface

SEED = 20_261_120
SET = "onnx-cpu-fp32"
STEP = f"graphs/{SET}/step.onnx"
SMALL = 4 << 20
"""Bytes that reading may take at most, whatever a file claims; a text may have one million."""
HUGE = 10**12


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return plain_bundle(tmp_path / "bundle")


@contextmanager
def only_small_allocations() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < SMALL


def test_any_changed_or_missing_byte_of_a_real_bundle_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "b"
    shutil.copytree(tiny_bundle(), folder)
    draw = random.Random(SEED)
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    whole = {file: file.read_bytes() for file in files}
    for turn in range(800):
        file = files[turn % len(files)]
        place = draw.randrange(len(whole[file]))
        if draw.random() < 0.3:
            file.write_bytes(whole[file][:place])
        else:
            with file.open("r+b") as stream:
                stream.seek(place)
                stream.write(bytes([whole[file][place] ^ draw.randrange(1, 256)]))
        with pytest.raises(BundleError):
            Bundle.open(folder)
        file.write_bytes(whole[file])
    Bundle.open(folder)


@pytest.mark.parametrize("name", ["manifest.sha256", "tree.json", "manifest.json"])
def test_a_text_cut_at_any_byte_is_refused(name: str, path: Path) -> None:
    whole = (path / name).read_bytes()
    stride = -(-len(whole) // 1000)
    for length in {*range(0, len(whole), stride), *range(len(whole) - 50, len(whole))}:
        (path / name).write_bytes(whole[:length])
        with pytest.raises(BundleError):
            Bundle.open(path)


VALUES: list[Any] = [
    None, True, -1, 0, 1, 2, HUGE, 2**62, 10**400, 0.5, -1e308, 1e-320, "", "x", "B", "../x", "\0",
    "\ud800", "9" * 5000, [], {}, [[]], [None] * 300, {"a": {}}, "onnx-gpu-fp16", "fp16", "ddim",
]  # fmt: skip


def places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where every value of a document is."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, below in inner:
        yield (*above, key)
        if isinstance(below, dict | list):
            yield from places(below, (*above, key))


def mutated(document: Any, draw: random.Random) -> Any:
    """A document with one to three values replaced, removed or exchanged."""
    document = copy.deepcopy(document)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        every = list(places(document))
        if not every:
            break
        *above, key = draw.choice(every)
        holder = document
        for step in above:
            holder = holder[step]
        kind = draw.randrange(4)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[draw.choice(("x", "", "step", "\ud800"))] = holder.pop(key)
        elif kind == 2:
            other: Any = document
            for step in draw.choice(every):
                with suppress(LookupError, TypeError):
                    other = other[step]
            holder[key] = copy.deepcopy(other)
        else:
            holder[key] = copy.deepcopy(draw.choice(VALUES))
    return document


@pytest.mark.parametrize("name", ["manifest.json", "tree.json"])
def test_any_document_with_right_hashes_opens_or_is_refused(name: str, path: Path) -> None:
    """As a forger would make it. Nothing else comes out, nor takes memory."""
    draw = random.Random(SEED)
    document = json.loads((path / name).read_text())
    messages = []
    for turn in range(500):
        if name == "manifest.json":
            write_manifest(path, mutated(document, draw))
        else:
            (path / name).write_text(json.dumps(mutated(document, draw)))
            seal(path)
        # Watching makes it several times slower.
        with only_small_allocations() if turn % 10 == 0 else nullcontext():
            try:
                Bundle.open(path)
            except BundleError as fault:
                messages.append(str(fault))
    assert len(messages) > 350
    assert max(map(len, messages)) < 2500


def test_any_text_with_right_hashes_opens_or_is_refused(path: Path) -> None:
    draw = random.Random(SEED)
    text = (path / "manifest.json").read_bytes()
    for _ in range(500):
        content = bytearray(text)
        for _ in range(draw.choice((1, 1, 2, 5))):
            content[draw.randrange(len(content))] = draw.choice(b'0123456789{}[]",:.-eE \xff\0tN')
        (path / "manifest.json").write_bytes(content)
        with suppress(UnicodeDecodeError):
            (path / "manifest.sha256").write_text(seal_of(bytes(content)))
        with suppress(BundleError):
            Bundle.open(path)


def test_any_graph_with_a_right_hash_opens_or_is_refused(tmp_path: Path) -> None:
    """Bytes changed, cut out and put in: read as an interface, or refused."""
    draw = random.Random(SEED)
    content = (tiny_bundle() / f"graphs/{SET}/assign.onnx").read_bytes()
    file = tmp_path / "graph.onnx"
    refused = 0
    for turn in range(600):
        bad = bytearray(content)
        # Most of a file is weights, which are not looked at: rather its ends.
        near = draw.choice((200, len(bad)))
        for _ in range(draw.choice((1, 2, 4))):
            place = draw.choice((draw.randrange(near), len(bad) - 1 - draw.randrange(near)))
            kind = draw.randrange(3)
            if kind == 0:
                bad[place] = draw.randrange(256)
            elif kind == 1:
                del bad[place : place + draw.randrange(1, 40)]
            else:
                bad[place:place] = draw.randbytes(draw.randrange(1, 40))
            near = min(near, len(bad))
        file.write_bytes(bad)
        with only_small_allocations() if turn % 10 == 0 else nullcontext():
            try:
                read_interface(file)
            except BundleFormatError:
                refused += 1
    assert refused > 300


ABSURD: dict[str, Edit] = {
    "timesteps": setting("schedule", "timesteps", value=HUGE),
    "steps": setting("sampling", "num_inference_steps", value=HUGE),
    "image": setting("image", "size", value=HUGE),
    "channels": setting("image", "channels", value=4096),
    "latent": setting("latent", "shape", value=[1 << 16, 1 << 16, 1 << 16]),
    "width": setting("condition_width", value=HUGE),
    "batch": setting("sets", SET, "batches", value=[HUGE]),
    "opset": setting("sets", SET, "opset", value=HUGE),
    "size of a file": setting("files", STEP, "size", value=HUGE),
    "shares": setting("node_share", value=[0.5] * 10_000),
    "scales": setting("sampling", "guidance_scale", value=[[1.0]]),
}


@pytest.mark.parametrize("claim", ABSURD)
def test_absurd_sizes_are_refused_before_they_exist(claim: str, path: Path) -> None:
    change(path, ABSURD[claim])
    with only_small_allocations(), pytest.raises(BundleError):
        Bundle.open(path)


def test_shapes_that_agree_and_are_absurd_are_refused(path: Path) -> None:
    """10^12 elements, claimed in every place at once: by the limits, not by a contradiction."""

    def edit(manifest: dict[str, Any]) -> None:
        manifest["latent"]["shape"] = [1 << 16, 1 << 12, 1 << 12]
        for both in manifest["tensors"].values():
            for spec in (*both["inputs"], *both["outputs"]):
                if spec["shape"][1:] == [TREE.num_nodes, 4, 2, 2]:
                    spec["shape"][2:] = manifest["latent"]["shape"]
                elif spec["name"] == "z_path":
                    spec["shape"][2] = 1 << 40

    change(path, edit)
    with only_small_allocations(), pytest.raises(BundleFormatError, match="elements"):
        Bundle.open(path)


@pytest.mark.parametrize("name", ["manifest.json", "manifest.sha256", "tree.json"])
def test_endless_texts_are_not_read_to_their_end(name: str, path: Path) -> None:
    with (path / name).open("r+b") as stream:
        stream.truncate(50 * TEXT_LIMIT)
    if name == "tree.json":
        change(path, setting("files", name, value={"sha256": "", "size": 50 * TEXT_LIMIT}))
    with only_small_allocations(), pytest.raises(BundleError):
        Bundle.open(path, verify=False)


@pytest.mark.parametrize("depth", [65, 900])
def test_a_tree_of_endless_depth(depth: int, path: Path) -> None:
    names = ["r" + "0" * k for k in range(depth + 1)]
    nodes = [
        {"name": n, "parent": k - 1, "left": k + 1 if k < depth else -1, "right": -1}
        for k, n in enumerate(names)
    ]
    (path / "tree.json").write_text(json.dumps({"format": 1, "nodes": nodes}))
    seal(path)
    with pytest.raises(BundleFormatError, match=f"{depth} levels deep"):
        Bundle.open(path)


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999", "1" + "0" * 400])
def test_numbers_that_json_or_a_word_does_not_have(text: str, path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["schedule"]["beta_end"] = "here"
    content = json.dumps(manifest).replace('"here"', text).encode()
    (path / "manifest.json").write_bytes(content)
    (path / "manifest.sha256").write_text(seal_of(content))
    with pytest.raises(BundleFormatError, match=r"not finite|64 bits"):
        Bundle.open(path)


def test_a_key_that_occurs_twice(path: Path) -> None:
    content = (path / "manifest.json").read_bytes().replace(b'"kind"', b'"image": 1, "kind"', 1)
    (path / "manifest.json").write_bytes(content)
    (path / "manifest.sha256").write_text(seal_of(content))
    with pytest.raises(BundleFormatError, match="twice"):
        Bundle.open(path)


def edited(edit: Callable[[onnx.ModelProto], object]) -> Callable[[bytes], bytes]:
    def apply(content: bytes) -> bytes:
        model = onnx.load_model_from_string(content)
        edit(model)
        return bytes(model.SerializeToString())

    return apply


def external() -> TensorProto:
    weight = numpy_helper.from_array(np.zeros(1, np.float32), "w")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="/etc/passwd")
    return weight


def nested(depth: int) -> onnx.NodeProto:
    node = helper.make_node("Identity", ["x"], ["y"])
    for _ in range(depth):
        node = helper.make_node(
            "If", ["x"], ["y"], then_branch=helper.make_graph([node], "", [], [])
        )
    return node


HARMFUL: dict[str, Callable[[bytes], bytes]] = {
    "wrong magic": lambda content: b"PK\3\4" + content,
    "a pickle": lambda content: b"\x80\x04K\x01.",
    "zeros": lambda content: bytes(len(content)),
    "nothing": lambda content: b"",
    "two graphs": lambda content: content + content,
    "weights elsewhere": edited(lambda m: m.graph.initializer.append(external())),
    "a constant elsewhere": edited(
        lambda m: m.graph.node.append(helper.make_node("Constant", [], ["c"], value=external()))
    ),
    "an operator of its own": edited(
        lambda m: m.graph.node.append(helper.make_node("Run", ["x"], ["y"], domain="com.evil"))
    ),
    "operators of another": edited(
        lambda m: m.opset_import.append(helper.make_opsetid("com.evil", 1))
    ),
    "a function": edited(lambda m: m.functions.add(name="f")),
    "sparse weights": edited(lambda m: m.graph.sparse_initializer.add()),
    "endless depth": edited(lambda m: m.graph.node.append(nested(20))),
    "another opset": edited(lambda m: setattr(m.opset_import[0], "version", 17)),
    "another name": edited(lambda m: setattr(m.graph.input[0], "name", "y")),
    "another type": edited(
        lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", TensorProto.DOUBLE)
    ),
    "another side": edited(
        lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[2], "dim_value", HUGE)
    ),
    "an input more": edited(lambda m: m.graph.input.append(m.graph.input[0])),
    "an output less": edited(lambda m: m.graph.output.pop()),
}


@pytest.mark.parametrize("harm", HARMFUL)
def test_graphs_that_ours_never_are(harm: str, path: Path) -> None:
    """With right hashes, so that only what they say can tell."""
    (path / STEP).write_bytes(HARMFUL[harm]((path / STEP).read_bytes()))
    seal(path)
    with only_small_allocations(), pytest.raises(BundleFormatError, match=r"step\.onnx"):
        Bundle.open(path)


def test_a_graph_of_huge_weights_is_not_read(path: Path) -> None:
    """10^8 bytes in a sparse file: only its interface is looked at."""
    head = (path / STEP).read_bytes()
    # A field that readers skip, of so many bytes.
    with (path / STEP).open("wb") as stream:
        stream.write(head + b"\xba\x06" + b"\x80\xc2\xd7\x2f")
        stream.truncate(stream.tell() + 100_000_000)
    size = (path / STEP).stat().st_size
    change(path, setting("files", STEP, value={"sha256": "", "size": size}))
    with only_small_allocations():
        Bundle.open(path, verify=False)
        with pytest.raises(BundleIntegrityError):
            Bundle.open(path)


FORBIDDEN = {
    "eval", "exec", "compile", "__import__", "pickle.load", "pickle.loads", "marshal.loads",
    "yaml.load", "yaml.unsafe_load", "yaml.full_load", "joblib.load", "torch.jit.load",
}  # fmt: skip


def runs_code(call: ast.Call) -> bool:
    """Whether a call may turn what it reads into code."""
    told = {word.arg: getattr(word.value, "value", None) for word in call.keywords}
    name = ast.unparse(call.func)
    if name == "torch.load":
        return told.get("weights_only") is not True
    return name in FORBIDDEN or told.get("allow_pickle", False) is not False


def test_nothing_that_is_loaded_is_run() -> None:
    """No call in the package unpickles or evaluates what a file says."""
    root = Path(treediffusion.__file__).parent
    faults = [
        f"{file.name}:{node.lineno}: {ast.unparse(node.func)}"
        for folder in (root, root / "kernels", root / "export")
        for file in folder.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.Call) and runs_code(node)
    ]
    assert not faults
