/** What the table of runs shows: which columns, in which groups, and the same as CSV. */

import { ago, duration, number } from "../../format";

/** What the server is asked for of each run; configuration and summary become a column a key. */
export const FIXED = ["uid", "name", "state", "created", "duration_s", "world_size", "last_step", "tags", "notes", "group", "job_type"];
/** Shown before anybody chooses, beside the keys that differ. */
const FIRST = ["state", "created", "duration_s", "world_size", "last_step"];
const LOSS = /^summary\.(.*[/_])?loss$/;
const TITLES: Record<string, string> = {
  state: "State",
  created: "Began",
  duration_s: "Duration",
  world_size: "Ranks",
  last_step: "Step",
  group: "Group",
  job_type: "Job type",
  notes: "Notes",
};

export type Columns = Record<string, unknown[]>;

/** A column for each key of the configurations and summaries. */
export function spread(columns: Columns): Columns {
  const { config = [], summary = [], ...rest } = columns;
  const found: Columns = { ...rest };
  for (const [part, rows] of [["config", config], ["summary", summary]] as const) {
    rows.forEach((row, i) => {
      for (const [name, value] of flat((row ?? {}) as Record<string, unknown>, `${part}.`)) {
        found[name] ??= new Array<unknown>(rows.length).fill(null);
        found[name][i] = value;
      }
    });
  }
  return found;
}

function flat(values: Record<string, unknown>, prefix: string): [string, unknown][] {
  return Object.entries(values).flatMap(([key, value]): [string, unknown][] =>
    prefix.startsWith("config.") && value !== null && typeof value === "object" && !Array.isArray(value)
      ? flat(value as Record<string, unknown>, `${prefix}${key}.`)
      : [[prefix + key, value]],
  );
}

/** Whether a column tells runs apart. */
export function differs(values: readonly unknown[]): boolean {
  const first = JSON.stringify(values[0] ?? null);
  return values.some((value) => JSON.stringify(value ?? null) !== first);
}

/** All columns that there could be. */
export function choices(columns: Columns): string[] {
  return Object.keys(columns).filter((name) => !["uid", "name", "tags"].includes(name));
}

/** Those that are shown as long as nobody has chosen: of the configuration what differs, of the summary what people logged, losses first. */
export function shownFirst(columns: Columns): string[] {
  const own = (name: string) => (name.startsWith("config.") ? differs(columns[name] ?? []) : !/^summary\.(system|watch|_tt)\//.test(name));
  const filled = (name: string) => (columns[name] ?? []).some((value) => value !== null);
  const others = choices(columns).filter((name) => !FIXED.includes(name) && own(name) && filled(name));
  const rank = (name: string) => (LOSS.test(name) ? 0 : name.startsWith("config.") ? 1 : 2);
  return [...FIRST, ...(filled("group") ? ["group"] : []), ...others.sort((a, b) => rank(a) - rank(b))];
}

export function titleOf(name: string): string {
  return TITLES[name] ?? name.replace(/^(config|summary)\./, "");
}

export function shown(name: string, value: unknown): string {
  if (value === null || value === undefined) return "";
  if (name === "created") return ago(value as string);
  if (name === "duration_s") return duration(value as number);
  if (typeof value === "number") return number(value);
  return typeof value === "string" ? value : JSON.stringify(value);
}

export interface Group {
  key: string;
  /** Places of its runs in the columns. */
  members: number[];
}

/** Runs with the same value, in the order in which values come. */
export function grouped(values: readonly unknown[], count: number): Group[] {
  const found = new Map<string, number[]>();
  for (let i = 0; i < count; i++) {
    const value = values[i];
    const key = value === null || value === undefined ? "–" : typeof value === "string" ? value : JSON.stringify(value);
    const members = found.get(key);
    if (members) members.push(i);
    else found.set(key, [i]);
  }
  return [...found].map(([key, members]) => ({ key, members }));
}

/** What a group's numbers are together: mean and standard deviation. */
export function aggregate(values: readonly unknown[], members: readonly number[]): string {
  const numbers = members.map((i) => values[i]).filter((value): value is number => typeof value === "number");
  if (numbers.length === 0) return "";
  const mean = numbers.reduce((sum, value) => sum + value, 0) / numbers.length;
  if (numbers.length === 1) return number(mean);
  const variance = numbers.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (numbers.length - 1);
  return variance === 0 ? number(mean) : `${three(mean)} ± ${three(Math.sqrt(variance))}`;
}

function three(value: number): string {
  return number(Number(value.toPrecision(3)));
}

/** The table as a spreadsheet reads it; a text that a spreadsheet would take for a formula is quoted by an apostrophe. */
export function csv(columns: Columns, names: readonly string[]): string {
  const count = columns["uid"]?.length ?? 0;
  const all = ["uid", "name", "tags", ...names];
  const rows = Array.from({ length: count }, (_, i) => all.map((name) => cell(columns[name]?.[i])).join(","));
  return [all.map(cell).join(","), ...rows, ""].join("\r\n");
}

function cell(value: unknown): string {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") return String(value);
  const text = typeof value === "string" ? value : JSON.stringify(value);
  const safe = /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

const WORDS = ["and", "or", "not", "in"];
const ATTRIBUTES = ["name", "state", "tags", "created", "duration_s", "world_size", "last_step", "group", "job_type", "id", "uid", "notes"];
const STATES = ["running", "finished", "failed", "killed", "crashed", "lost"];
const MOST = 8;

export interface Completion {
  /** Where what is completed begins. */
  from: number;
  words: string[];
}

/** What could stand where the caret is. */
export function complete(text: string, caret: number, keys: readonly string[]): Completion {
  const before = text.slice(0, caret);
  const begun = /`[^`]*$|[\w.\-/]*$/.exec(before)?.[0] ?? "";
  const from = caret - begun.length;
  const fields = [...ATTRIBUTES, ...keys].map((key) => (/^[A-Za-z_][\w.]*$/.test(key) ? key : `\`${key}\``));
  const isState = /\bstate\s*(!?=|~)\s*$/.test(before.slice(0, from));
  const wanted = begun.replaceAll("`", "").toLowerCase();
  const candidates = isState ? STATES : [...fields, ...(wanted ? WORDS : [])];
  const fits = (word: string) => word.replaceAll("`", "").toLowerCase();
  const starting = candidates.filter((word) => fits(word).startsWith(wanted));
  const inside = candidates.filter((word) => !fits(word).startsWith(wanted) && fits(word).includes(wanted));
  const words = [...starting, ...inside].filter((word) => fits(word) !== wanted).slice(0, MOST);
  return { from, words };
}
