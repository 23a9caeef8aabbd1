/** What all charts of a page share: the gutter, the axes, one range of x, one cursor. */

import { type Signal, signal } from "@preact/signals";
import uPlot from "uplot";
import { inFile } from "../embedded";
import { number, power, ticks } from "../format";
import { token } from "./colours";

export const GUTTER = 104;
export const RIGHT = 14;
const FONT = '11px Inter, system-ui, "DejaVu Sans", sans-serif';

/** The steps that are shown; null for all there are. */
export type Range = [number, number] | null;

export type Scale = "linear" | "log" | "symlog";

export function xAxis({ clock = false, logX = false, bare = false } = {}): uPlot.Axis {
  const axis: uPlot.Axis = { ...lines(), size: 22, gap: 3, ...(logX ? { splits: powers(1) } : {}) };
  if (bare) return { ...axis, size: 6, gap: 0, values: (_, places) => places.map(() => "") };
  if (clock) return { ...axis, size: 34 };
  return { ...axis, values: (_, places) => ticks(places) };
}

/** Step 0 has a place on a logarithmic axis too: it is linear up to the first step. */
export function xScale(range: () => [number, number], { logX = false, clock = false } = {}): uPlot.Scale {
  const scale: uPlot.Scale = { time: clock, range };
  return logX ? { ...scale, distr: 4, asinh: 1 } : scale;
}

export function yAxis(size: number, scale: Scale, linear = 1): uPlot.Axis {
  return {
    ...lines(),
    size,
    gap: 4,
    ...(scale === "symlog" ? { splits: powers(linear) } : {}),
    values: (_, places) => (scale === "linear" ? ticks(places) : places.map(powerOrNumber)),
  };
}

function powerOrNumber(tick: number | null): string {
  if (tick === null) return "";
  const exponent = Math.log10(Math.abs(tick));
  const round = Number.isInteger(exponent) && Math.abs(exponent) > 2;
  return round ? `${tick < 0 ? "−" : ""}${power(exponent)}` : number(tick);
}

/** The ticks of a symmetric logarithm: zero, and the powers of ten on both sides from where it is no longer linear. */
function powers(linear: number): uPlot.Axis.Splits {
  return (_, __, low, high) => {
    const found: number[] = [];
    const first = Math.log10(linear);
    for (let exponent = Math.ceil(Math.log10(Math.max(-low, linear))); exponent > first; exponent--) found.push(-(10 ** exponent));
    found.push(0);
    for (let exponent = first + 1; 10 ** exponent <= Math.max(high, linear); exponent++) found.push(10 ** exponent);
    return found.filter((tick) => tick >= low && tick <= high);
  };
}

function lines(): uPlot.Axis {
  const grid = { stroke: token("grid"), width: 1 };
  return { stroke: token("ink3"), font: FONT, grid, ticks: { ...grid, size: 4 } };
}

/** All steps up to the last: what is shown while nothing is chosen. */
export function whole(last: number | null | undefined): [number, number] {
  return [0, Math.max(last ?? 0, 1)];
}

/** Where a range begins, and what it goes back to, if that is not all there is. */
const homes = new WeakMap<Signal<Range>, Range>();

/** A range that shows a part until one zooms, and again when one shows all. */
export function pinned(home: Range): Signal<Range> {
  const range = signal<Range>(home);
  homes.set(range, home);
  return range;
}

/** The part that data is asked for: what is shown, or, where nothing can be asked anew, what there is to be shown. */
export function wanted(range: Signal<Range>): Range {
  return inFile ? (homes.get(range) ?? null) : range.value;
}

/** The ranges that were shown before and, after going back, behind the one that is shown. */
const trail = new WeakMap<Signal<Range>, { past: Range[]; future: Range[] }>();

function trailOf(range: Signal<Range>) {
  const found = trail.get(range) ?? { past: [], future: [] };
  trail.set(range, found);
  return found;
}

/** Show another range; `earlier` goes back to this one. */
export function zoom(range: Signal<Range>, next: Range): void {
  const to = next ?? homes.get(range) ?? null;
  const { past, future } = trailOf(range);
  if (same(range.value, to)) return; // charts that are linked say it one after the other
  past.push(range.value);
  future.length = 0;
  range.value = to;
}

function same(a: Range, b: Range): boolean {
  if (a === null || b === null) return a === b;
  const near = (b[1] - b[0]) / 100;
  return Math.abs(a[0] - b[0]) < near && Math.abs(a[1] - b[1]) < near;
}

export function earlier(range: Signal<Range>): void {
  const { past, future } = trailOf(range);
  let last = past.pop();
  while (last !== undefined && same(last, range.value)) last = past.pop(); // the browser's Back went there already
  if (last === undefined) return;
  future.push(range.value);
  range.value = last;
}

export function later(range: Signal<Range>): void {
  const { past, future } = trailOf(range);
  const next = future.pop();
  if (next === undefined) return;
  past.push(range.value);
  range.value = next;
}

/** Drag to zoom, double click for all; the cursor's line goes through every chart with the same key. */
export function interaction(key: string, range: Signal<Range>, cursor: Signal<number | null>, { points = true } = {}): Partial<uPlot.Options> {
  return {
    legend: { show: false, live: false },
    cursor: {
      y: false,
      points: { show: points },
      sync: { key, setSeries: false },
      drag: { x: true, y: false, setScale: false },
      bind: {
        dblclick: () => () => {
          zoom(range, null);
          return null;
        },
      },
    },
    hooks: {
      setSelect: [
        (plot) => {
          const { left, width } = plot.select;
          if (width < 4) return;
          zoom(range, [plot.posToVal(left, "x"), plot.posToVal(left + width, "x")]);
          plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
        },
      ],
      setCursor: [
        (plot) => {
          const { left, event } = plot.cursor;
          if (!event) return; // the chart that the pointer is on says where
          cursor.value = left === undefined || left < 0 ? null : plot.posToVal(left, "x");
        },
      ],
    },
  };
}
