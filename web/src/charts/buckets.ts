/**
 * The fixed buckets of a histogram: 328 columns, two an octave for each sign. Ids ascend with value: 0 −Inf,
 * 1 overflow, 2..161 negative, 162 underflow, 163 zero, 164 underflow, 165..324 positive, 325 overflow, 326 Inf, 327 NaN.
 */

import type { Cells } from "./heat";

export const BUCKETS = 328;
const ZERO = 163;
const FIRST_POSITIVE = 165;
const LAST_POSITIVE = 324;
const LOWEST_POWER = -56;
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
 * Counts by column and bucket as log10 of the share in each column. Shown are the buckets between the outermost ones
 * that hold anything in sight, so that a distribution fills its panel.
 */
export function fractions(counts: ArrayLike<number>, x: ArrayLike<number>, end: number): Picture {
  const columns = x.length;
  const totals = new Float64Array(columns);
  let low = BUCKETS;
  let high = -1;
  for (let column = 0; column < columns; column++) {
    for (let bucket = 0; bucket < BUCKETS; bucket++) {
      const count = counts[column * BUCKETS + bucket] ?? 0;
      if (count === 0) continue;
      totals[column] = (totals[column] ?? 0) + count;
      if (NOT_FINITE.includes(bucket)) continue;
      low = Math.min(low, bucket);
      high = Math.max(high, bucket);
    }
  }
  if (high < low) return { cells: { x, end, rows: 0, values: new Float32Array(0) }, buckets: [] };
  low = Math.min(low, ZERO - 1);
  high = Math.max(high, ZERO + 1);
  const rows = high - low + 1;
  const values = new Float32Array(rows * columns).fill(Number.NaN);
  const nonfinite = new Uint8Array(rows * columns);
  for (let column = 0; column < columns; column++) {
    const total = totals[column] ?? 0;
    const bad = NOT_FINITE.some((bucket) => (counts[column * BUCKETS + bucket] ?? 0) > 0);
    for (let row = 0; row < rows; row++) {
      const count = counts[column * BUCKETS + high - row] ?? 0;
      if (count > 0) values[row * columns + column] = Math.log10(count / total);
      else if (bad && row === 0) nonfinite[column] = 1;
    }
  }
  const buckets = Array.from({ length: rows }, (_, row) => high - row);
  return { cells: { x, end, rows, values, nonfinite }, buckets };
}

/** Powers of ten beside the rows they begin in, and zero in the middle. */
export function bucketLabels(buckets: readonly number[]): { row: number; text: string }[] {
  const found: { row: number; text: string }[] = [];
  buckets.forEach((bucket, row) => {
    const text = bucketLabel(bucket);
    if (text !== null) found.push({ row, text });
  });
  return found;
}

function bucketLabel(bucket: number): string | null {
  if (bucket === ZERO) return "0";
  const mirrored = bucket < ZERO ? 2 * ZERO - bucket : bucket;
  if (mirrored < FIRST_POSITIVE || mirrored > LAST_POSITIVE) return null;
  const exponent = Math.ceil(Math.log10(edge(mirrored)));
  const next = mirrored === LAST_POSITIVE ? Number.POSITIVE_INFINITY : edge(mirrored + 1);
  if (10 ** exponent < edge(mirrored) || 10 ** exponent >= next) return null;
  return `${bucket < ZERO ? "−" : ""}1e${String(exponent).replace("-", "−")}`;
}
