// What was pasted, read as items: a title a line, JSON, JSON lines, or a table with a header.

const FIELDS = ["id", "title", "brand", "color", "text"];
const NAMES = { colour: "color", item_id: "id", product_title: "title" };
const DELIMITERS = ["\t", ",", ";"];

/**
 * Give {items, form, fields} of a text, and {query, locale, minTier, deadline} where it is a whole request body.
 * Throws an Error that says where it could not be read. What an item may hold is the service's to say.
 */
export function readItems(text) {
  const trimmed = text.trim();
  if (!trimmed) return { items: [], form: "nothing", fields: [] };
  if (/^\[\s*(["{\]]|$)/.test(trimmed)) return described(list(parsed(trimmed)), "a JSON list");
  if (/^\{\s*["}]/.test(trimmed)) return objects(trimmed, text);
  const table = asTable(text);
  if (table) return described(table, "a table");
  return described(list(lines(text).map(({ line }) => line)), "titles");
}

function objects(trimmed, text) {
  const whole = tried(trimmed);
  if (Array.isArray(whole?.items)) {
    const { query, locale, min_tier: minTier, deadline_ms: deadline } = whole;
    return { ...described(list(whole.items), "a request body"), query, locale, minTier, deadline };
  }
  if (whole) return described(list([whole]), "one JSON object");
  const entries = lines(text).map(({ line, number }) => parsed(line, `line ${number}: `));
  return described(list(entries), "JSON lines");
}

function tried(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

function parsed(text, where = "") {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`${where}expected JSON: ${error.message}`);
  }
}

const lines = (text) =>
  text
    .split(/\r?\n/)
    .map((line, place) => ({ line: line.trim(), number: place + 1 }))
    .filter(({ line }) => line);

function list(entries) {
  return entries.map((entry, place) => {
    if (typeof entry === "string") return { id: place + 1, title: entry };
    if (entry === null || typeof entry !== "object" || Array.isArray(entry)) {
      throw new Error(`item ${place + 1}: expected a text or an object, found ${JSON.stringify(entry)}`);
    }
    return { id: place + 1, ...entry };
  });
}

function described(items, form) {
  return { items, form, fields: [...new Set(items.flatMap((item) => Object.keys(item)))].filter((name) => name !== "id") };
}

/** Read a table whose header names a column `title`; null where the first line is no such header. */
function asTable(text) {
  const first = lines(text)[0].line.replaceAll('"', "");
  const delimiter = DELIMITERS.find((mark) => first.includes(mark) && columns(first.split(mark)).includes("title"));
  if (!delimiter) return null;
  const [header, ...rows] = cells(text, delimiter).filter((row) => row.some((cell) => cell.trim()));
  const names = columns(header);
  return rows.map((row, place) => {
    if (row.length > names.length) {
      throw new Error(`row ${place + 1} of the table: expected ${names.length} cells, found ${row.length}`);
    }
    const item = { id: place + 1 };
    row.forEach((cell, column) => {
      const value = cell.trim();
      if (!value) return;
      if (FIELDS.includes(names[column])) item[names[column]] = value;
      else (item.attributes ??= {})[names[column]] = value;
    });
    return item;
  });
}

const columns = (header) => header.map((name) => NAMES[name.trim().toLowerCase()] ?? name.trim().toLowerCase());

/** Cut a text into rows of cells as RFC 4180 says: a quoted cell may hold delimiters, line ends and doubled quotes. */
function cells(text, delimiter) {
  const rows = [[]];
  let cell = "";
  let quoted = false;
  for (let at = 0; at < text.length; at += 1) {
    const mark = text[at];
    if (quoted) {
      if (mark !== '"') cell += mark;
      else if (text[at + 1] === '"') cell += text[(at += 1)];
      else quoted = false;
    } else if (mark === '"' && !cell.trim()) {
      quoted = true;
      cell = "";
    } else if (mark === delimiter) {
      rows.at(-1).push(cell);
      cell = "";
    } else if (mark === "\n") {
      rows.at(-1).push(cell);
      rows.push([]);
      cell = "";
    } else if (mark !== "\r") cell += mark;
  }
  if (quoted) throw new Error("expected the last quoted cell of the table to end, found the end of the text");
  rows.at(-1).push(cell);
  return rows;
}
