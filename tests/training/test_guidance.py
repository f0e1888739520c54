"""Guidance: its targets, its controls, and the term that pulls the latent towards them."""

import numpy as np
import pytest
import torch

from relevance.errors import RecipeError
from training.cot_store import CotStore
from training.student.batches import Batch
from training.student.guidance import (
    EMBEDDING,
    PRESENT,
    GuidanceTerm,
    guidance_targets,
    mean_square,
    reachable,
    reduced_by_pca,
)
from training.student.losses import (
    alike,
    cosine_guidance_loss,
    guidance_loss,
    info_nce,
    info_nce_guidance_loss,
)
from training.student_recipe import GuidanceRecipe

PERSPECTIVES = ("user", "struct", "rule")
N, D = 60, 8
IDS = [f"q{i // 6}\ti{i}" for i in range(N)]
LABELS = np.arange(N) % 4


@pytest.fixture
def store():
    """Random unit embeddings of three perspectives and a combined one; the last pair has none."""
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((4 * N, D)).astype(np.float32)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    names = (*PERSPECTIVES, "combined")
    rows = {(pair, p): 4 * i + k for i, pair in enumerate(IDS[:-1]) for k, p in enumerate(names)}
    return CotStore(names, matrix, rows, "model")


def targets(store, **recipe):
    """What a recipe makes of the store."""
    return guidance_targets(store, GuidanceRecipe(**{"centre": False, **recipe}), IDS, LABELS, seed=3)


def embeddings(store):
    """Embeddings of all pairs and where they are missing."""
    return store.lookup(IDS)


def test_plain_targets_are_the_three_perspectives_without_the_joined_text(store):
    """The joined text is a target of its own, asked for by name."""
    assert targets(store).perspectives == PERSPECTIVES
    assert targets(store, perspectives=("combined",)).perspectives == ("combined",)
    np.testing.assert_array_equal(embeddings(targets(store))[0], store.lookup(IDS)[0][:, :3])


def test_an_unknown_perspective_is_refused_by_name(store):
    """The message says what there is."""
    with pytest.raises(RecipeError, match=r"expected some of .*user.*found \['price'\]"):
        targets(store, perspectives=("price",))


@pytest.mark.parametrize("target", ["shuffled", "constant", "random", "one_hot"])
def test_a_control_has_targets_for_the_same_pairs_and_of_the_same_length(store, target):
    """λ and everything else stays; a constant target is a mean and therefore shorter."""
    made, mask = embeddings(targets(store, target=target))

    np.testing.assert_array_equal(mask, embeddings(targets(store))[1])
    assert not mask[-1].any()
    if target != "constant":
        np.testing.assert_allclose(np.linalg.norm(made[mask], axis=-1), 1, rtol=1e-5)


def test_shuffling_stays_within_class_and_perspective_and_moves_most_rows(store):
    """Each class keeps the multiset of its embeddings, so a class mean tells nothing more or less than before."""
    plain, _ = embeddings(targets(store))
    shuffled, _ = embeddings(targets(store, target="shuffled"))

    for label in range(4):
        for p in range(3):
            own = label == LABELS
            assert sorted(map(tuple, plain[own, p])) == sorted(map(tuple, shuffled[own, p]))
    assert (plain != shuffled).any(axis=-1).mean() > 0.5


def test_a_shuffled_pair_gets_all_its_targets_from_one_other_pair(store):
    """Perspectives mixed from three pairs would cancel in the one latent's pull: a weaker target, not a wrong one."""
    rows = {key: row for key, row in store.row_of.items() if key != (IDS[4], "rule")}
    made = targets(CotStore(store.perspectives, store.embedding_ND, rows, "model"), target="shuffled")
    donor = {(pair_id, row // 4) for (pair_id, _), row in made.row_of.items()}

    assert len(donor) == N - 1
    assert (IDS[4], 4) in donor  # the only one of its class without a rule has nobody to take from
    assert {key for key in rows if key[1] in PERSPECTIVES} == set(made.row_of)


def test_what_one_latent_can_reach_is_the_same_for_right_and_wrong_targets(store):
    """By hand: targets (1, 0) and (0, 1) leave half; shuffling and one vector a pair change nothing of it."""
    two = CotStore(("user", "rule"), np.eye(2, dtype=np.float32), {("a", "user"): 0, ("a", "rule"): 1}, "model")
    assert reachable(two) == pytest.approx(0.5)
    assert reachable(CotStore(("user",), two.embedding_ND, {("a", "user"): 0, ("b", "user"): 1}, "")) == 1
    assert 0.2 < reachable(targets(store)) < 0.8
    assert reachable(targets(store, target="shuffled")) == pytest.approx(reachable(targets(store)))
    assert reachable(targets(store, target="random")) == reachable(targets(store, target="one_hot")) == 1


def test_the_constant_target_is_each_perspectives_mean_over_training_pairs(store):
    """The same for every pair."""
    plain, _ = embeddings(targets(store))
    constant, _ = embeddings(targets(store, target="constant"))

    np.testing.assert_allclose(constant[:-1], np.broadcast_to(plain[:-1].mean(axis=0), constant[:-1].shape), rtol=1e-4)


def test_one_hot_targets_are_the_labels(store):
    """Dimension k is 1 for class k: the target says nothing that the label does not."""
    made, _ = embeddings(targets(store, target="one_hot"))

    np.testing.assert_array_equal(made[:-1, 0].argmax(axis=1), LABELS[:-1])


def test_random_targets_differ_between_pairs_and_agree_between_calls(store):
    """A target to be learned by heart, the same in every epoch and after a resume."""
    first, _ = embeddings(targets(store, target="random"))
    again, _ = embeddings(targets(store, target="random"))

    np.testing.assert_array_equal(first, again)
    assert len({tuple(row) for row in first[:-1, 0]}) == N - 1


@pytest.mark.parametrize("target", ["cot", "shuffled", "random", "one_hot"])
def test_centred_targets_have_no_mean_and_keep_their_differences(store, target):
    """Each perspective by itself, over the pairs that have it, also where texts share a row."""
    shared = CotStore(
        store.perspectives,
        store.embedding_ND,
        {**store.row_of, (IDS[1], "user"): store.row_of[IDS[0], "rule"]},
        store.model,
    )
    plain, mask = embeddings(targets(shared, target=target))
    moved, moved_mask = embeddings(targets(shared, target=target, centre=True))

    np.testing.assert_array_equal(mask, moved_mask)
    for p in range(3):
        there = mask[:, p]
        np.testing.assert_allclose(moved[there, p].mean(axis=0), 0, atol=1e-6)
        np.testing.assert_allclose(moved[there, p] - moved[0, p], plain[there, p] - plain[0, p], atol=1e-6)


def test_the_mean_square_of_centred_targets_is_their_variance(store):
    """What the guidance loss is when the latent says nothing."""
    made = targets(store, centre=True)
    values, mask = embeddings(made)

    assert mean_square(made) == pytest.approx(float((values[mask] ** 2).sum(axis=1).mean()), rel=1e-5)
    assert mean_square(made) < mean_square(targets(store))


def test_a_fixed_pca_keeps_the_directions_of_most_variance(store):
    """Against numpy's own singular values."""
    made = reduced_by_pca(targets(store), 3)
    used = store.embedding_ND[sorted(set(made.row_of.values()))]
    singular = np.linalg.svd(used - used.mean(axis=0), compute_uv=False)

    kept = made.embedding_ND[sorted(set(made.row_of.values()))]
    np.testing.assert_allclose(np.sort((kept**2).sum(axis=0)), np.sort(singular[:3] ** 2), rtol=1e-3)


def test_a_pca_to_more_dimensions_than_there_are_is_refused(store):
    """The message says how many there are."""
    with pytest.raises(RecipeError, match="at least 9 dimensions"):
        reduced_by_pca(store, 9)


def test_info_nce_is_the_log_share_of_the_own_positive():
    """Two pairs, cosines 1 and 0 with τ = 1: −log(e / (e + 1)); excluded columns leave the sum."""
    eye = torch.eye(2)
    loss_B = info_nce(eye, eye, torch.zeros(2, 2, dtype=torch.bool), 1.0)

    assert loss_B.tolist() == pytest.approx([float(np.log(1 + np.exp(-1)))] * 2)
    assert info_nce(eye, eye, torch.ones(2, 2, dtype=torch.bool), 1.0).tolist() == [0.0, 0.0]


def test_pairs_of_one_query_and_label_are_alike():
    """They are never each other's negatives."""
    found = alike(torch.tensor([0, 0, 1, 1]), torch.tensor([1, 1, 1, 2]))

    assert found.tolist() == [
        [True, True, False, False],
        [True, True, False, False],
        [False, False, True, False],
        [False, False, False, True],
    ]


def test_the_three_distances_are_nought_at_the_target_and_ignore_what_is_missing():
    """A missing perspective has zeros as its embedding, which no distance may count."""
    target = torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]])
    mask = torch.tensor([[True, False], [True, True]])
    latent = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    none_alike = torch.zeros(2, 2, dtype=torch.bool)

    assert guidance_loss(latent, target, mask).item() == 0
    assert cosine_guidance_loss(latent, target, mask).item() == pytest.approx(0)
    assert info_nce_guidance_loss(latent, target, mask, none_alike, 0.05).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("loss", ["mse", "cosine", "infonce"])
@pytest.mark.parametrize("slots", [False, True])
def test_training_the_term_alone_brings_the_latent_to_its_targets(make_student, loss, slots):
    """Gradient reaches projection, extractor and encoder; with slots each perspective has a latent of its own."""
    student, _ = make_student("gat", slots=slots)
    term = GuidanceTerm(student, 1.0, GuidanceRecipe(loss=loss), 24)
    batch = guided_batch(width=24)
    optimizer = torch.optim.Adam([*student.parameters(), *term.parameters()], lr=1e-3)
    losses = []
    for _ in range(25):
        value = term(student, student(batch.input_ids_BL, batch.attention_mask_BL, batch.token_type_ids_BL), batch)
        value.backward()
        if not losses:
            assert student.encoder.embeddings.word_embeddings.weight.grad.abs().sum() > 0
            assert term.projection.map.weight.grad.abs().sum() > 0
        optimizer.step()
        optimizer.zero_grad()
        losses.append(value.item())

    assert losses[-1] < 0.7 * losses[0]


def test_a_student_without_an_extractor_cannot_be_guided(make_student):
    """There is no latent to guide."""
    student, _ = make_student("none")
    with pytest.raises(RecipeError, match="expected an extractor to guide"):
        GuidanceTerm(student, 0.1, GuidanceRecipe(), 24)


def guided_batch(*, width):
    """Eight made-up pairs with unit embeddings."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 2000, (8, 12), generator=generator)
    ones = torch.ones_like(ids)
    cot = torch.nn.functional.normalize(torch.randn(8, 3, width, generator=generator), dim=-1)
    present = torch.ones(8, 3, dtype=torch.bool)
    return Batch(
        ids, ones, torch.zeros_like(ids), torch.arange(8) % 4, torch.ones(8), torch.arange(8), torch.zeros(8, 4),
        torch.zeros(8), torch.zeros(8, 0), {EMBEDDING: cot, PRESENT: present},
    )  # fmt: skip
