// What the page knows: what is served, what was asked, what was answered, and the cut points as they stand.

import { byId } from "./elements.js";

export const state = {
  info: null, // of GET /info
  body: null, // of the last POST /score that was answered
  answer: null,
  policy: null, // of the answer's policy locale
  cuts: [],
  judgedRows: [], // the answer's rows under these cut points
  wantedCuts: null, // of a link, for the next answer
  opened: new Map(), // index of a row → the explanation below it
};
export const key = () => byId("key").value.trim();
export const minTier = () => state.body?.min_tier ?? null;

/** The names of the classes by code. */
export function classes() {
  const { classes: codes, titles } = state.info.scheme;
  return Object.fromEntries(codes.map((code, place) => [code, titles[place]]));
}

/** The tier from which items are kept, null where nothing is filtered. */
export function edge() {
  const { certified, filterTier } = state.policy;
  return (minTier() ?? (certified ? filterTier : 0)) || null;
}
