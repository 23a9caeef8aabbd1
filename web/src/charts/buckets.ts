/**
 * The fixed buckets of a histogram: 328 columns, two an octave for each sign. Ids ascend with value: 0 −Inf,
 * 1 overflow, 2..161 negative, 162 underflow, 163 zero, 164 underflow, 165..324 positive, 325 overflow, 326 Inf, 327 NaN.
 */

import type { Cells, Label } from "./heat";

export const BUCKETS = 328;
export const ZERO = 163;
export const FIRST_POSITIVE = 165;
export const LAST_POSITIVE = 324;
export const LOWEST_POWER = -56;
const NOT_FINITE = [0, 326, 327];

/** The lower edge of a positive bucket's magnitude. */
export function edge(bucket: number): number {
  const half = bucket - FIRST_POSITIVE;
  return 2 ** (LOWEST_POWER + (half >> 1)) * (half % 2 === 1 ? 1.5 : 1);
}

export interface Picture {
  cells: Cells;
  /** The buckets of its rows, from the top: largest first. */
  buckets: number[];
}

/**
 * Counts by column and bucket as log10 of the share in each column. Shown are the buckets of each sign from the largest
 * magnitude that is in sight to the smallest of both signs, those that are wanted beside them, and zero between: what
 * is emptied of all values round zero would take most of the room.
 */
export function fractions(counts: ArrayLike<number>, x: ArrayLike<number>, end: number, wanted: readonly number[] = []): Picture {
  const columns = x.length;
  const totals = new Float64Array(columns);
  const occupied = new Uint8Array(BUCKETS);
  for (let column = 0; column < columns; column++) {
    for (let bucket = 0; bucket < BUCKETS; bucket++) {
      const count = counts[column * BUCKETS + bucket] ?? 0;
      if (count === 0) continue;
      totals[column] = (totals[column] ?? 0) + count;
      if (!NOT_FINITE.includes(bucket)) occupied[bucket] = 1;
    }
  }
  if (!occupied.includes(1)) return { cells: { x, end, rows: 0, values: new Float32Array(0) }, buckets: [] };
  const buckets = rowsOf(occupied, wanted);
  const rows = buckets.length;
  const values = new Float32Array(rows * columns).fill(Number.NaN);
  const nonfinite = new Uint8Array(rows * columns);
  for (let column = 0; column < columns; column++) {
    const total = totals[column] ?? 0;
    const bad = NOT_FINITE.some((bucket) => (counts[column * BUCKETS + bucket] ?? 0) > 0);
    buckets.forEach((bucket, row) => {
      const count = counts[column * BUCKETS + bucket] ?? 0;
      if (count > 0) values[row * columns + column] = Math.log10(count / total);
      else if (bad && row === 0) nonfinite[column] = 1;
    });
  }
  return { cells: { x, end, rows, values, nonfinite }, buckets };
}

/** The bucket of the same magnitude and the other sign. */
export function mirrored(bucket: number): number {
  return 2 * ZERO - bucket;
}

/** Those that are shown, from the top: the largest value first. */
function rowsOf(occupied: Uint8Array, wanted: readonly number[]): number[] {
  const every = Array.from({ length: BUCKETS }, (_, bucket) => bucket);
  const there = every.filter((bucket) => occupied[bucket] || wanted.includes(bucket));
  const [low, high] = [Math.min(ZERO, ...there), Math.max(ZERO, ...there)];
  const regular = there.map((bucket) => Math.max(bucket, mirrored(bucket))).filter((bucket) => bucket >= FIRST_POSITIVE);
  const inner = Math.min(LAST_POSITIVE + 1, ...regular);
  const shown = (bucket: number) => bucket === ZERO || Math.max(bucket, mirrored(bucket)) >= inner || occupied[bucket] === 1;
  return every.filter((bucket) => bucket >= low && bucket <= high && shown(bucket)).reverse();
}

/** Powers of ten beside the rows they begin in, and zero in the middle. */
export function bucketLabels(buckets: readonly number[]): Label[] {
  const found: Label[] = [];
  buckets.forEach((bucket, row) => {
    const text = bucketLabel(bucket);
    if (text !== null) found.push({ row, text, first: bucket === ZERO });
  });
  return found;
}

function bucketLabel(bucket: number): string | null {
  if (bucket === ZERO) return "0";
  const magnitude = Math.max(bucket, mirrored(bucket));
  if (magnitude < FIRST_POSITIVE || magnitude > LAST_POSITIVE) return null;
  const exponent = Math.ceil(Math.log10(edge(magnitude)));
  const next = magnitude === LAST_POSITIVE ? Number.POSITIVE_INFINITY : edge(magnitude + 1);
  if (10 ** exponent < edge(magnitude) || 10 ** exponent >= next) return null;
  return `${bucket < ZERO ? "−" : ""}1e${String(exponent).replace("-", "−")}`;
}
