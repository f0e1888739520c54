// A group of judged rows as a table: fifty at first, more when asked for.

import { byId, counted, element } from "./elements.js";

const FIRST = 50;
const MORE = 200;
const REASONS = {
  deadline: "the deadline came first",
  overload: "the service was busy",
  nan: "the model gave no number",
  error: "the engine failed",
  passthrough: "passthrough mode",
};

/** One table with its heading; `details` gives what can be opened below a row, null where nothing can. */
export class Group {
  constructor(id, name) {
    this.name = name;
    this.title = byId(`${id}-title`);
    this.body = element("tbody");
    this.none = element("p", { class: "quiet" }, "None.");
    this.more = element("button", { type: "button" });
    this.more.addEventListener("click", () => this.#showMore());
    this.whyHead = element("th", { scope: "col" }, element("span", { class: "unseen" }, "Explanation"));
    const head = ["Tier, class", "Score", "Item"].map((text) => element("th", { scope: "col" }, text));
    this.table = element(
      "table",
      {},
      element("caption", { class: "unseen" }, `${name} items`),
      element("thead", {}, element("tr", {}, head, this.whyHead)),
      this.body,
    );
    byId(id).replaceChildren(this.table, this.none, this.more);
    this.startOver();
  }

  /** Show the first rows only, as for a new answer. */
  startOver() {
    this.shown = FIRST;
  }

  show(judgedRows, context) {
    this.judgedRows = judgedRows;
    this.context = context;
    this.#render();
  }

  #render() {
    const rows = this.judgedRows.slice(0, this.shown).flatMap((now) => lines(now, this.context));
    this.body.replaceChildren(...rows);
    this.title.replaceChildren(this.name, " ", element("span", { class: "count" }, String(this.judgedRows.length)));
    this.table.hidden = !this.judgedRows.length;
    this.none.hidden = !this.table.hidden;
    this.whyHead.hidden = !this.context.details;
    const left = this.judgedRows.length - this.shown;
    this.more.hidden = left <= 0;
    this.more.textContent = `Show ${Math.min(left, MORE)} more of ${counted(Math.max(left, 0), "item")}`;
  }

  #showMore() {
    const first = this.judgedRows[this.shown].row.index;
    this.shown += MORE;
    this.#render();
    const cell = this.body.querySelector(`tr[data-index="${first}"] th`);
    cell.tabIndex = -1;
    cell.focus();
  }
}

function lines(now, context) {
  const { row, tier } = now;
  const item = context.items[row.index];
  const cells = [
    element("td", { class: "tier" }, chip(tier), row.label ? element("span", { class: "class" }, context.classes[row.label] ?? row.label) : null),
    element("td", { class: "number" }, row.score === null ? "–" : row.score.toFixed(3)),
    element("th", { scope: "row" }, String(item.title ?? ""), about(item), notes(now, context.policy)),
  ];
  const line = element("tr", { "data-index": row.index, class: now.moved && "moved" }, cells);
  if (!context.details) return [line];
  const panel = context.details(row, line);
  return panel ? [line, panel] : [line];
}

export function chip(tier) {
  return element("span", { class: `chip tier-${tier ?? "none"}` }, tier === null ? "Unscored" : `Tier ${tier}`);
}

function about(item) {
  const more = [item.brand, item.color].filter((value) => typeof value === "string" && value);
  return more.length ? element("span", { class: "about" }, more.join(" · ")) : null;
}

function notes({ row, tier, moved }, policy) {
  const said = [];
  if (moved) said.push(`was tier ${row.tier}`);
  for (const name of row.rules ?? []) said.push(`rule ${name}: ${bound(policy.rules.get(name))}`);
  if (row.truncated) said.push("text cut at the model’s limit");
  if (row.reason) said.push(`no score: ${REASONS[row.reason] ?? row.reason}`);
  return said.length ? element("span", { class: "notes" }, said.join(" · ")) : null;
}

export function bound(rule) {
  if (rule?.cap_tier != null) return `at most tier ${rule.cap_tier}`;
  return rule?.floor_tier != null ? `at least tier ${rule.floor_tier}` : "applied";
}
