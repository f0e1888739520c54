"""Prototype rationales: the search, the file, and the bundle that holds it."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relevance.bundle import LATENT, MANIFEST, PROTOTYPES, Manifest, open_bundle, write_bundle
from relevance.errors import BundleError, BundleIntegrityError
from relevance.prototypes import MAX_BYTES, Prototypes

P, R, D, K = 3, 5, 4, 4
PERSPECTIVE = (0, 0, 1, 1, 1, 2)


def make_prototypes(seed: int = 0, *, latent_width: int = R) -> Prototypes:
    """Give six prototypes of three perspectives with random directions and maps."""
    rng = np.random.default_rng(seed)
    direction_MD = rng.normal(size=(len(PERSPECTIVE), D))
    share_MK = rng.random((len(PERSPECTIVE), K))
    return Prototypes(
        perspectives=("user", "struct", "rule"),
        texts=tuple(f"Rationale {i}." for i in range(len(PERSPECTIVE))),
        perspective_M=np.array(PERSPECTIVE),
        share_MK=(share_MK / share_MK.sum(axis=1, keepdims=True)).astype(np.float32),
        size_M=np.arange(20, 26),
        direction_MD=(direction_MD / np.linalg.norm(direction_MD, axis=1, keepdims=True)).astype(np.float32),
        map_PRD=rng.normal(size=(P, latent_width, D)).astype(np.float32),
        offset_PD=rng.normal(size=(P, D)).astype(np.float32),
        floor_P=np.full(P, 0.25, np.float32),
    )


@given(st.integers(0, 1000), st.integers(1, 20))
def test_the_nearest_is_that_of_the_largest_cosine_in_its_own_perspective(seed: int, n: int):
    """Held against the cosine of every pair with every prototype, one by one."""
    prototypes = make_prototypes(seed)
    latent_BR = np.random.default_rng(seed).normal(size=(n, R)).astype(np.float32)
    index_BP, similarity_BP = prototypes.nearest(latent_BR)

    for b, latent_R in enumerate(latent_BR):
        for p in range(P):
            place_D = latent_R @ prototypes.map_PRD[p] + prototypes.offset_PD[p]
            cosines = {
                m: float(prototypes.direction_MD[m] @ place_D / np.linalg.norm(place_D))
                for m in range(len(PERSPECTIVE))
                if PERSPECTIVE[m] == p
            }
            assert PERSPECTIVE[index_BP[b, p]] == p
            assert similarity_BP[b, p] == pytest.approx(max(cosines.values()), abs=1e-5)
            assert cosines[int(index_BP[b, p])] == pytest.approx(max(cosines.values()), abs=1e-5)


def test_a_pair_has_the_same_nearest_alone_and_in_a_batch():
    """What other pairs are searched with it changes nothing that a reader could see."""
    prototypes = make_prototypes()
    latent_BR = np.random.default_rng(1).normal(size=(40, R)).astype(np.float32)
    index_BP, similarity_BP = prototypes.nearest(latent_BR)

    for b in range(40):
        index_1P, similarity_1P = prototypes.nearest(latent_BR[b : b + 1])
        assert index_BP[b].tolist() == index_1P[0].tolist()
        assert similarity_BP[b] == pytest.approx(similarity_1P[0], abs=1e-6)


def test_no_latents_give_no_neighbours_and_a_latent_on_nothing_gives_numbers():
    """An empty batch has shape (0, P); a latent that maps to the origin has similarity 0."""
    prototypes = replace(make_prototypes(), offset_PD=np.zeros((P, D), np.float32))

    assert prototypes.nearest(np.empty((0, R), np.float32))[0].shape == (0, P)
    assert prototypes.nearest(np.zeros((1, R), np.float32))[1].tolist() == [[0, 0, 0]]


def test_latents_of_another_width_are_an_error():
    """The maps are of one student."""
    with pytest.raises(BundleError, match=r"expected latents of shape \(B, 5\), found \(2, 6\)"):
        make_prototypes().nearest(np.zeros((2, 6), np.float32))


def test_what_is_written_is_what_is_read():
    """Every array and text, and the same bytes each time."""
    prototypes = make_prototypes()
    data = prototypes.to_bytes()
    read = Prototypes.from_bytes(data, n_classes=K)

    assert read.texts == prototypes.texts
    assert read.perspectives == prototypes.perspectives
    assert (read.direction_MD == prototypes.direction_MD).all()
    assert read.latent_width == R
    assert read.to_bytes() == data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"share_MK": np.full((6, K), 0.3, np.float32)}, "label shares that sum to 1"),
        ({"direction_MD": np.ones((6, D), np.float32)}, "directions of length 1"),
        ({"direction_MD": np.ones((5, D), np.float32)}, r"direction_MD of shape \(6, 4\), found \(5, 4\)"),
        ({"map_PRD": np.ones((P, R, D + 1), np.float32)}, r"map_PRD of shape \(3, 5, 4\), found \(3, 5, 5\)"),
        ({"floor_P": np.full(P, np.nan, np.float32)}, "finite numbers in floor_P"),
        ({"size_M": np.ones(6, np.float32)}, "size_M of 1 axes in int64"),
        ({"perspective_M": np.array([0, 0, 1, 1, 1, 1])}, "prototypes of each of the perspectives"),
        ({"perspective_M": np.array([0, 0, 1, 1, 2, 3])}, "prototypes of each of the perspectives"),
        ({"texts": ("a", "b", "c", " ", "d", "e")}, "texts that are not empty"),
        ({"texts": ("a" * MAX_BYTES, "b", "c", "d", "e", "f")}, "at most 1000000 bytes"),
    ],
)
def test_prototypes_that_contradict_themselves_are_not_written(change: dict, message: str):
    """Each message names the array and what was expected of it."""
    with pytest.raises(BundleError, match=message):
        replace(make_prototypes(), **change).to_bytes()


def npy_header(shape: str) -> bytes:
    """Give an array file that says it has this shape and holds nothing."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def other_member(content: bytes) -> bytes:
    """Give an archive of prototypes in which one member is something else."""
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(make_prototypes().to_bytes())) as good, zipfile.ZipFile(written, "w") as bad:
        for name in good.namelist():
            bad.writestr(name, content if name == "floor_P.npy" else good.read(name))
    return written.getvalue()


def test_a_small_file_of_large_arrays_is_refused_before_they_are_made():
    """Members are stored as they are, so that a file of 1 MB cannot take more."""
    packed = io.BytesIO()
    np.savez_compressed(packed, texts=np.zeros(10_000_000, dtype=np.float32))

    with pytest.raises(BundleError, match=r"expected members stored as they are, found 'texts.npy' packed"):
        Prototypes.from_bytes(packed.getvalue(), n_classes=K)


def test_a_file_that_is_no_archive_of_these_arrays_is_refused():
    """Cut short, pickled, another format, another scheme, another set of arrays, or too large."""
    data = make_prototypes().to_bytes()
    lone, pickled, other = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.save(lone, np.zeros(3))
    np.savez(pickled, texts=np.array([{}], dtype=object))
    np.savez(other, texts=np.array(["a"]))
    for bad in (data[:-40], b"", b"text", lone.getvalue(), pickled.getvalue()):
        with pytest.raises(BundleError, match=r"expected an .npz archive of plain arrays"):
            Prototypes.from_bytes(bad, n_classes=K)
    for member in (b"no array", npy_header("(1000000000000,)"), npy_header("((")):
        with pytest.raises(BundleError, match=r"expected an .npz archive of plain arrays"):
            Prototypes.from_bytes(other_member(member), n_classes=K)
    with pytest.raises(BundleError, match=r"expected the arrays .* found \['texts'\]"):
        Prototypes.from_bytes(other.getvalue(), n_classes=K)
    with pytest.raises(BundleError, match=r"share_MK of shape \(6, 3\), found \(6, 4\)"):
        Prototypes.from_bytes(data, n_classes=3)
    with pytest.raises(BundleError, match="at most 1000000 bytes"):
        Prototypes.from_bytes(data + bytes(MAX_BYTES), n_classes=K)


def rewritten(source: Path, target: Path, *, latent: bool) -> Manifest:
    """Write a bundle again with prototypes, its graphs saying that they give latents or not."""
    bundle = open_bundle(source)
    manifest = bundle.manifest.model_copy(update={"files": {}, "bundle_id": ""})
    if latent:
        graphs = {
            precision: graph.model_copy(update={"outputs": {**graph.outputs, LATENT: "float32"}})
            for precision, graph in manifest.graphs.items()
        }
        manifest = manifest.model_copy(update={"graphs": graphs})
    files: dict[str, bytes | Path] = {path.name: path for path in source.iterdir() if path.name != MANIFEST}
    return write_bundle(target, manifest, {**files, PROTOTYPES: make_prototypes().to_bytes()})


def test_a_bundle_may_hold_prototypes(tiny_bundle: Path, tmp_path: Path):
    """They are read, fingerprinted and part of the bundle's id; a bundle without them opens as ever."""
    manifest = rewritten(tiny_bundle, tmp_path / "bundle", latent=True)
    bundle = open_bundle(tmp_path / "bundle")

    assert open_bundle(tiny_bundle).prototypes is None
    assert bundle.prototypes is not None
    assert bundle.prototypes.texts == make_prototypes().texts
    assert PROTOTYPES in manifest.files
    assert manifest.bundle_id != open_bundle(tiny_bundle).manifest.bundle_id


def test_prototypes_without_a_graph_that_gives_latents_are_refused(tiny_bundle: Path, tmp_path: Path):
    """Nothing could be looked up in them."""
    rewritten(tiny_bundle, tmp_path / "bundle", latent=False)
    with pytest.raises(BundleError, match=r"expected graphs with output 'latent' beside rationales.npz"):
        open_bundle(tmp_path / "bundle")


def test_edited_or_missing_prototypes_are_refused(tiny_bundle: Path, tmp_path: Path):
    """As any other file of a bundle."""
    rewritten(tiny_bundle, tmp_path / "bundle", latent=True)
    path = tmp_path / "bundle" / PROTOTYPES
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleIntegrityError, match=r"rationales.npz: expected sha256"):
        open_bundle(tmp_path / "bundle")
    path.unlink()
    with pytest.raises(BundleIntegrityError, match=r"rationales.npz: expected a file"):
        open_bundle(tmp_path / "bundle")
