// The playground: asks /info and /score of the service that served it, and applies the policy again as cut points move.

import { buildCuts, drawAxis, showCuts } from "./axis.js";
import { byId, copy, counted, element } from "./elements.js";
import { EXAMPLES } from "./examples.js";
import { readItems } from "./items.js";
import { fromFragment, toFragment } from "./link.js";
import { asToml, judged, moved, policyOf, same } from "./policy.js";
import { clearProblem, showProblem } from "./problems.js";
import { Group } from "./rows.js";
import { banner, describe, keepUp, showHealth, tellItems } from "./served.js";
import { Refusal, ask } from "./service.js";
import { classes, edge, key, minTier, state } from "./state.js";
import { details } from "./why.js";

const SETTLED_MS = 400;
const FORM = ["query", "items", "locale"];

const groups = { kept: new Group("kept", "Kept"), filtered: new Group("filtered", "Filtered") };
const cutRows = buildCuts(byId("cuts"), moveCut);
let running = null;
let settling = 0;
let drawing = 0;
let taken = null; // what the pasted request body said beside its items, as JSON

// --- asking ----------------------------------------------------------------------------------------------------------

function read() {
  const { items } = readItems(byId("items").value);
  const body = { query: byId("query").value, items, return_filtered: "full" };
  if (byId("locale").value.trim()) body.locale = byId("locale").value.trim();
  if (byId("min-tier").value) body.min_tier = Number(byId("min-tier").value);
  const deadline = byId("deadline").value.trim();
  if (deadline) body.deadline_ms = Number.isNaN(Number(deadline)) ? deadline : Number(deadline);
  return body;
}

async function score(event) {
  event?.preventDefault();
  running?.abort();
  const mine = (running = new AbortController());
  clearProblem();
  busy(true);
  try {
    const body = read();
    byId("status").textContent = `Scoring ${counted(body.items.length, "item")}…`;
    const began = performance.now();
    const answer = await ask("score", { key: key(), body, signal: mine.signal });
    const tookMs = performance.now() - began;
    await keepUp(answer, mine.signal);
    mine.signal.throwIfAborted();
    state.body = body;
    showAnswer(answer, tookMs);
  } catch (error) {
    if (running !== mine) return;
    byId("status").textContent = error.name === "AbortError" ? "Stopped." : "";
    if (error.name !== "AbortError") refuse(error);
  } finally {
    if (running === mine) busy(false);
  }
  showHealth().catch(() => banner("The service does not answer any more."));
}

function busy(is) {
  byId("answer").setAttribute("aria-busy", String(is));
  byId("stop").hidden = !is;
  byId("send").textContent = is ? "Scoring…" : "Score";
}

function refuse(error) {
  if (error instanceof Refusal && error.status === 401) byId("more").open = true;
  byId("result").hidden = true;
  showProblem(error);
  showOnNarrow();
}

/** Where the answer stands below the form, go there. */
function showOnNarrow() {
  if (matchMedia("(max-width: 60rem)").matches) byId("answer").scrollIntoView();
}

// --- the answer ------------------------------------------------------------------------------------------------------

function showAnswer(answer, tookMs) {
  state.answer = answer;
  state.policy = policyOf(state.info, answer.policy_locale);
  state.cuts = state.wantedCuts ?? state.policy.cuts;
  state.wantedCuts = null;
  state.opened.clear();
  groups.kept.startOver();
  groups.filtered.startOver();
  byId("welcome").hidden = true;
  byId("result").hidden = false;
  showFacts(answer, tookMs);
  draw();
  showOnNarrow();
  const { items, kept, filtered, scored } = answer.counts;
  const missing = scored < items ? `, ${items - scored} without a score` : "";
  byId("status").textContent =
    `${counted(items, "item")} in ${Math.round(tookMs)} ms: ${kept} kept, ${filtered} filtered${missing}.`;
}

function draw() {
  const { answer, policy, cuts, body, info } = state;
  const judgedRows = [...answer.results, ...answer.filtered].map((row) => judged(row, policy, cuts, minTier()));
  const byScore = (one, other) => (other.row.score ?? -1) - (one.row.score ?? -1) || one.row.index - other.row.index;
  const byIndex = (one, other) => one.row.index - other.row.index;
  judgedRows.sort(byId("order").value === "score" ? byScore : byIndex);
  state.judgedRows = judgedRows;
  const context = {
    items: body.items,
    classes: classes(),
    policy,
    details: info.explanations?.offered ? details : null,
  };
  groups.kept.show(judgedRows.filter(({ kept }) => kept), context);
  groups.filtered.show(judgedRows.filter(({ kept }) => !kept), context);
  byId("policy").textContent = aboutPolicy();
  drawScale();
  showWhatIf(judgedRows);
}

function drawScale() {
  const { judgedRows, cuts, body } = state;
  drawAxis(byId("axis"), { judgedRows, cuts, edge: edge(), titleOf: (row) => String(body.items[row.index].title) });
  showCuts(cutRows, cuts, edge());
}

function aboutPolicy() {
  const { name, certified, epsilon, nExact, cuts } = state.policy;
  const whose = name === "pooled" ? "Cut points of all locales together" : `Cut points of “${name}”`;
  if (!same(state.cuts, cuts)) return aboutMoved(whose, certified);
  if (minTier() !== null) return `${whose}; this request keeps tier ${minTier()} and up.`;
  return certified
    ? `${whose}, certified: by an upper confidence bound, at most ${Number((100 * epsilon).toFixed(2))} % of exact items are filtered (shown on ${nExact.toLocaleString("en")} queries).`
    : `${whose}, not certified: items get tiers, and nothing is filtered.`;
}

function aboutMoved(whose, certified) {
  if (edge() === null) return `${whose}, moved by hand, not certified: items get tiers, and nothing is filtered.`;
  const lines = minTier() === null ? ", the lines below filter nothing" : "";
  return `${whose}, moved by hand: ${certified ? "no longer" : "not"} certified; the groups show what filtering by them would do${lines}.`;
}

function showWhatIf(judgedRows) {
  const changed = !same(state.cuts, state.policy.cuts);
  byId("changed").hidden = !changed;
  byId("toml").textContent = changed ? asToml(state.policy, state.cuts) : "";
  const kept = judgedRows.filter((now) => now.kept).length;
  const others = judgedRows.filter((now) => now.moved).length;
  const { counts } = state.answer;
  const text = changed
    ? `${counted(others, "item")} would change tier; ${kept} kept (now ${counts.kept}), ` +
      `${judgedRows.length - kept} filtered (now ${counts.filtered}).`
    : "";
  clearTimeout(settling);
  settling = setTimeout(() => {
    byId("what-if").textContent = text;
  }, SETTLED_MS);
}

function moveCut(place, value) {
  state.cuts = moved(state.cuts, place, value);
  showCuts(cutRows, state.cuts, edge());
  cancelAnimationFrame(drawing);
  drawing = requestAnimationFrame(draw);
}

function showFacts({ usage, timing_ms: timing, counts, results, filtered, ...answer }, tookMs) {
  const cached = [...results, ...filtered].filter(({ source }) => source === "cache").length;
  const cut = [...results, ...filtered].filter(({ truncated }) => truncated).length;
  const ms = (value) => `${value.toFixed(1)} ms`;
  const facts = [
    ["Time", `${ms(tookMs)} here; ${ms(timing.total)} in the service: ${ms(timing.queue)} waiting, ${ms(timing.tokenize)} tokenising, ${ms(timing.infer)} in the model, batch by batch added up`],
    ["Pairs", `${counts.scored} of ${counts.items} scored, ${cached} of them from the cache; ${cut} with text cut at the model’s limit`],
    ["Tokens", `${usage.tokens.toLocaleString("en")} read, ${usage.padded_tokens.toLocaleString("en")} computed with padding`],
    ["Fields read", answer.fields_used.join(", ")],
    ["Versions", `model ${answer.model}, calibration ${answer.calibration}, policy ${answer.policy}`],
    ["Request id", answer.request_id],
  ];
  byId("facts").replaceChildren(...facts.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
}

// --- what was pasted -------------------------------------------------------------------------------------------------

/** Say what the items were read as; gives as JSON what a whole request body says beside them, null where it is none. */
function besides() {
  const found = tellItems();
  if (!found) return taken; // a body that is being edited stays the one that was taken
  if (found.form !== "a request body") return null;
  const { query, locale, minTier: lowest, deadline } = found;
  return JSON.stringify({ query, locale, "min-tier": lowest, deadline }, (_, value) => value ?? "");
}

/** Take what a pasted request body says beside its items into the form, once: afterwards what is typed there wins. */
function takeItems() {
  const said = besides();
  if (said === taken) return;
  taken = said;
  for (const [id, value] of Object.entries(JSON.parse(said) ?? {})) byId(id).value = String(value);
}

// --- links, examples, start ------------------------------------------------------------------------------------------

async function share() {
  const shared = Object.fromEntries(FORM.map((id) => [id, byId(id).value]));
  const more = { minTier: byId("min-tier").value, deadline: byId("deadline").value, order: byId("order").value };
  const cuts = state.policy && !same(state.cuts, state.policy.cuts) ? state.cuts : null;
  try {
    history.replaceState(null, "", await toFragment({ ...shared, ...more, cuts }));
  } catch (error) {
    showProblem(error);
    return;
  }
  const copied = await copy(location.href, byId("share"));
  byId("status").textContent = copied
    ? "The link is copied. It holds query, items and cut points, never the key."
    : "The link is in the address bar. It holds query, items and cut points, never the key.";
}

async function restore() {
  try {
    const shared = await fromFragment(location.hash);
    if (!shared) return false;
    FORM.forEach((id) => {
      byId(id).value = shared[id];
    });
    byId("min-tier").value = shared.minTier;
    byId("deadline").value = shared.deadline;
    byId("order").value = shared.order === "input" ? "input" : "score";
    state.wantedCuts = shared.cuts;
    taken = besides();
    return true;
  } catch (error) {
    showProblem(error);
    return false;
  }
}

function load({ query, locale, items }) {
  byId("query").value = query;
  byId("locale").value = locale;
  byId("items").value = items;
  taken = besides();
}

function listen() {
  byId("form").addEventListener("submit", score);
  byId("form").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      score();
    }
  });
  byId("stop").addEventListener("click", () => {
    running?.abort();
    byId("send").focus();
  });
  byId("items").addEventListener("input", takeItems);
  byId("share").addEventListener("click", share);
  byId("copy-toml").addEventListener("click", () => copy(byId("toml").textContent, byId("copy-toml")));
  byId("reset").addEventListener("click", () => {
    state.cuts = state.policy.cuts;
    draw();
    cutRows[0].range.focus();
  });
  byId("order").addEventListener("change", draw);
  byId("key").addEventListener("change", describe);
  byId("try").addEventListener("click", () => {
    load(EXAMPLES[0]);
    byId("answer").focus();
    score();
  });
  byId("example").append(...EXAMPLES.map(({ name }, place) => element("option", { value: place }, name)));
  byId("example").addEventListener("change", () => {
    if (byId("example").value) load(EXAMPLES[byId("example").value]);
  });
  addEventListener("hashchange", async () => {
    if (await restore()) await score();
  });
  new ResizeObserver(() => {
    if (!byId("result").hidden) drawScale();
  }).observe(byId("axis"));
}

listen();
await describe();
if (await restore()) await score();
