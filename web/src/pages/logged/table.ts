/** A logged table: which of its rows are shown, in which order, and how wide its columns are. */

import { number } from "../../format";
import type { ChartSpec } from "./chart";

export interface Table {
  columns: string[];
  data: unknown[][];
  /** What is to be drawn of it, if it is the table of a chart. */
  chart?: ChartSpec;
}

/** The column that rows are sorted by, and whether from the largest down. */
export interface Sort {
  column: number;
  down: boolean;
}

const CONDITION = /^(.+?)\s*(<=|>=|!=|=|<|>)\s*(.+)$/;
/** Room for a letter, and for the gap between columns, in pixels. */
const LETTER = 7.2;
const GAP = 21;
const [NARROW, WIDE] = [56, 320];
const LOOKED_AT = 100;

/**
 * The places of the rows that are shown. A filter is text that a cell contains, or conditions on columns such as
 * `loss > 2 and kind = cat`.
 */
export function order({ columns, data }: Table, filter: string, sort: Sort | null): number[] {
  const passes = filtering(columns, filter.trim());
  const rows = data.flatMap((row, i) => (passes(row) ? [i] : []));
  if (sort === null) return rows;
  const at = (i: number) => data[i]?.[sort.column] ?? null;
  return rows.sort((a, b) => compare(at(a), at(b), sort.down) || a - b);
}

function filtering(columns: readonly string[], filter: string): (row: readonly unknown[]) => boolean {
  if (filter === "") return () => true;
  const parts = filter.split(/\s+and\s+/i).map((part) => CONDITION.exec(part));
  const conditions = parts.map((part) => (part && columns.includes(part[1] ?? "") ? part : null));
  if (conditions.includes(null)) {
    const wanted = filter.toLowerCase();
    return (row) => row.some((cell) => text(cell).toLowerCase().includes(wanted));
  }
  return (row) => conditions.every((part) => part && meets(row[columns.indexOf(part[1] ?? "")], part[2] ?? "=", part[3] ?? ""));
}

function meets(cell: unknown, operator: string, wanted: string): boolean {
  const plain = wanted.replace(/^(["'])(.*)\1$/, "$2");
  const to = typeof cell === "number" && plain !== "" && !Number.isNaN(Number(plain)) ? cell - Number(plain) : text(cell).localeCompare(plain);
  switch (operator) {
    case "=": return to === 0;
    case "!=": return to !== 0;
    case "<": return to < 0;
    case "<=": return to <= 0;
    case ">": return to > 0;
    default: return to >= 0;
  }
}

/** Numbers before words; what is empty comes last whichever way. */
function compare(a: unknown, b: unknown, down: boolean): number {
  if (a === null || b === null) return Number(a === null) - Number(b === null);
  const words = [a, b].map((value) => typeof value !== "number");
  if (words[0] !== words[1]) return Number(words[0]) - Number(words[1]);
  const way = typeof a === "number" && typeof b === "number" ? a - b : text(a).localeCompare(text(b));
  return down ? -way : way;
}

/** A cell, whole. */
export function text(cell: unknown): string {
  return cell === null || cell === undefined ? "" : typeof cell === "string" ? cell : JSON.stringify(cell);
}

/** A cell as it is shown. */
export function shown(cell: unknown): string {
  return typeof cell === "number" ? number(cell) : text(cell);
}

/** Where each column begins and how wide it is, in pixels, by what stands in the first rows. */
export function layout({ columns, data }: Table): { left: number; width: number }[] {
  let left = 0;
  return columns.map((name, i) => {
    const longest = data.slice(0, LOOKED_AT).reduce((most, row) => Math.max(most, shown(row[i]).length), name.length + 2);
    const width = Math.round(Math.min(WIDE, Math.max(NARROW, longest * LETTER + GAP)));
    left += width;
    return { left: left - width, width };
  });
}
