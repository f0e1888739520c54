// One item's explanation: where its score lies, the rule that fired, the nearest rationales, the words that weighed.

import { element } from "./elements.js";
import { bound } from "./rows.js";

const PERSPECTIVES = { user: "What the shopper wants", struct: "How the texts match", rule: "By the rules" };
const LEVELS = 5;
const MOST_NAMED = 3;
const DIGITS = 3;

/**
 * Give the content of an opened explanation.
 *
 * row: of an answer to `explain: true`; classes: names by code; floors: least similarity by perspective, of /info.
 */
export function explained(row, classes, floors) {
  const { explanation } = row;
  if (!explanation) return [element("p", {}, "There is no score, so there is nothing to explain.")];
  return [
    element("p", {}, place(row, explanation.boundary), ruled(explanation.rule)),
    element("h4", {}, "Nearest rationales"),
    rationales(explanation.rationales, row, { classes, floors }),
    ...words(explanation.words),
    element("h4", {}, "Probabilities"),
    probabilities(explanation.probabilities, classes),
    element("p", { class: "quiet" }, "Rationales are the nearest of a fixed set and show likeness, not cause; weights are the model’s attention."),
  ];
}

function place({ score, tier }, { below, above, filter }) {
  const said = [
    below === null ? null : `${below.toFixed(DIGITS)} above the cut point below it`,
    above === null ? null : `${above.toFixed(DIGITS)} below the next cut point`,
    filter === null ? "nothing is filtered by score" : `${Math.abs(filter).toFixed(DIGITS)} ${filter < 0 ? "below" : "above"} the filter edge`,
  ];
  return `As served: tier ${tier}. The score ${score.toFixed(DIGITS)} lies ${said.filter(Boolean).join(", ")}.`;
}

function ruled(rule) {
  if (!rule) return null;
  return [" The rule ", element("strong", {}, rule.name), ` asks for ${bound(rule)}; by its score it would be tier ${rule.tier_by_score}.`];
}

function rationales(found, row, context) {
  if (!found.length) return element("p", { class: "quiet" }, "None: the model gave no latent for this item.");
  return element(
    "ul",
    { class: "rationales" },
    found.map((rationale) =>
      element(
        "li",
        { class: !rationale.close && "far" },
        element("span", { class: "perspective" }, PERSPECTIVES[rationale.perspective] ?? rationale.perspective),
        element("span", {}, rationale.close ? rationale.text : "No close rationale"),
        element("span", { class: "quiet" }, measured(rationale, row, context)),
      ),
    ),
  );
}

function measured(rationale, row, { classes, floors }) {
  const similarity = `Similarity ${rationale.similarity.toFixed(DIGITS)}`;
  if (!rationale.close) return `${similarity}; a rationale counts from ${floors[rationale.perspective].toFixed(DIGITS)}`;
  const [code, share] = Object.entries(rationale.label_share).sort((one, other) => other[1] - one[1])[0];
  const agreement = rationale.agrees ? "as the model says" : `the model says ${classes[row.label] ?? row.label}`;
  return `${similarity} · ${Math.round(100 * share)} % of the pairs it stands for are ${classes[code] ?? code}; ${agreement}`;
}

function words(weighed) {
  if (!weighed.length) return [];
  const most = Math.max(...weighed.map(({ weight }) => weight)) || 1;
  const heaviest = [...weighed].sort((one, other) => other.weight - one.weight).slice(0, MOST_NAMED);
  const side = (name) => weighed.filter((word) => word.side === name).map((word) => marked(word, most));
  const named = heaviest.map(({ text, weight }) => `${text.replace(/[\s,;:]+$/, "")} ${weight.toFixed(2)}`);
  return [
    element("h4", {}, "Words by weight"),
    element("p", { class: "words" }, element("span", { class: "side" }, "Query"), element("span", {}, side("query").flat())),
    element("p", { class: "words" }, element("span", { class: "side" }, "Item"), element("span", {}, side("item").flat())),
    element("p", { class: "quiet" }, `Most weight: ${named.join(", ")}`),
  ];
}

function marked({ text, weight }, most) {
  const level = Math.round((weight / most) * LEVELS);
  const word = text.trimEnd();
  const shown = element(level ? "mark" : "span", { class: `weight-${level}`, title: `weight ${weight.toFixed(DIGITS)}` }, word);
  return [shown, text.slice(word.length)];
}

function probabilities(shares, classes) {
  return element(
    "dl",
    { class: "shares" },
    Object.entries(shares).map(([code, share]) => {
      const bar = element("span", { class: "bar" });
      bar.style.width = `${100 * share}%`;
      return [element("dt", {}, classes[code] ?? code), element("dd", {}, element("span", { class: "track" }, bar), `${(100 * share).toFixed(1)} %`)];
    }).flat(),
  );
}
