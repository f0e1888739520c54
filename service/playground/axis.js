// The score axis: every item a mark above it, the tiers a band below it, the cut points lines through both.

import { counted, element, svg } from "./elements.js";
import { N_TIERS } from "./policy.js";

export const THUMB = 16; // width of a slider's thumb: the axis begins and ends where its middle can be
const TOP = 18;
const FLOOR = 78;
const BAND = 18;
const HEIGHT = 116;
const RADIUS = 4.5;
const BINS = 100;
const LEAST_BAND = 14;

/**
 * Draw the axis into a holder.
 *
 * judgedRows: of policy.js; edge: the tier from which items are kept, null where nothing is filtered; titleOf: of a row.
 */
export function drawAxis(holder, { judgedRows, cuts, edge, titleOf }) {
  const width = Math.max(holder.clientWidth, 10 * THUMB);
  const x = (score) => THUMB / 2 + score * (width - THUMB);
  const scored = judgedRows.filter(({ tier }) => tier !== null);
  const drawing = svg(
    "svg",
    { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": inWords(scored, cuts) },
    band(cuts, x),
    ...[0, 0.2, 0.4, 0.6, 0.8, 1].map((mark) =>
      svg("text", { class: "tick", x: x(mark), y: HEIGHT - 3, "text-anchor": "middle" }, String(mark)),
    ),
    ...cuts.map((cut, place) =>
      svg("line", { class: place + 1 === edge ? "cut edge" : "cut", x1: x(cut), x2: x(cut), y1: TOP, y2: FLOOR + BAND }),
    ),
    edge ? words(x(cuts[edge - 1]), width) : null,
    marks(scored, x, titleOf),
    svg("line", { class: "floor", x1: 0, x2: width, y1: FLOOR, y2: FLOOR }),
  );
  holder.replaceChildren(drawing);
}

function inWords(scored, cuts) {
  const counts = Array.from({ length: N_TIERS }, (_, tier) => scored.filter((now) => now.tier === tier).length);
  const tiers = counts.map((count, tier) => `tier ${tier}: ${counted(count, "item")}`).join(", ");
  return `Scores of ${counted(scored.length, "item")} from 0 to 1; ${tiers}; cut points ${cuts.map(short).join(", ")}.`;
}

export const short = (cut) => String(Math.round(cut * 1000) / 1000);

function band(cuts, x) {
  const edges = [0, ...cuts, 1];
  return svg(
    "g",
    {},
    ...Array.from({ length: N_TIERS }, (_, tier) => {
      const [from, to] = [x(edges[tier]), x(edges[tier + 1])];
      if (to - from < 0.5) return null;
      const label = to - from >= LEAST_BAND ? String(tier) : "";
      return svg(
        "g",
        {},
        svg("rect", { class: `band band-${tier}`, x: from, y: FLOOR, width: to - from, height: BAND }),
        svg("text", { class: `band-name name-${tier}`, x: (from + to) / 2, y: FLOOR + 13, "text-anchor": "middle" }, label),
      );
    }),
  );
}

function words(at, width) {
  const left = at > 60 ? svg("text", { class: "side", x: at - 5, y: 11, "text-anchor": "end" }, "filtered") : null;
  const right = width - at > 40 ? svg("text", { class: "side", x: at + 5, y: 11 }, "kept") : null;
  return svg("g", {}, left, right);
}

/** A circle an item, raised where it would cover another, while there is room; else bars, the tallest fills it. */
function marks(scored, x, titleOf) {
  const ends = []; // of the last circle on each level
  const circles = [...scored]
    .sort((one, other) => one.row.score - other.row.score)
    .map((now) => {
      const free = ends.findIndex((end) => x(now.row.score) >= end);
      const level = free < 0 ? ends.length : free;
      ends[level] = x(now.row.score) + 2 * RADIUS;
      return [now, level];
    });
  const room = FLOOR - TOP - 2;
  if (ends.length * 2 * RADIUS <= room) return svg("g", {}, circles.map(([now, level]) => circle(now, level, x, titleOf)));
  const bins = Array.from({ length: BINS }, () => []);
  for (const now of scored) bins[Math.min(BINS - 1, Math.floor(now.row.score * BINS))].push(now);
  const tallest = Math.max(...bins.map((bin) => bin.length));
  return svg("g", {}, bins.flatMap((rows, bin) => bar(bin, rows, x, room / tallest)));
}

function circle({ row, tier }, level, x, titleOf) {
  const y = FLOOR - RADIUS - 1 - level * 2 * RADIUS;
  return svg(
    "circle",
    { class: `mark mark-${tier}`, cx: x(row.score), cy: y, r: RADIUS },
    svg("title", {}, `${row.score.toFixed(3)}, tier ${tier}: ${titleOf(row)}`),
  );
}

function bar(bin, rows, x, unit) {
  let y = FLOOR;
  return Array.from({ length: N_TIERS }, (_, tier) => {
    const height = rows.filter((now) => now.tier === tier).length * unit;
    y -= height;
    const width = x(1 / BINS) - x(0);
    return height ? svg("rect", { class: `mark mark-${tier}`, x: x(bin / BINS), y, width, height }) : null;
  });
}

/** Sliders and number fields of the four cut points; `onMove(place, value)` hears of each change. */
export function buildCuts(holder, onMove) {
  const rows = Array.from({ length: N_TIERS - 1 }, (_, place) => {
    const id = `cut-${place + 1}`;
    const range = element("input", { type: "range", id, min: 0, max: 1, step: 0.001 });
    const number = element("input", { type: "number", id: `${id}-number`, min: 0, max: 1, step: 0.001 });
    const label = element("label", { for: id });
    range.addEventListener("input", () => onMove(place, Number(range.value)));
    number.addEventListener("change", () => {
      if (number.value !== "") onMove(place, Math.min(1, Math.max(0, Number(number.value))));
      number.value = short(range.value);
    });
    return { range, number, label };
  });
  holder.replaceChildren(...rows.map(({ label, range, number }) => element("div", { class: "cut-row" }, label, range, number)));
  return rows;
}

/** Let sliders and fields show cut points; a field that is being typed in is left alone. */
export function showCuts(rows, cuts, edge) {
  rows.forEach(({ label, range, number }, place) => {
    const tier = place + 1;
    label.textContent = tier === edge ? `Tier ${tier} from, kept` : `Tier ${tier} from`;
    label.className = tier === edge ? "edge" : "";
    range.value = String(cuts[place]);
    range.setAttribute("aria-valuetext", short(cuts[place]));
    if (number !== document.activeElement) number.value = short(cuts[place]);
    number.setAttribute("aria-label", `Tier ${tier} from, as a number`);
  });
}
