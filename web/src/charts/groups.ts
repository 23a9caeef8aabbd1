/** Many runs or ranks as one line: their mean, the smallest and the largest of them, and how many there are behind it. */

import type { Line } from "./line";

type Parts = Pick<Line, "min" | "max" | "mean" | "smooth" | "nonfinite">;

/** Nothing is interpolated: at each x those that have a value there are put together. */
export function together(label: string, colour: string, parts: readonly Parts[], of?: string): Line {
  const size = parts[0]?.mean.length ?? 0;
  const empty = () => new Float64Array(size).fill(Number.NaN);
  const [min, max, mean, smooth] = [empty(), empty(), empty(), empty()];
  const members = new Uint32Array(size);
  const nonfinite = new Uint32Array(size);
  const smoothed = parts.every((part) => part.smooth !== undefined);
  for (let i = 0; i < size; i++) {
    let sum = 0;
    let trend = 0;
    let trends = 0;
    let low = Number.POSITIVE_INFINITY;
    let high = Number.NEGATIVE_INFINITY;
    for (const part of parts) {
      nonfinite[i] = (nonfinite[i] ?? 0) + (part.nonfinite?.[i] ?? 0);
      const value = part.mean[i] ?? Number.NaN;
      const smoothValue = part.smooth?.[i] ?? Number.NaN;
      if (!Number.isNaN(smoothValue)) {
        trend += smoothValue;
        trends += 1;
      }
      if (Number.isNaN(value)) continue;
      members[i] = (members[i] ?? 0) + 1;
      sum += value;
      low = Math.min(low, part.min[i] ?? value);
      high = Math.max(high, part.max[i] ?? value);
    }
    const count = members[i] ?? 0;
    if (trends > 0) smooth[i] = trend / trends;
    if (count === 0) continue;
    mean[i] = sum / count;
    min[i] = low;
    max[i] = high;
  }
  return { label, colour, of, first: mean, last: mean, min, max, mean, smooth: smoothed ? smooth : undefined, nonfinite, members };
}
