// What is served, whether it is ready, and what of the pasted items it reads.

import { byId, counted, element } from "./elements.js";
import { readItems } from "./items.js";
import { tell } from "./problems.js";
import { Refusal, Unreachable, ask } from "./service.js";
import { key, state } from "./state.js";

const ASK_AGAIN_MS = 2000;

/** Ask what is served, again and again while the service starts. */
export async function describe() {
  try {
    state.info = await ask("info", { key: key() });
    showInfo(state.info);
    await showHealth();
  } catch (error) {
    byId("about").textContent = "Calibrated relevance tiers for search ads";
    if (error instanceof Refusal && error.status === 401) {
      byId("more").open = true;
      banner("This service asks for an API key: put it under “Options and API key”.");
      return;
    }
    const starting = error instanceof Refusal && error.status === 503;
    if (starting || error instanceof Unreachable) {
      banner(starting ? "The service is starting; this page asks again by itself." : "The service does not answer; this page asks again by itself.");
      setTimeout(describe, ASK_AGAIN_MS);
      return;
    }
    const { title, text } = tell(error);
    banner(`${title}: ${text}`);
  }
}

function showInfo(info) {
  const { limits } = info;
  byId("about").textContent =
    `${info.model} @ ${info.bundle} · ${info.precision} on ${info.provider} · reads ${info.fields.join(", ")} · ` +
    `up to ${counted(limits.max_items, "item")} a request`;
  const known = [...Object.keys(info.locales), ...Object.keys(info.aliases)];
  byId("locales").replaceChildren(...known.map((name) => element("option", { value: name })));
  tellItems();
}

/** Say above everything what an answer of the service does not say: draining, not fresh, passthrough. */
export async function showHealth() {
  const said = [];
  if (state.info?.mode === "passthrough") said.push("Passthrough mode is on: the service keeps every item and scores none.");
  try {
    await ask("readyz");
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    const draining = error.problem.detail.includes("draining");
    said.push(draining ? "This replica is draining: it still answers, and is about to stop." : `The service is not ready: ${error.problem.detail}.`);
  }
  banner(said.join(" "));
}

export function banner(text) {
  if (byId("service").textContent !== text) byId("service").textContent = text;
}

/** Ask what is served again where an answer shows that it has been replaced, or switched to or from passthrough. */
export async function keepUp({ model, policy, results }, signal) {
  const { info } = state;
  const mode = results.some(({ reason }) => reason === "passthrough") ? "passthrough" : "score";
  if (info && model === `${info.model}@${info.bundle}` && policy === info.policy && mode === info.mode) return;
  state.info = await ask("info", { key: key(), signal });
  showInfo(state.info);
}

/** Say below the items what they were read as, and which of their fields the model does not read; gives what was read. */
export function tellItems() {
  let text;
  let found = null;
  try {
    found = readItems(byId("items").value);
    const { items, form, fields } = found;
    const unread = state.info ? fields.filter((name) => !state.info.fields.includes(name)) : [];
    const most = state.info?.limits.max_items ?? Infinity;
    text = items.length ? `${counted(items.length, "item")}, read as ${form}.` : "";
    if (items.length > most) text += ` One request may hold ${most.toLocaleString("en")}.`;
    if (items.length && unread.length) text += ` This model does not read ${unread.join(", ")}.`;
  } catch (error) {
    text = `Not readable yet: ${error.message}.`;
  }
  byId("items-read").textContent = text;
  return found;
}
