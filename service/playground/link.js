// The page's state in the fragment of its address: deflated, bounded, never sent to a server.

const PREFIX = "#v1.";
const MOST_CHARS = 16_000;
const MOST_BYTES = 4_000_000;

/** Give the fragment that holds a state. Throws an Error if it is too long for a link. */
export async function toFragment(state) {
  const plain = new Blob([JSON.stringify(state)]).stream();
  const packed = await new Response(plain.pipeThrough(new CompressionStream("deflate-raw"))).arrayBuffer();
  const fragment = PREFIX + toBase64(new Uint8Array(packed));
  if (fragment.length > MOST_CHARS) {
    throw new Error(
      `A link of ${fragment.length.toLocaleString("en")} characters would break on its way; ` +
        `links hold at most ${MOST_CHARS.toLocaleString("en")}. Share fewer items.`,
    );
  }
  return fragment;
}

/** Give the state of a fragment, null where it holds none. Throws an Error if it is damaged. */
export async function fromFragment(fragment) {
  if (!fragment.startsWith(PREFIX)) return null;
  try {
    return checked(JSON.parse(await inflated(fromBase64(fragment.slice(PREFIX.length)))));
  } catch {
    throw new Error("The link is damaged: its query and items could not be read.");
  }
}

async function inflated(bytes) {
  const reader = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw")).getReader();
  const parts = [];
  let size = 0;
  for (let { done, value } = await reader.read(); !done; { done, value } = await reader.read()) {
    size += value.length;
    if (size > MOST_BYTES) {
      await reader.cancel();
      throw new Error("too large");
    }
    parts.push(value);
  }
  return new Blob(parts).text();
}

function checked(state) {
  const texts = ["query", "items", "locale", "minTier", "deadline", "order"];
  const cuts = state.cuts ?? null;
  if (!texts.every((name) => typeof state[name] === "string")) throw new Error("expected texts");
  if (cuts && !(Array.isArray(cuts) && cuts.length === 4 && cuts.every(isCut))) throw new Error("expected four cut points");
  return state;
}

const isCut = (cut, place, cuts) => typeof cut === "number" && cut <= 1 && cut >= (place ? cuts[place - 1] : 0);

const toBase64 = (bytes) =>
  btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""))
    .replaceAll("+", "-")
    .replaceAll("/", "_")
    .replaceAll("=", "");

const fromBase64 = (text) =>
  Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (mark) => mark.charCodeAt(0));
