/** What is to be drawn of a logged table that says so: lines, points, bars or a matrix, in numbers. */

import type { Table } from "./table";
import { text } from "./table";

/** What a table says is to be drawn of it: the kind, the title, and which column has which role. */
export interface ChartSpec {
  kind: string;
  title?: string;
  x?: string;
  y?: string;
  stroke?: string;
  label?: string;
  value?: string;
  actual?: string;
  predicted?: string;
}

export interface Group {
  name: string;
  points: [number, number][];
}

export type Drawing =
  | { kind: "curves"; joined: boolean; x: string; y: string; groups: Group[] }
  | { kind: "bars"; value: string; bars: { label: string; value: number }[]; left: number }
  | { kind: "columns"; value: string; edges: number[]; counts: number[] }
  | { kind: "matrix"; across: string[]; down: string[]; cells: (number | null)[][]; most: number };

/** Groups and bars beyond these say nothing. */
const MOST_GROUPS = 16;
const MOST_BARS = 30;
const BINS = 20;

/** The drawing of a table; null if it asks for none, or for one that its columns do not give. */
export function drawing(table: Table, spec: ChartSpec | undefined): Drawing | null {
  if (!spec) return null;
  const at = (role: keyof ChartSpec) => table.columns.indexOf(spec[role] ?? "");
  const found = (...roles: (keyof ChartSpec)[]) => roles.every((role) => at(role) >= 0);
  switch (spec.kind) {
    case "line":
    case "scatter":
      return found("x", "y") ? curves(table, at("x"), at("y"), at("stroke"), spec.kind === "line") : null;
    case "bar":
      return found("label", "value") ? bars(table, at("label"), at("value")) : null;
    case "histogram":
      return found("value") ? columns(table, at("value")) : null;
    case "confusion matrix":
      return found("actual", "predicted", "value") ? matrix(table, at("actual"), at("predicted"), at("value")) : null;
    default:
      return null;
  }
}

function curves({ columns: names, data }: Table, x: number, y: number, stroke: number, joined: boolean): Drawing {
  const groups = new Map<string, Group>();
  for (const row of data) {
    const [a, b, name] = [row[x], row[y], stroke < 0 ? "" : text(row[stroke])];
    if (typeof a !== "number" || typeof b !== "number") continue;
    const group = groups.get(name) ?? { name, points: [] };
    if (!groups.has(name) && groups.size >= MOST_GROUPS) continue;
    groups.set(name, group);
    group.points.push([a, b]);
  }
  return { kind: "curves", joined, x: names[x] ?? "", y: names[y] ?? "", groups: [...groups.values()] };
}

function bars({ columns: names, data }: Table, label: number, value: number): Drawing {
  const known = data.flatMap((row) => (typeof row[value] === "number" ? [{ label: text(row[label]), value: row[value] }] : []));
  return { kind: "bars", value: names[value] ?? "", bars: known.slice(0, MOST_BARS), left: Math.max(0, known.length - MOST_BARS) };
}

function columns({ columns: names, data }: Table, value: number): Drawing | null {
  const numbers = data.map((row) => row[value]).filter((cell): cell is number => typeof cell === "number");
  if (numbers.length === 0) return null;
  const [low, high] = extent(numbers);
  const width = (high - low || 1) / BINS;
  const counts = new Array<number>(BINS).fill(0);
  for (const number of numbers) counts[Math.min(BINS - 1, Math.floor((number - low) / width))]! += 1;
  return { kind: "columns", value: names[value] ?? "", edges: Array.from({ length: BINS + 1 }, (_, i) => low + i * width), counts };
}

function matrix({ data }: Table, actual: number, predicted: number, value: number): Drawing | null {
  const names = (column: number) => [...new Set(data.map((row) => text(row[column])))];
  const [down, across] = [names(actual), names(predicted)];
  if (down.length === 0 || down.length * across.length > 2500) return null;
  const cells = down.map(() => across.map((): number | null => null));
  let most = 0;
  for (const row of data) {
    const number = row[value];
    if (typeof number !== "number") continue;
    cells[down.indexOf(text(row[actual]))]![across.indexOf(text(row[predicted]))] = number;
    most = Math.max(most, number);
  }
  return { kind: "matrix", across, down, cells, most };
}

export function extent(numbers: readonly number[]): [number, number] {
  return numbers.reduce(([low, high], number) => [Math.min(low, number), Math.max(high, number)], [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY]);
}

/** Round numbers from `low` to `high`, about so many. */
export function ticks([low, high]: [number, number], count: number): number[] {
  const rough = (high - low || 1) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = ([1, 2, 5, 10].find((times) => times * power >= rough) ?? 10) * power;
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.max(0, Math.floor(high / step + 1e-9) - first + 1) }, (_, i) => (first + i) * step);
}
