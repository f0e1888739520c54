// The button beside a row that asks why, and what opens below it.

import { element } from "./elements.js";
import { explained } from "./explanation.js";
import { tell } from "./problems.js";
import { ask } from "./service.js";
import { classes, key, state } from "./state.js";

/** Add the button to a row's line; gives the row below where it is open. */
export function details(row, line) {
  const title = String(state.body.items[row.index].title);
  const panelId = `why-${row.index}`;
  const button = element("button", { type: "button", class: "why", "aria-expanded": "false", "aria-controls": panelId }, "Why?");
  button.setAttribute("aria-label", `Why? ${title}`);
  line.append(element("td", {}, row.score === null ? null : button));
  button.addEventListener("click", () => toggle(row, line, button, panelId));
  const panel = state.opened.get(row.index);
  if (panel) button.setAttribute("aria-expanded", "true");
  return panel ?? null;
}

async function toggle(row, line, button, panelId) {
  const open = state.opened.get(row.index);
  button.setAttribute("aria-expanded", String(!open));
  if (open) {
    state.opened.delete(row.index);
    open.remove();
    return;
  }
  const cell = element("td", { colspan: 4, "aria-live": "polite" }, element("p", { class: "quiet" }, "Asking why…"));
  const panel = element("tr", { id: panelId, class: "explanation" }, cell);
  state.opened.set(row.index, panel);
  line.after(panel);
  const { return_filtered: _, deadline_ms: __, ...asked } = state.body;
  const body = { ...asked, items: [state.body.items[row.index]], return_filtered: "full", explain: true };
  try {
    const answer = await ask("score", { key: key(), body });
    const [found] = [...answer.results, ...answer.filtered];
    cell.replaceChildren(...explained(found, classes(), state.info.explanations.floors));
  } catch (error) {
    const { title, text } = tell(error);
    cell.replaceChildren(element("p", {}, `${title}: ${text}`));
  }
}
