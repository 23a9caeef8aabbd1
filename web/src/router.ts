/**
 * Where one is: all of it lies behind the # of the address, so that the page works under any path prefix and a copied
 * address shows the same. `#/p/llm/runs?filter=lr<1e-3` is the path `p/llm/runs` and its parameters.
 */

import { signal } from "@preact/signals";

interface Place {
  path: string[];
  query: URLSearchParams;
}

export function parse(hash: string): Place {
  const [path = "", query = ""] = hash.replace(/^#\/?/, "").split("?", 2);
  return { path: path.split("/").filter(Boolean).map(decodeURIComponent), query: new URLSearchParams(query) };
}

export function href(path: string[], query: Record<string, string | undefined> = {}): string {
  const given = Object.entries(query).filter((entry): entry is [string, string] => entry[1] !== undefined);
  const parameters = given.length ? `?${new URLSearchParams(given)}` : "";
  return `#/${path.map(encodeURIComponent).join("/")}${parameters}`;
}

export const place = signal<Place>(parse(location.hash));

addEventListener("hashchange", () => {
  const next = parse(location.hash);
  if (!samePage(next, place.value)) before.length = 0;
  place.value = next;
});

function samePage(one: Place, other: Place): boolean {
  return one.path.join("/") === other.path.join("/");
}

/** Go somewhere else: a new entry in the history. */
export function go(path: string[], query: Record<string, string | undefined> = {}): void {
  location.hash = href(path, query);
}

interface How {
  /** A new entry in the history of the browser. */
  push?: boolean;
  /** One of many that follow each other quickly, as by typing or dragging: they are undone together. */
  gradual?: boolean;
}

/** Change parameters of this place; `undefined` takes one away. */
export function set(changes: Record<string, string | undefined>, { push = false, gradual = false }: How = {}): void {
  const { path, query } = place.value;
  const all = { ...Object.fromEntries(query), ...changes };
  become(href(path, all), { push, gradual });
}

/** Places of this page before a change of what is seen; a move to another page forgets them. */
const before: string[] = [];
const MOST_STEPS = 100;
/** Gradual changes that follow each other so quickly are one. */
const ONE_CHANGE_MS = 600;
/** When the last change was, if it was a gradual one. */
let changing = -Infinity;

/** Be somewhere else without an entry in the history of the browser; `back` undoes it. */
export function replace(next: string): void {
  become(next);
}

function become(next: string, { push = false, gradual = false }: How = {}): void {
  const here = location.hash;
  if (here === next) return;
  const now = performance.now();
  const goesOn = gradual && now - changing < ONE_CHANGE_MS;
  if (!goesOn && before.at(-1) !== here) before.push(here);
  if (before.length > MOST_STEPS) before.shift();
  changing = gradual ? now : -Infinity;
  if (push) history.pushState(null, "", next);
  else history.replaceState(null, "", next);
  place.value = parse(next);
}

/** Undo the last change of what is seen, on this page. */
export function back(): boolean {
  const last = before.pop();
  changing = -Infinity;
  if (last === undefined || last === location.hash || !samePage(parse(last), place.value)) return false;
  history.replaceState(null, "", last);
  place.value = parse(last);
  return true;
}
