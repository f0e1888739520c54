// Requests to the service that served this page, by addresses relative to it, and what can go wrong with them.

/** An answer that is not the one hoped for: a refusal of the service, or something that is not the service's at all. */
export class Refusal extends Error {
  constructor(status, problem, retryS) {
    super(problem.detail);
    this.status = status;
    this.problem = problem;
    this.retryS = retryS;
  }
}

/** Something answered, but not in the service's words. */
export class Foreign extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

/** Nobody answered. */
export class Unreachable extends Error {}

/** Ask a route; gives its JSON. Throws Refusal, Foreign, Unreachable, AbortError when `signal` says so, Error for no key. */
export async function ask(path, { key = "", body, signal } = {}) {
  if (/[^\x21-\x7e]/.test(key)) throw new Error("The API key holds a character that no key can hold.");
  const headers = body === undefined ? {} : { "Content-Type": "application/json" };
  if (key) headers["X-API-Key"] = key;
  const options = { headers, signal, cache: "no-store", credentials: "same-origin" };
  let response;
  let text;
  try {
    response = await fetch(path, body === undefined ? options : { ...options, method: "POST", body: JSON.stringify(body) });
    text = await response.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Unreachable(error.message);
  }
  const found = read(text);
  if (found === null || typeof found !== "object") throw new Foreign(response.status, text.trim().slice(0, 300));
  if (response.ok) return found;
  if (typeof found.code !== "string") throw new Foreign(response.status, text.trim().slice(0, 300));
  const seconds = Number(response.headers.get("Retry-After"));
  throw new Refusal(response.status, found, found.retry_after_ms ? found.retry_after_ms / 1000 : seconds || null);
}

function read(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
