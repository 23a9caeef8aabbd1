/**
 * From a row for each tensor to a row for each part of the model: norms of parts are exact, as the square of a norm is
 * the sum of the squares of its parts.
 */

const NOT_FINITE = 1;

export interface Table {
  /** Names of the tensors, a row each. */
  names: readonly string[];
  columns: number;
  /** Row by row; NaN where nothing is known. */
  cells: ArrayLike<number>;
  flags: ArrayLike<number>;
}

export interface Row {
  /** The tensor, or the part of the model that all of `members` lie in. */
  path: string;
  members: readonly number[];
}

/** The rows of the tree of modules at a depth; a tensor that lies higher up is a row of its own. */
export function rowsAt(names: readonly string[], depth: number): Row[] {
  const found = new Map<string, number[]>();
  names.forEach((name, i) => {
    const path = name.split(".").slice(0, depth).join(".");
    found.set(path, [...(found.get(path) ?? []), i]);
  });
  return [...found].map(([path, members]) => ({ path, members }));
}

/** The deepest level at which there are at most so many rows. */
export function rowsWithin(names: readonly string[], most: number): Row[] {
  const deepest = Math.max(1, ...names.map((name) => name.split(".").length));
  for (let depth = deepest; depth > 1; depth--) {
    const rows = rowsAt(names, depth);
    if (rows.length <= most) return rows;
  }
  return rowsAt(names, 1);
}

export type Pool = "norm" | "mean";

/** A value for each row and column, and whether anything in it was not finite. */
export function pooled(table: Table, rows: readonly Row[], how: Pool): { values: Float64Array; nonfinite: Uint8Array } {
  const { columns, cells, flags } = table;
  const values = new Float64Array(rows.length * columns).fill(Number.NaN);
  const nonfinite = new Uint8Array(values.length);
  rows.forEach(({ members }, row) => {
    for (let column = 0; column < columns; column++) {
      let sum = 0;
      let known = 0;
      for (const member of members) {
        const at = member * columns + column;
        const value = cells[at] ?? Number.NaN;
        if ((flags[at] ?? 0) & NOT_FINITE) nonfinite[row * columns + column] = 1;
        if (Number.isNaN(value)) continue;
        known += 1;
        sum += how === "norm" ? value * value : value;
      }
      if (known > 0) values[row * columns + column] = how === "norm" ? Math.sqrt(sum) : sum / known;
    }
  });
  return { values, nonfinite };
}

/** Octaves above the row's own median: a dead layer, an exploding one and a small healthy one are told apart. */
export function againstMedian(values: Float64Array, columns: number): Float64Array {
  const result = new Float64Array(values.length);
  for (let from = 0; from < values.length; from += columns) {
    const row = values.subarray(from, from + columns);
    const middle = median(row);
    for (let i = 0; i < row.length; i++) result[from + i] = Math.log2((row[i] ?? Number.NaN) / middle);
  }
  return result;
}

/** Octaves above the median of the column: which row is unlike the others at this step. */
export function againstOthers(values: Float64Array, columns: number): Float64Array {
  const rows = values.length / columns;
  const result = new Float64Array(values.length);
  for (let column = 0; column < columns; column++) {
    const those = Float64Array.from({ length: rows }, (_, row) => values[row * columns + column] ?? Number.NaN);
    const middle = median(those);
    for (let row = 0; row < rows; row++) result[row * columns + column] = Math.log2((those[row] ?? Number.NaN) / middle);
  }
  return result;
}

export function logarithm(values: Float64Array): Float64Array {
  return values.map((value) => (value > 0 ? Math.log10(value) : Number.NaN));
}

function median(values: Float64Array): number {
  const known = values.filter((value) => Number.isFinite(value) && value > 0).sort();
  if (known.length === 0) return Number.NaN;
  const half = known.length >> 1;
  return known.length % 2 ? (known[half] ?? Number.NaN) : ((known[half - 1] ?? 0) + (known[half] ?? 0)) / 2;
}
