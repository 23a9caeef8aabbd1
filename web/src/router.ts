/**
 * Where one is: all of it lies behind the # of the address, so that the page works under any path prefix and a copied
 * address shows the same. `#/p/llm/runs?filter=lr<1e-3` is the path `p/llm/runs` and its parameters.
 */

import { signal } from "@preact/signals";

export interface Place {
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
  place.value = parse(location.hash);
});

/** Go somewhere else: a new entry in the history. */
export function go(path: string[], query: Record<string, string | undefined> = {}): void {
  location.hash = href(path, query);
}

/** Change parameters of this place; `undefined` takes one away. Without an entry in the history unless `push`. */
export function set(changes: Record<string, string | undefined>, { push = false } = {}): void {
  const { path, query } = place.value;
  const all = { ...Object.fromEntries(query), ...changes };
  const next = href(path, all);
  if (push) {
    location.hash = next;
    return;
  }
  replace(next);
}

/** Places of this page before a change of what is seen; a move to another page forgets them. */
const before: string[] = [];
const MOST_STEPS = 100;
/** Changes that follow each other so quickly are one: typing, dragging a slider. */
const ONE_CHANGE_MS = 600;
let changed = 0;

/** Be somewhere else without an entry in the history of the browser; `back` undoes it. */
export function replace(next: string): void {
  const here = location.hash;
  if (here === next) return;
  if (performance.now() - changed > ONE_CHANGE_MS && before.at(-1) !== here) before.push(here);
  if (before.length > MOST_STEPS) before.shift();
  changed = performance.now();
  history.replaceState(null, "", next);
  place.value = parse(next);
}

/** Undo the last change of what is seen, on this page. */
export function back(): boolean {
  const last = before.pop();
  changed = 0;
  if (last === undefined || last === location.hash) return false;
  if (parse(last).path.join("/") !== place.value.path.join("/")) return false;
  history.replaceState(null, "", last);
  place.value = parse(last);
  return true;
}
