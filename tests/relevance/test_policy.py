"""Tier policies: monotone, resolved by locale, with declarative rules."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from relevance.errors import PolicyError
from relevance.labels import ESCI
from relevance.policy import BusinessRule, CutPoints, TierPolicy

EVEN = CutPoints(values=(0.2, 0.4, 0.6, 0.8), certified=True)
CAP = {"name": "complement", "class_at_least": {"C": 0.5}, "cap_tier": 1}
FLAT = np.full((1, 4), 0.25)


def policy(**changes):
    """Give a policy with even pooled cuts."""
    return TierPolicy.model_validate({"version": "v", "pooled": EVEN, **changes})


def tiers(shop, score, probabilities=None, locale="pooled", query="mug", min_tier=None):
    """Decide on pairs of these scores with flat probabilities."""
    score = np.asarray(score, dtype=np.float64)
    probabilities = np.repeat(FLAT, len(score), axis=0) if probabilities is None else np.asarray(probabilities)
    return shop.decide(score, probabilities, ESCI, policy_locale=locale, query=query, min_tier=min_tier)


def test_a_score_at_a_cut_point_takes_the_tier_above():
    """0.4 is the first score of tier 2; tiers 0 and 1 are dropped."""
    decision = tiers(policy(), [0.0, 0.2, 0.399, 0.4, 0.6, 0.8, 1.0])
    assert decision.tier_B.tolist() == [0, 1, 1, 2, 3, 4, 4]
    assert decision.kept_B.tolist() == [False, False, False, True, True, True, True]


def test_equal_cut_points_merge_two_tiers():
    """With 2|3 = 3|4 = 0.6, tier 3 is never given."""
    merged = policy(pooled=CutPoints(values=(0.2, 0.4, 0.6, 0.6), certified=True))
    assert tiers(merged, [0.59, 0.6]).tier_B.tolist() == [2, 4]


@given(
    st.lists(st.floats(0, 1), min_size=4, max_size=4),
    st.lists(st.floats(0, 1), min_size=1, max_size=20),
    st.sampled_from([None, {"cap_tier": 1}, {"cap_tier": 3}, {"floor_tier": 2}]),
)
def test_a_higher_score_never_has_a_lower_tier_where_the_same_rules_fired(cuts, scores, effect):
    """Monotone in the score, for any cut points and a rule that fires for all."""
    rules = [] if effect is None else [{"name": "r", "class_at_least": {"E": 0.1}, **effect}]
    shop = policy(pooled=CutPoints(values=tuple(sorted(cuts)), certified=True), rules=rules)
    decision = tiers(shop, sorted(scores))
    assert np.all(np.diff(decision.tier_B) >= 0)
    assert np.all(np.diff(decision.kept_B.astype(int)) >= 0)


def test_a_cap_applies_only_where_its_class_is_likely():
    """P(Complement) ≥ 0.5 caps at tier 1, so the pair is filtered in spite of its score."""
    decision = tiers(policy(rules=[CAP]), [0.9, 0.9], [[0.4, 0.1, 0.5, 0.0], [0.5, 0.1, 0.4, 0.0]])
    assert decision.tier_B.tolist() == [1, 4]
    assert [(name, fired.tolist()) for name, fired in decision.fired] == [("complement", [True, False])]


def test_a_floor_raises_a_tier():
    """Pairs of a matching query never fall below tier 2."""
    rule = {"name": "own brand", "query_matches": r"(?i)\bacme\b", "floor_tier": 2}
    assert tiers(policy(rules=[rule]), [0.0, 0.7], query="Acme mug").tier_B.tolist() == [2, 3]
    assert tiers(policy(rules=[rule]), [0.0, 0.7], query="acmes mug").tier_B.tolist() == [0, 3]


def test_rules_apply_in_order():
    """Floor 3 after cap 1 gives 3; cap 1 after floor 3 gives 1."""
    floor = {"name": "floor", "query_matches": "mug", "floor_tier": 3}
    cap = {"name": "cap", "query_matches": "mug", "cap_tier": 1}
    assert tiers(policy(rules=[cap, floor]), [0.5]).tier_B.tolist() == [3]
    assert tiers(policy(rules=[floor, cap]), [0.5]).tier_B.tolist() == [1]


def test_a_rule_of_one_locale_leaves_others_alone():
    """The rule names jp only."""
    shop = policy(locales={"jp": EVEN, "us": EVEN}, rules=[CAP | {"locales": ["jp"]}])
    complement = [[0.0, 0.0, 1.0, 0.0]]
    assert tuple(tiers(shop, [0.9], complement, where).tier_B.tolist() for where in ("jp", "us")) == ([1], [4])


@pytest.mark.parametrize("name", ["US", "en-us", "fr"])
def test_a_rule_for_a_locale_that_no_request_is_resolved_to_is_refused(name):
    """Unfolded, an alias, or unknown: it would never hold, and nobody would be told."""
    with pytest.raises(ValueError, match=rf"rule .*expected some of \['jp', 'us'\] or 'pooled'.*found \['{name}'\]"):
        policy(locales={"jp": EVEN, "us": EVEN}, aliases={"en-us": "us"}, rules=[CAP | {"locales": [name]}])


def test_a_pattern_that_explodes_elsewhere_takes_linear_time_here():
    """(a+)+$ on 50,000 letters ends at once under RE2; a backtracking engine would not end at all."""
    rule = {"name": "nested", "query_matches": "(a+)+$", "cap_tier": 0}
    assert tiers(policy(rules=[rule]), [0.9], query="a" * 50_000 + "!").tier_B.tolist() == [4]


@pytest.mark.parametrize(
    ("locale", "expected"),
    [
        ("us", "us"),
        ("US", "us"),
        ("en_US", "us"),
        ("en-US", "us"),
        ("ja-JP", "jp"),
        ("ja_JP_kansai", "jp"),
        ("es-MX", "es"),
        ("fr-FR", "pooled"),
        ("", "pooled"),
        (None, "pooled"),
    ],
)
def test_a_locale_is_resolved_by_name_alias_language_and_then_pooled(locale, expected):
    """Exact name, then alias, then language, else pooled."""
    shop = policy(locales={"us": EVEN, "jp": EVEN, "es": EVEN}, aliases={"en-us": "us", "ja": "jp"})
    assert expected == shop.resolve(locale)


def test_an_uncertified_locale_reports_tiers_and_keeps_all():
    """Nothing is filtered unless the caller asks with a tier of its own."""
    shop = policy(pooled=CutPoints(values=EVEN.values, certified=False))
    assert tiers(shop, [0.0, 0.9]).tier_B.tolist() == [0, 4]
    assert tiers(shop, [0.0, 0.9]).kept_B.tolist() == [True, True]
    assert tiers(shop, [0.0, 0.9], min_tier=1).kept_B.tolist() == [False, True]


@pytest.mark.parametrize("values", [(0.4, 0.2, 0.6, 0.8), (-0.1, 0.2, 0.6, 0.8), (0.1, 0.2, 0.6, 1.1)])
def test_cut_points_out_of_order_or_range_are_refused(values):
    """Four numbers in [0, 1] that do not decrease."""
    with pytest.raises(ValidationError, match="do not decrease"):
        CutPoints(values=values, certified=True)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"name": "r", "query_matches": "x"}, "exactly one of cap_tier and floor_tier"),
        ({"name": "r", "query_matches": "x", "cap_tier": 1, "floor_tier": 1}, "exactly one"),
        ({"name": "r", "cap_tier": 1}, "found neither"),
        ({"name": "r", "query_matches": "(", "cap_tier": 1}, "RE2 regular expression"),
        ({"name": "r", "query_matches": r"(a)\1", "cap_tier": 1}, "RE2 regular expression"),
    ],
)
def test_an_incomplete_rule_is_refused(rule, message):
    """Each rule needs a condition, one effect and a linear-time pattern."""
    with pytest.raises(ValidationError, match=message):
        BusinessRule.model_validate(rule)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"version = ", "policy.toml"),
        (b"\xff", "policy.toml"),
        (b'version = "v"', "pooled"),
        (b'version="v"\ncolour=1\n[pooled]\nvalues=[0.1,0.2,0.3,0.4]\ncertified=true', "colour"),
        (b'version="v"\nschema_version=2\n[pooled]\nvalues=[0.1,0.2,0.3,0.4]\ncertified=true', "schema_version"),
        (b'version="v"\n[pooled]\nvalues=[0.1,0.2,0.3,0.4]\ncertified=true\n[aliases]\nen="us"', "aliases"),
        (b'version="v"\n[pooled]\nvalues=[0.1,0.2,0.3,0.4]\ncertified=true\n[aliases]\nEN="pooled"', "lower-case"),
        (
            b'version="v"\n[pooled]\nvalues=[0.1,0.2,0.3,0.4]\ncertified=true\n'
            b'[[rules]]\nname="r"\ncap_tier=1\nclass_at_least={X=0.5}',
            "expected classes of",
        ),
    ],
)
def test_a_policy_file_that_contradicts_itself_is_refused(text, message):
    """Broken TOML, unknown keys, versions, aliases and classes each have a message."""
    with pytest.raises(PolicyError, match=message):
        TierPolicy.from_toml(text, ESCI)


def test_label_weights_decide_the_label_and_nothing_else():
    """P = (0.5, 0.3, 0.1, 0.1): Exact by itself; with C weighed tenfold, Complement; score and tier stay."""
    probabilities = [[0.5, 0.3, 0.1, 0.1]]
    plain = tiers(policy(), [0.5], probabilities)
    weighted = tiers(policy(label_weights={"C": 10.0}), [0.5], probabilities)

    assert (plain.label_B.tolist(), weighted.label_B.tolist()) == ([0], [2])
    assert plain.tier_B.tolist() == weighted.tier_B.tolist()


def test_label_weights_of_unknown_classes_are_refused():
    """The scheme has no class X."""
    text = b'version = "v"\nlabel_weights = { X = 2.0 }\n[pooled]\nvalues = [0, 0, 0, 0]\ncertified = true\n'
    with pytest.raises(PolicyError, match="label_weights"):
        TierPolicy.from_toml(text, ESCI)
