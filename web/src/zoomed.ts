/** What is shown of x on this page: it lies in the address, so that a copied one shows the same and Back undoes a zoom. */

import { effect, signal } from "@preact/signals";
import type { Range } from "./charts/axes";
import { place, set } from "./router";

const NAME = "range";

export const range = signal<Range>(null);

/** `1200..3400`, in units of the axis; undefined for all. */
export function written(shown: Range): string | undefined {
  if (shown === null) return undefined;
  const fine = 10 ** (Math.floor(Math.log10(shown[1] - shown[0])) - 4);
  return shown.map((edge) => Number((Math.round(edge / fine) * fine).toPrecision(15))).join("..");
}

export function read(text: string | null): Range {
  const [low, high, ...more] = (text ?? "").split("..").map(Number);
  if (low === undefined || high === undefined || more.length > 0) return null;
  return Number.isFinite(low) && Number.isFinite(high) && low < high ? [low, high] : null;
}

/** The parameters of a link to another view of the same steps. */
export function sameSteps(): Record<string, string | undefined> {
  return { [NAME]: written(range.value) };
}

effect(() => {
  const there = read(place.value.query.get(NAME));
  if (written(there) !== written(range.peek())) range.value = there;
});

effect(() => {
  const text = written(range.value);
  if (text !== written(read(place.peek().query.get(NAME)))) set({ [NAME]: text }, { push: true });
});
