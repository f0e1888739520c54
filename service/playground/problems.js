// What to say of each kind of error: a title, what happened, and what to do about it.

import { byId, element } from "./elements.js";
import { Foreign, Refusal, Unreachable } from "./service.js";

const TITLES = {
  malformed_body: "The request could not be read",
  empty_items: "No items",
  bad_request: "The request is not right",
  unauthorised: "An API key is needed",
  body_timeout: "The request took too long to arrive",
  too_large: "Too much for one request",
  media_type: "The request has the wrong form",
  schema: "Something in the request is not as expected",
  query_too_long: "The query is too long",
  not_offered: "Not offered here",
  overloaded: "The service is busy",
  not_ready: "The service is not ready",
  deadline: "No item was scored in time",
  engine: "The engine failed on this request",
  internal: "The service failed on this request",
  not_found: "Not found",
};
const HINTS = {
  empty_items: "Paste at least one title.",
  unauthorised: "Put a valid key under “Options and API key”.",
  too_large: "Score fewer or shorter items at a time; “What is served” tells the limits.",
  query_too_long: "Queries are refused rather than cut, because a cut query would be another query.",
  overloaded: "Nothing of this request was computed.",
  not_ready: "It is starting, or it failed to start.",
  deadline: "Give it more time, or fewer items.",
  engine: "The service’s log has it under the request id.",
  internal: "The service’s log has it under the request id.",
};

/** Show an error of any kind; the wait that a busy service names is counted from now. */
export function showProblem(error) {
  const told = tell(error);
  byId("problem").replaceChildren(
    element(
      "div",
      { class: "problem" },
      element("h3", {}, told.title),
      told.text ? element("p", {}, told.text) : null,
      told.hint ? element("p", {}, told.hint) : null,
      told.faults?.length ? element("ul", {}, told.faults) : null,
      told.small ? element("p", { class: "quiet" }, told.small) : null,
    ),
  );
}

export const clearProblem = () => byId("problem").replaceChildren();

export function tell(error) {
  if (error instanceof Refusal) return refused(error);
  if (error instanceof Foreign) return foreign(error);
  if (error instanceof Unreachable) {
    return {
      title: "No connection",
      text: "The service did not answer: it may have stopped, or the network is down.",
      hint: "What you typed is still here; try again in a moment.",
      small: error.message,
    };
  }
  return { title: "This could not be done", text: error.message };
}

function refused({ status, problem, retryS }) {
  const wait = retryS ? `Try again in ${retryS < 1 ? "a second" : `${Math.ceil(retryS)} s`}.` : null;
  const faults = problem.errors.filter(({ message }) => message !== problem.detail); // else the detail says it all
  return {
    title: TITLES[problem.code] ?? problem.title,
    text: faults.length ? null : sentence(problem.detail),
    hint: [HINTS[problem.code], wait].filter(Boolean).join(" "),
    faults: faults.map(({ pointer, message }) => element("li", {}, element("code", {}, pointer), ` ${message}`)),
    small: `${status} ${problem.code}, request id ${problem.request_id}`,
  };
}

function foreign({ status, message }) {
  return {
    title: "The answer is not this service’s",
    text: `Something on the way, such as a proxy, answered with status ${status}${message ? ":" : " and nothing else."}`,
    hint: message,
  };
}

const sentence = (text) => (text ? text[0].toUpperCase() + text.slice(1) : "");
