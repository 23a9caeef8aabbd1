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
  history.replaceState(null, "", next);
  place.value = parse(next);
}
