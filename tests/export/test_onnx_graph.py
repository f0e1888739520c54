"""The parity ladder of the extractors: formula in numpy → torch module → folded student → fp32 graph."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from export.onnx_graph import FoldedStudent, export_graph, fuse_graph, graph_tensors
from relevance.tokenization import PairBatch
from training.student.extractor import (
    GATExtractor,
    GATv2Extractor,
    MLPExtractor,
    PolyExtractor,
    graph_token_weights,
)

KINDS = ("none", "cls", "mlp", "poly", "gat", "gatv2")
SLOPE = 0.2


def mixed_batch(tokenizer, *, pad_to: int = 0) -> PairBatch:
    """Give four pairs of very different lengths in one batch."""
    queries = [tokenizer.encode_query(text) for text in ("red shoes", "usb c cable 2m", "x", "coffee maker")]
    titles = ("Red running shoes", "Cable " * 60, "Y", "Drip coffee maker, 12 cups | Morningside")
    return tokenizer.collate(queries, tokenizer.encode_items(titles), pad_to=pad_to)


def tensors(batch: PairBatch) -> dict[str, torch.Tensor]:
    """Give a batch as the student takes it."""
    return {name: torch.from_numpy(array) for name, array in batch.inputs().items()}


def ragged_states(rng: np.random.Generator, width: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Give random token states (3, 6, width) and a mask of 6, 4 and 1 tokens."""
    mask_BL = (np.arange(6)[None] < np.array([6, 4, 1])[:, None]).astype(np.int64)
    return rng.normal(size=(3, 6, width)), mask_BL


def leaky(x: float) -> float:
    """LeakyReLU with slope 0.2."""
    return x if x > 0 else SLOPE * x


def softmax(x: np.ndarray) -> np.ndarray:
    """Softmax of a vector."""
    powers = np.exp(x - x.max())
    return powers / powers.sum()


def textbook_gat(hidden_LD: np.ndarray, weight_RD: np.ndarray, attention_2R: np.ndarray) -> np.ndarray:
    """arXiv:2601.21611 eq. 14–16, edge by edge: r = 1/n Σ_i Σ_j softmax_j(LeakyReLU(aᵀ[Wh_i ‖ Wh_j])) W h_j."""
    moved = [weight_RD @ h for h in hidden_LD]
    flat = attention_2R.reshape(-1)
    total = np.zeros(len(weight_RD))
    for here in moved:
        scores = np.array([leaky(float(flat @ np.concatenate([here, there]))) for there in moved])
        for share, there in zip(softmax(scores), moved, strict=True):
            total += share * there
    return total / len(moved)


def textbook_poly(hidden_LD: np.ndarray, codes_CD: np.ndarray) -> np.ndarray:
    """arXiv:2601.21611 eq. 12–13, code by code: r = 1/K Σ_k Σ_j softmax_j(u_k · h_j / √d) h_j."""
    total = np.zeros(hidden_LD.shape[1])
    for code in codes_CD:
        total += softmax(hidden_LD @ code / np.sqrt(len(code))) @ hidden_LD
    return total / len(codes_CD)


def sorted_gat_weights(source_L: np.ndarray, target_L: np.ndarray) -> np.ndarray:
    """The O(L log L) form: sort t, split each row's softmax at t_j > −s_i, and add up by prefix sums."""
    descending = np.argsort(-target_L)
    t = target_L[descending] - target_L.max()
    s = source_L + target_L.max()
    high, low = np.exp(t), np.exp(SLOPE * t)
    high_before = np.concatenate([[0.0], np.cumsum(high)])
    low_after = np.concatenate([np.cumsum(low[::-1])[::-1], [0.0]])
    split = np.searchsorted(-t, s, side="left")
    shift = np.maximum(s, SLOPE * s)
    high_factor, low_factor = np.exp(s - shift), np.exp(SLOPE * s - shift)
    norm = high_factor * high_before[split] + low_factor * low_after[split]
    order = np.argsort(-split)
    high_rows = np.concatenate([[0.0], np.cumsum((high_factor / norm)[order])])
    low_rows = np.cumsum((low_factor / norm)[order][::-1])[::-1]
    low_rows = np.concatenate([low_rows, [0.0]])
    inside = np.searchsorted(-split[order], -np.arange(len(t)), side="left")
    weight = np.empty(len(t))
    weight[descending] = (high * high_rows[inside] + low * low_rows[inside]) / len(t)
    return weight


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (MLPExtractor, 1_181_184),
        (PolyExtractor, 24_576),
        (GATExtractor, 591_360),
    ],
)
def test_extractors_have_the_papers_parameter_counts(make, expected: int):
    """At d = 768: MLP 2·(768² + 768), Poly 32·768, GAT 768² + 2·768."""
    assert expected == sum(p.numel() for p in make(768).parameters())


def test_gat_equals_the_textbook_loop_on_ragged_pairs(rng: np.random.Generator):
    """The module's latent is the one of the literal edge-by-edge loop over each pair's own tokens."""
    extractor = GATExtractor(8, 5).double()
    hidden_BLD, mask_BL = ragged_states(rng)
    latent_BR, _ = extractor(torch.from_numpy(hidden_BLD), torch.from_numpy(mask_BL))
    weight_RD, attention_2R = (p.detach().numpy() for p in (extractor.weight.weight, extractor.attention_2R))

    for row, n in enumerate((6, 4, 1)):
        expected = textbook_gat(hidden_BLD[row, :n], weight_RD, attention_2R)
        assert expected == pytest.approx(latent_BR[row].detach().numpy(), abs=1e-12)


def test_poly_equals_the_textbook_loop_on_ragged_pairs(rng: np.random.Generator):
    """The module's latent is the mean of the codes' own attention poolings."""
    extractor = PolyExtractor(8, codes=3).double()
    hidden_BLD, mask_BL = ragged_states(rng)
    latent_BR, _ = extractor(torch.from_numpy(hidden_BLD), torch.from_numpy(mask_BL))

    for row, n in enumerate((6, 4, 1)):
        expected = textbook_poly(hidden_BLD[row, :n], extractor.codes_CD.detach().numpy())
        assert expected == pytest.approx(latent_BR[row].detach().numpy(), abs=1e-12)


def test_mlp_equals_the_mean_of_per_token_layers(rng: np.random.Generator):
    """eq. 10–11: both layers run on each token, then the mean over the pair's tokens is taken."""
    extractor = MLPExtractor(8, 5).double()
    hidden_BLD, mask_BL = ragged_states(rng)
    latent_BR, _ = extractor(torch.from_numpy(hidden_BLD), torch.from_numpy(mask_BL))

    for row, n in enumerate((6, 4, 1)):
        tokens = [
            extractor.second(torch.nn.functional.gelu(extractor.first(torch.from_numpy(h))))
            for h in hidden_BLD[row, :n]
        ]
        expected = torch.stack(tokens).mean(dim=0).detach().numpy()
        assert expected == pytest.approx(latent_BR[row].detach().numpy(), abs=1e-12)


@pytest.mark.parametrize("length", [1, 7, 128])
def test_gat_token_weights_equal_the_sorting_form(rng: np.random.Generator, length: int):
    """w_j computed over all L² edges equals the form that sorts and takes prefix sums."""
    hidden_LD, direction_2D = rng.normal(size=(length, 8)), rng.normal(size=(2, 8))
    ones = torch.ones(1, length, dtype=torch.int64)
    weight = graph_token_weights(torch.from_numpy(hidden_LD)[None], ones, torch.from_numpy(direction_2D))
    source_L, target_L = direction_2D @ hidden_LD.T

    assert sorted_gat_weights(source_L, target_L) == pytest.approx(weight[0].numpy(), abs=1e-12)


@pytest.mark.parametrize("make", [MLPExtractor, PolyExtractor, GATExtractor, GATv2Extractor])
def test_padding_changes_neither_latent_nor_weights(rng: np.random.Generator, make):
    """Three more columns of padding, filled with large values, leave everything as it was."""
    extractor = make(8).double()
    hidden_BLD, mask_BL = ragged_states(rng)
    first_BR, first_BL = extractor(torch.from_numpy(hidden_BLD), torch.from_numpy(mask_BL))
    wide_BLD = np.concatenate([hidden_BLD, np.full((3, 3, 8), 9.0)], axis=1)
    wide_BL = np.concatenate([mask_BL, np.zeros((3, 3), dtype=np.int64)], axis=1)
    second_BR, second_BL = extractor(torch.from_numpy(wide_BLD), torch.from_numpy(wide_BL))

    assert first_BR.detach().numpy() == pytest.approx(second_BR.detach().numpy(), abs=1e-12)
    assert first_BL.detach().numpy() == pytest.approx(second_BL[:, :6].detach().numpy(), abs=1e-12)
    assert second_BL[:, 6:].abs().max() == 0


@pytest.mark.parametrize("make", [PolyExtractor, GATExtractor, GATv2Extractor])
def test_token_weights_move_with_their_tokens(rng: np.random.Generator, make):
    """Permuting the tokens permutes the weights in the same way and leaves the latent."""
    extractor = make(8).double()
    hidden_BLD = rng.normal(size=(2, 6, 8))
    ones = torch.ones(2, 6, dtype=torch.int64)
    order = rng.permutation(6)
    first_BR, first_BL = extractor(torch.from_numpy(hidden_BLD), ones)
    second_BR, second_BL = extractor(torch.from_numpy(hidden_BLD[:, order]), ones)

    assert first_BL.detach().numpy()[:, order] == pytest.approx(second_BL.detach().numpy(), abs=1e-12)
    assert first_BR.detach().numpy() == pytest.approx(second_BR.detach().numpy(), abs=1e-12)


@pytest.mark.parametrize("make", [MLPExtractor, PolyExtractor, GATExtractor, GATv2Extractor])
def test_a_pair_of_padding_alone_stays_finite_in_half_precision(make):
    """The mask's bias is finite in fp16, so that no softmax is over minus infinity only."""
    extractor = make(8).half()
    hidden_BLD = torch.ones(2, 4, 8, dtype=torch.float16)
    mask_BL = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0]])
    latent_BR, weight_BL = extractor(hidden_BLD, mask_BL)

    assert torch.isfinite(latent_BR).all()
    assert torch.isfinite(weight_BL).all()


@pytest.mark.parametrize(("kind", "slots"), [*((kind, False) for kind in KINDS), ("gat", True), ("cls", True)])
@pytest.mark.parametrize(("pooling", "head_width"), [("cls", None), ("cls_mean", 16), ("segments", None)])
def test_folding_changes_no_output(make_student, kind: str, slots: bool, pooling: str, head_width: int | None):
    """Logits, latent and token weights of the folded student equal the student's to 1e-5."""
    student, tokenizer = make_student(kind, pooling, head_width=head_width, slots=slots)
    folded = FoldedStudent(student, latent_outputs=True).eval()
    batch = tensors(mixed_batch(tokenizer))
    with torch.inference_mode():
        expected, found = student(**batch), folded(**batch)

    assert expected.logits_BK.numpy() == pytest.approx(found["logits"].numpy(), abs=1e-5)
    assert expected.token_weights_BL.numpy() == pytest.approx(found["token_weights"].numpy(), abs=1e-6)
    if expected.latent_BR is None:
        assert "latent" not in found
    else:
        assert expected.latent_BR.numpy() == pytest.approx(found["latent"].numpy(), abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "slots"), [("mlp", False), ("poly", False), ("gat", False), ("gatv2", False), ("gat", True)]
)
def test_both_graphs_equal_the_student_on_a_batch_of_mixed_lengths(
    make_student, tmp_path: Path, kind: str, slots: bool
):
    """Unfused and fused fp32 graphs give the student's logits to 1e-4, padded or not."""
    student, tokenizer = make_student(kind, slots=slots)
    export_graph(student, tmp_path / "unfused.onnx")
    fuse_graph(tmp_path / "unfused.onnx", tmp_path / "fused.onnx", heads=4, width=64)
    for batch in (mixed_batch(tokenizer), mixed_batch(tokenizer, pad_to=96)):
        with torch.inference_mode():
            expected_BK = student(**tensors(batch)).logits_BK.numpy()

        for name in ("unfused", "fused"):
            (found_BK,) = ort.InferenceSession(tmp_path / f"{name}.onnx").run(["logits"], batch.inputs())
            assert expected_BK == pytest.approx(found_BK, abs=1e-4), name


def test_the_graph_gives_latent_and_token_weights_on_request(make_student, tmp_path: Path):
    """With latent outputs the graph has three outputs, equal to the student's."""
    student, tokenizer = make_student("gat")
    export_graph(student, tmp_path / "graph.onnx", latent_outputs=True)
    batch = mixed_batch(tokenizer)
    latent_BR, weight_BL = ort.InferenceSession(tmp_path / "graph.onnx").run(
        ["latent", "token_weights"], batch.inputs()
    )
    with torch.inference_mode():
        expected = student(**tensors(batch))

    assert graph_tensors(tmp_path / "graph.onnx")[1] == {
        "logits": "float32",
        "latent": "float32",
        "token_weights": "float32",
    }
    assert expected.latent_BR.numpy() == pytest.approx(latent_BR, abs=1e-4)
    assert expected.token_weights_BL.numpy() == pytest.approx(weight_BL, abs=1e-5)


def test_the_fused_graph_is_small_and_holds_nothing_of_training(make_student, tmp_path: Path):
    """One attention node a layer; GAT adds two directions and a wider head, not W, and fewer than thirty nodes."""
    graphs = {}
    for kind in ("none", "gat"):
        student, _ = make_student(kind, "cls")
        export_graph(student, tmp_path / "unfused.onnx")
        fuse_graph(tmp_path / "unfused.onnx", tmp_path / f"{kind}.onnx", heads=4, width=64)
        graphs[kind] = onnx.load(tmp_path / f"{kind}.onnx").graph
    operators = Counter(node.op_type for node in graphs["gat"].node)
    nodes = {kind: sum(n.op_type != "Constant" for n in graph.node) for kind, graph in graphs.items()}
    floats = {
        kind: sum(int(np.prod(t.dims)) for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
        for kind, graph in graphs.items()
    }

    assert tuple(
        operators[name] for name in ("Attention", "EmbedLayerNormalization", "SkipLayerNormalization", "BiasGelu")
    ) == (2, 1, 4, 2)
    assert nodes["gat"] - nodes["none"] < 30
    assert 2 * 64 + 4 * 64 <= floats["gat"] - floats["none"] < 2 * 64 + 4 * 64 + 16


def test_token_types_change_the_scores(make_student, tmp_path: Path):
    """The graph reads token types: all zero, the item would be taken for more of the query."""
    student, tokenizer = make_student("gat")
    export_graph(student, tmp_path / "unfused.onnx")
    fuse_graph(tmp_path / "unfused.onnx", tmp_path / "fused.onnx", heads=4, width=64)
    session = ort.InferenceSession(tmp_path / "fused.onnx")
    inputs = mixed_batch(tokenizer).inputs()
    (with_types_BK,) = session.run(["logits"], inputs)
    (without_BK,) = session.run(["logits"], {**inputs, "token_type_ids": np.zeros_like(inputs["token_type_ids"])})

    assert np.abs(with_types_BK - without_BK).max(axis=1).min() > 1e-3


def textbook_gatv2(extractor: GATv2Extractor, hidden_LD: np.ndarray) -> np.ndarray:
    """arXiv:2105.14491, edge by edge: r = 1/n Σ_i Σ_j softmax_j(aᵀ LeakyReLU(U h_i + V h_j)) W h_j."""
    weight, source, target, attention = (
        module.weight.detach().numpy()
        for module in (extractor.weight, extractor.source, extractor.target, extractor.attention)
    )
    bias = extractor.target.bias.detach().numpy()
    total = np.zeros(len(weight))
    for here in hidden_LD:
        scores = []
        for there in hidden_LD:
            edge = source @ here + target @ there + bias
            scores.append(float(attention[0] @ np.array([leaky(float(x)) for x in edge])))
        for share, there in zip(softmax(np.array(scores)), hidden_LD, strict=True):
            total += share * (weight @ there)
    return total / len(hidden_LD)


def test_gatv2_is_the_loop_over_edges(rng: np.random.Generator):
    """The batched form with ragged masks equals the paper's formula, pair by pair."""
    extractor = GATv2Extractor(8).double()
    hidden_BLD, mask_BL = ragged_states(rng)
    latent_BR, _ = extractor(torch.from_numpy(hidden_BLD), torch.from_numpy(mask_BL))

    for hidden_LD, mask_L, latent_R in zip(hidden_BLD, mask_BL, latent_BR.detach().numpy(), strict=True):
        assert latent_R == pytest.approx(textbook_gatv2(extractor, hidden_LD[mask_L == 1]), abs=1e-10)


@pytest.mark.parametrize("name", ["ced_kd", "mkd", "crsd", "guidance"])
def test_nothing_of_a_training_only_term_reaches_the_graph(make_student, tmp_path: Path, name: str):
    """Decoder, CRF, projector and P are trained beside the student; its graph has not one weight or node more."""
    from training.student.ced_kd import RationaleDecoder
    from training.student.crsd import CrsdTerm
    from training.student.guidance import GuidanceTerm
    from training.student.mkd import MkdTerm
    from training.student_recipe import CedKdRecipe, CrsdRecipe, GuidanceRecipe, MkdRecipe

    student, _ = make_student("gat")
    export_graph(student, tmp_path / "before.onnx")
    term = {
        "ced_kd": lambda: RationaleDecoder(student, CedKdRecipe(), np.arange(5), bos=101, eos=102, pad=0),
        "mkd": lambda: MkdTerm(student, MkdRecipe()),
        "crsd": lambda: CrsdTerm(student, CrsdRecipe(), None),
        "guidance": lambda: GuidanceTerm(student, 0.1, GuidanceRecipe(), 24),
    }[name]()
    export_graph(student, tmp_path / "after.onnx")
    before, after = (onnx.load(tmp_path / f"{when}.onnx").graph for when in ("before", "after"))

    assert sum(parameter.numel() for parameter in term.parameters()) > 0
    assert [node.op_type for node in after.node] == [node.op_type for node in before.node]
    assert [tuple(i.dims) for i in after.initializer] == [tuple(i.dims) for i in before.initializer]
