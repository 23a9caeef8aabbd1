/** What the JSON of a plotly figure says of its traces. */

export interface Trace {
  type?: unknown;
  name?: unknown;
  [field: string]: unknown;
}

/** Where the points of a trace are, in this order. */
const VALUES = ["y", "x", "z", "values", "r", "theta", "lat"];

/** How many points a trace has; null if it does not say so in a way that is known. */
export function points(trace: Trace): number | null {
  for (const name of VALUES) {
    const values = trace[name];
    if (Array.isArray(values)) return values.length;
    const packed = values as { dtype?: unknown; bdata?: unknown } | null | undefined;
    if (typeof packed?.bdata === "string" && typeof packed.dtype === "string") {
      const width = Number(/\d+$/.exec(packed.dtype)?.[0] ?? 8);
      return Math.floor(atob(packed.bdata).length / width);
    }
  }
  return null;
}
