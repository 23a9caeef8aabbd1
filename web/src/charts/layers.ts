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

/** A map as the server gives it: where its columns begin, how wide a bucket is, and the table. */
export interface Grid extends Table {
  x: ArrayLike<number>;
  bucket: number;
}

/** Several maps on the same rows and columns. */
interface Aligned {
  x: Float64Array;
  /** How wide each column is, in steps. */
  width: number;
  tables: Table[];
}

/**
 * Maps of several runs on one grid, aligned by step. Buckets are powers of two wide and begin at multiples of that, so
 * narrow ones fit into wide ones; a column is wide enough for a sample of each run, and keeps the value furthest from 0.
 */
export function aligned(grids: readonly Grid[]): Aligned {
  const width = 2 ** Math.ceil(Math.log2(Math.max(1, ...grids.map(({ bucket, x }) => Math.max(bucket, spacing(x))))));
  const start = (step: number) => Math.floor(step / width) * width;
  const x = Float64Array.from(new Set(grids.flatMap((grid) => Array.from(grid.x, start)))).sort();
  const columnOf = new Map(Array.from(x, (step, i) => [step, i]));
  const names = [...new Set(grids.flatMap((grid) => grid.names))];
  const rowOf = new Map(names.map((name, i) => [name, i]));
  const tables = grids.map((grid): Table => {
    const cells = new Float32Array(names.length * x.length).fill(Number.NaN);
    const flags = new Uint8Array(cells.length);
    grid.names.forEach((name, row) => {
      for (let column = 0; column < grid.columns; column++) {
        const from = row * grid.columns + column;
        const to = (rowOf.get(name) ?? 0) * x.length + (columnOf.get(start(grid.x[column] ?? 0)) ?? 0);
        const value = grid.cells[from] ?? Number.NaN;
        const before = cells[to] ?? Number.NaN;
        if (Number.isNaN(before) || Math.abs(value) > Math.abs(before)) cells[to] = value;
        flags[to] = (flags[to] ?? 0) | ((grid.flags[from] ?? 0) & NOT_FINITE);
      }
    });
    return { names, columns: x.length, cells, flags };
  });
  return { x, width, tables };
}

/** How far columns mostly are from each other. */
function spacing(x: ArrayLike<number>): number {
  const gaps = Float64Array.from({ length: Math.max(0, x.length - 1) }, (_, i) => (x[i + 1] ?? 0) - (x[i] ?? 0)).sort();
  return gaps[gaps.length >> 1] ?? 1;
}

/** Octaves of one above the other, cell by cell: NaN where either has none. */
export function ratio(of: Float64Array, against: Float64Array): Float64Array {
  return of.map((value, i) => {
    const base = against[i] ?? Number.NaN;
    return value > 0 && base > 0 ? Math.log2(value / base) : value === base ? 0 : Number.NaN;
  });
}

/** The rows of the tree of modules at a depth; a tensor that lies higher up is a row of its own. */
export function rowsAt(names: readonly string[], depth: number): Row[] {
  const found = new Map<string, number[]>();
  names.forEach((name, i) => {
    const path = name.split(".").slice(0, depth).join(".");
    const members = found.get(path);
    if (members) members.push(i);
    else found.set(path, [i]);
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

/** A row of the tree as it is shown: how deep, and whether there is more below. */
export interface TreeRow extends Row {
  level: number;
  /** Whether its parts are rows below it; undefined for one that has none. */
  open: boolean | undefined;
}

/** The rows, and below each that is open the rows of its parts. */
export function opened(names: readonly string[], rows: readonly Row[], open: ReadonlySet<string>, level = 0): TreeRow[] {
  return rows.flatMap((row) => {
    if (row.members.length === 1 && names[row.members[0] ?? 0] === row.path) return [{ ...row, level, open: undefined }];
    const shown = open.has(row.path);
    const parts = shown ? opened(names, partsOf(names, row), open, level + 1) : [];
    return [{ ...row, level, open: shown }, ...parts];
  });
}

/** The parts of a row one level further down; a chain of single ones is one part. */
function partsOf(names: readonly string[], { path, members }: Row): Row[] {
  const at = path.split(".").length + 1;
  const found = new Map<string, number[]>();
  for (const i of members) {
    const part = (names[i] ?? "").split(".").slice(0, at).join(".");
    const those = found.get(part);
    if (those) those.push(i);
    else found.set(part, [i]);
  }
  return [...found].map(([part, those]) => ({ path: part, members: those }));
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

/** The end of a name says more than its beginning; below an open part its own name is enough. A mark goes before it. */
export function labelOf({ path, level }: { path: string; level: number }, marked: boolean): string {
  const text = level > 0 ? path.slice(path.lastIndexOf(".") + 1) : path;
  const room = marked ? 12 : 15;
  return `${marked ? "▲ " : ""}${text.length > room ? `…${text.slice(1 - room)}` : text}`;
}
