"""policy.toml: written for people, read back equal."""

from hypothesis import given, settings
from hypothesis import strategies as st

from relevance.labels import ESCI
from relevance.policy import BusinessRule, CutPoints, TierPolicy
from training.policy_toml import render_policy

SHARE = st.floats(0, 1)
NAME = st.from_regex(r"[a-z]{2}(-[a-z0-9]{2,3})?", fullmatch=True)
TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
CUTS = st.builds(
    CutPoints,
    values=st.lists(SHARE, min_size=4, max_size=4).map(sorted).map(tuple),
    certified=st.booleans(),
    epsilon=st.floats(0.001, 0.5),
    n_exact=st.integers(0, 10**6),
    bound=SHARE,
    bootstrap_bound=SHARE,
)
RULES = st.builds(
    BusinessRule,
    name=TEXT,
    class_at_least=st.dictionaries(st.sampled_from(ESCI.classes), SHARE, min_size=1),
    query_matches=st.none() | st.sampled_from([r"(?i)\bmug\b", 'say "hi"', r"C:\\", "é+"]),
    locales=st.lists(NAME, max_size=2).map(tuple),
    cap_tier=st.integers(0, 4),
)


@settings(deadline=None)
@given(TEXT, CUTS, st.dictionaries(NAME, CUTS, max_size=3), st.lists(RULES, max_size=3), st.integers(0, 4))
def test_a_policy_survives_its_text(version, pooled, locales, rules, filter_tier):
    """Quotes, control characters, exponents and rules included."""
    known = ("pooled", *locales)
    policy = TierPolicy(
        version=version,
        pooled=pooled,
        locales=locales,
        rules=tuple(rule.model_copy(update={"locales": known[: len(rule.locales)]}) for rule in rules),
        filter_tier=filter_tier,
        aliases={"xx-alias": next(iter(locales), "pooled")},
    )
    assert policy == TierPolicy.from_toml(render_policy(policy, {"pooled": "all pairs"}), ESCI)


def test_a_note_stands_above_its_cut_points():
    """What people should know is a comment at the table it belongs to."""
    cuts = CutPoints(values=(0.1, 0.2, 0.3, 0.4), certified=True)
    policy = TierPolicy(version="v", pooled=cuts, locales={"us": cuts})
    text = render_policy(policy, {"us": "839 calibration pairs"}).decode()
    assert '# 839 calibration pairs\n[locales."us"]\nvalues = [0.1, 0.2, 0.3, 0.4]\n' in text
    assert "\n\n[pooled]\n" in text
