/** Where the narrow formats of numbers end, on the rows of a histogram: what lies beyond would be lost in them. */

import { number } from "../format";
import { BUCKETS, edge, FIRST_POSITIVE, LAST_POSITIVE, LOWEST_POWER, mirrored, ZERO } from "./buckets";

/** Its smallest number, the smallest that has all its digits, and its largest. */
export interface Format {
  smallest: number;
  normal: number;
  largest: number;
}

export const FORMATS: Record<string, Format> = {
  fp16: { smallest: 2 ** -24, normal: 2 ** -14, largest: 65504 },
  bf16: { smallest: 2 ** -133, normal: 2 ** -126, largest: (2 - 2 ** -7) * 2 ** 127 },
  e4m3: { smallest: 2 ** -9, normal: 2 ** -6, largest: 448 },
  e5m2: { smallest: 2 ** -16, normal: 2 ** -14, largest: 57344 },
};

/** A line across the rows, as a place between them from the top, and what stands at it. */
interface Guide {
  row: number;
  text: string;
}

/** The bucket that a positive magnitude lies in; beyond the regular ones the nearest of them. */
export function bucketOf(magnitude: number): number {
  const exponent = Math.floor(Math.log2(magnitude));
  const half = 2 * (exponent - LOWEST_POWER) + (magnitude >= 1.5 * 2 ** exponent ? 1 : 0);
  return Math.max(FIRST_POSITIVE, Math.min(LAST_POSITIVE, FIRST_POSITIVE + half));
}

/** The buckets that the limits of a format lie in, for both signs. */
export function reach({ largest, smallest }: Format): number[] {
  return [bucketOf(largest), bucketOf(smallest)].flatMap((bucket) => [bucket, mirrored(bucket)]);
}

/** The limits of a format where they lie on rows of these buckets, largest first; words stand at the positive ones. */
export function guides(name: string, format: Format, buckets: readonly number[]): Guide[] {
  const rowOf = new Map(buckets.map((bucket, row) => [bucket, row]));
  const limits: [number, string][] = [
    [format.largest, "largest"],
    [format.normal, "smallest normal"],
    [format.smallest, "smallest subnormal"],
  ];
  return limits.flatMap(([value, words]) => {
    const bucket = bucketOf(value);
    if (value < edge(FIRST_POSITIVE) || value >= edge(LAST_POSITIVE + 1)) return [];
    const inside = (value - edge(bucket)) / (edge(bucket + 1) - edge(bucket));
    const [above, below] = [rowOf.get(bucket), rowOf.get(mirrored(bucket))];
    return [
      ...(above === undefined ? [] : [{ row: above + 1 - inside, text: `${name} ${words} ${number(value)}` }]),
      ...(below === undefined ? [] : [{ row: below + inside, text: "" }]),
    ];
  });
}

/** Shares of the elements that are finite and not zero: below the smallest number, below the smallest normal one, above the largest. */
interface Lost {
  below: number;
  subnormal: number;
  above: number;
}

/** At least so much is lost: of a bucket that a limit lies in nothing is counted. Null where there is no element. */
export function lost(counts: ArrayLike<number>, format: Format): Lost | null {
  const found = { below: 0, subnormal: 0, above: 0 };
  let all = 0;
  for (let i = 0; i < counts.length; i++) {
    const count = counts[i] ?? 0;
    const bucket = i % BUCKETS;
    const magnitude = Math.max(bucket, mirrored(bucket));
    if (count === 0 || bucket === ZERO || magnitude > LAST_POSITIVE + 1) continue;
    all += count;
    const low = magnitude < FIRST_POSITIVE ? 0 : edge(magnitude);
    const high = magnitude > LAST_POSITIVE ? Number.POSITIVE_INFINITY : edge(magnitude + 1);
    if (high <= format.smallest) found.below += count;
    else if (high <= format.normal && low >= format.smallest) found.subnormal += count;
    else if (low > format.largest) found.above += count;
  }
  return all === 0 ? null : { below: found.below / all, subnormal: found.subnormal / all, above: found.above / all };
}
