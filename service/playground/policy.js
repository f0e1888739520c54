// The tier policy, applied here as the service applies it: cut points, then the rules that fired, then the filter tier.

export const N_TIERS = 5;

/** Give what /info says of a policy locale: its cut points, whether filtering by them is certified, the rules. */
export function policyOf(info, name) {
  const cuts = info.locales[name] ?? info.pooled;
  return {
    name,
    cuts: [...cuts.cut_points],
    certified: cuts.certified,
    epsilon: cuts.epsilon,
    nExact: cuts.n_exact,
    filterTier: info.filter_tier,
    rules: new Map(info.rules.map((rule) => [rule.name, rule])),
  };
}

/** Give the tier that a score alone has: how many cut points it reaches. */
export const tierOf = (score, cuts) => cuts.filter((cut) => score >= cut).length;

/** Say what a row of an answer would be under other cut points. */
export function judged(row, policy, cuts, minTier) {
  if (row.score === null) return { row, tier: null, kept: row.kept, moved: false };
  let tier = tierOf(row.score, cuts);
  for (const name of row.rules ?? []) {
    const rule = policy.rules.get(name);
    if (rule?.cap_tier != null) tier = Math.min(tier, rule.cap_tier);
    if (rule?.floor_tier != null) tier = Math.max(tier, rule.floor_tier);
  }
  const kept = minTier === null ? !policy.certified || tier >= policy.filterTier : tier >= minTier;
  return { row, tier, kept, moved: tier !== row.tier };
}

/** Move a cut point and push the others along: cut points do not decrease. */
export function moved(cuts, place, value) {
  return cuts.map((cut, other) => {
    if (other === place) return value;
    return other < place ? Math.min(cut, value) : Math.max(cut, value);
  });
}

export const same = (one, other) => one.every((cut, place) => cut === other[place]);

/** Give the lines of policy.toml that would make these the cut points of a locale. */
export function asToml(policy, cuts) {
  const section = policy.name === "pooled" ? "[pooled]" : `[locales.${JSON.stringify(policy.name)}]`;
  return [
    "# Moved by hand, so not certified: tiers change, but nothing is filtered",
    "# unless a request names min_tier. Give the policy a new version.",
    section,
    `values = [${cuts.map((cut) => toFloat(cut)).join(", ")}]`,
    "certified = false",
  ].join("\n");
}

const toFloat = (number) => (Number.isInteger(number) ? number.toFixed(1) : String(number));
