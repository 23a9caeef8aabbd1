/** A metric over steps, of several runs or ranks: every extreme drawn at its height, the trend on top. */

import type { Signal } from "@preact/signals";
import { useEffect, useMemo, useRef } from "preact/hooks";
import uPlot from "uplot";
import { number } from "../format";
import { GUTTER, interaction, type Range, RIGHT, type Scale, xAxis, xScale, yAxis } from "./axes";
import { token } from "./colours";
import { Host } from "./host";

/** Buckets of one metric, on the x that all lines of a chart share. NaN where there is nothing. */
export interface Line {
  label: string;
  colour: string;
  /** What it is of: the others step back while the pointer is on it elsewhere. */
  of?: string | undefined;
  first: ArrayLike<number>;
  min: ArrayLike<number>;
  max: ArrayLike<number>;
  last: ArrayLike<number>;
  mean: ArrayLike<number>;
  smooth?: ArrayLike<number> | undefined;
  /** How many values of a bucket were not finite. */
  nonfinite?: ArrayLike<number> | undefined;
  /** How many runs or ranks each point of a group stands for: its smallest and largest are drawn as a band. */
  members?: ArrayLike<number> | undefined;
}

interface Props {
  /** undefined while it is not there yet. */
  x: ArrayLike<number> | undefined;
  /** Width of a bucket in x, or of each; 0 where every value is shown. */
  bucket: number | ArrayLike<number>;
  lines: Line[];
  range: Signal<Range>;
  all: [number, number];
  cursor: Signal<number | null>;
  syncKey: string;
  height?: number;
  scale?: Scale;
  logX?: boolean;
  /** Seconds since 1970 along x. */
  clock?: boolean;
  gutter?: number;
  /** Without the numbers along x: a chart below has them. */
  bare?: boolean;
  title: string;
  /** The line that is meant, as its `of`; null for all. */
  focus?: string | null;
  /** What y shows at least. */
  reach?: [number, number] | undefined;
  /** A line across, such as the threshold of clipping. */
  level?: number | undefined;
  onWidth?: (width: number) => void;
  /** The value that the pointer is at. */
  onHeight?: (value: number | null) => void;
  onReady?: (plot: uPlot | null) => void;
}

export function LineChart(props: Props) {
  const { x, bucket, lines, range, cursor, syncKey, height = 220, scale = "linear", logX = false, clock = false } = props;
  const { gutter = GUTTER, title, level, focus = null } = props;
  const latest = useRef(props);
  latest.current = props;
  const plot = useRef<uPlot | null>(null);
  const drawn = useMemo(() => traces(x ?? [], bucket, lines, scale === "log"), [x, bucket, lines, scale]);
  const focused = useRef(focus);
  useEffect(() => {
    if (focused.current !== focus) plot.current?.redraw(false);
    focused.current = focus;
  }, [focus]);
  const [low, high] = range.value ?? props.all;
  useEffect(() => {
    const shown = plot.current?.scales["x"];
    if (shown && (shown.min !== low || shown.max !== high)) plot.current?.setScale("x", { min: low, max: high });
  }, [low, high]);
  const options = (): uPlot.Options => ({
    width: 0,
    height,
    padding: [8, RIGHT, 0, 0],
    scales: { x: xScale(() => range.value ?? latest.current.all, { logX, clock }), y: yScale(scale, lines, level, props.reach) },
    axes: [xAxis({ clock, logX, bare: props.bare ?? false }), yAxis(gutter, scale, threshold(lines))],
    series: [{}, ...drawn.looks.map((look) => inColour(look, latest))],
    bands: drawn.bands.map(({ series, line }) => ({ series, fill: () => faint(colourOf(latest.current, line)) })),
    ...drawing(interaction(syncKey, range, cursor, { points: lines.length <= MOST_POINTS }), latest),
  });
  const looks = lines.map((line) => line.label + (line.smooth ? "~" : "") + (line.members ? "#" : ""));
  const of = [scale, scale === "symlog" && threshold(lines), logX, clock, gutter, level, props.reach, ...looks].join();
  return (
    <Host
      options={options}
      data={x === undefined ? null : drawn.data}
      height={height}
      of={of}
      label={summary(title, lines)}
      {...(props.onWidth ? { onWidth: props.onWidth } : {})}
      onReady={(made) => {
        plot.current = made;
        latest.current.onReady?.(made);
      }}
    />
  );
}

/** With more lines than these there are no points at the cursor: each is an element that moves with it. */
const MOST_POINTS = 8;

type Latest = { current: Props };

function colourOf({ lines, focus = null }: Props, line: number): string {
  const { of, colour = "" } = lines[line] ?? {};
  return focus !== null && of !== undefined && of !== focus ? "rgb(128 128 128 / 25%)" : colour;
}

function inColour({ line, band, ...look }: Look, latest: Latest): uPlot.Series {
  return { ...look, stroke: band ? "transparent" : () => colourOf(latest.current, line) };
}

/** A chart in a sentence, for who cannot see it. */
export function summary(title: string, lines: readonly Line[]): string {
  const ends = lines.slice(0, 3).map((line) => `${line.label} ends at ${number(lastOf(line.last))}`);
  return `${title}: ${lines.length} line${lines.length === 1 ? "" : "s"}; ${ends.join(", ")}`;
}

function lastOf(values: ArrayLike<number>): number | null {
  for (let i = values.length - 1; i >= 0; i--) if (!Number.isNaN(values[i])) return values[i] ?? null;
  return null;
}

/**
 * Where a bucket holds several values its first, lowest, highest and last are drawn one after the other: in the pixel
 * or two that it is wide the line reaches every extreme. The trend is drawn at the last step of the bucket, which it is
 * the value at, so that it lies in the same place however wide buckets are.
 */
export function traces(x: ArrayLike<number>, bucket: number | ArrayLike<number>, lines: readonly Line[], log: boolean) {
  const wide = typeof bucket === "number" ? () => bucket : (i: number) => bucket[i] ?? 1;
  const many = x.length > 0 && Math.max(wide(0), wide(x.length - 1)) > 0 && lines.some((line) => !line.members);
  const each = many ? 4 : 1;
  const xs = new Float64Array(x.length * each);
  for (let i = 0; i < x.length; i++) {
    const width = wide(i);
    const room = width > 1 ? width - 1 : 0.75 * width;
    for (let j = 0; j < each; j++) xs[i * each + j] = (x[i] ?? 0) + (each === 1 ? 0 : (j * room) / (each - 1));
  }
  const data: (Float64Array | Value[])[] = [xs];
  const looks: Look[] = [];
  const bands: { series: [number, number]; line: number }[] = [];
  const once = (column: ArrayLike<number>): Column[] => [...Array<Column>(each - 1).fill(null), column];
  lines.forEach((line, number) => {
    const add = (columns: Column[], look: Partial<Look>) => {
      data.push(interleaved(columns, line, log));
      looks.push({ label: line.label, line: number, points: { show: (plot) => plot.data[0].length <= FEW }, ...look });
    };
    if (line.members) {
      bands.push({ series: [data.length, data.length + 1], line: number });
      for (const column of [line.max, line.min]) add(Array<Column>(each).fill(column), { width: 0, band: true, points: { show: false } });
      add(once(line.smooth ?? line.mean), { width: 1.6 });
      return;
    }
    add(many ? [line.first, line.min, line.max, line.last] : [line.mean], { width: 1, alpha: line.smooth ? 0.33 : 1 });
    if (line.smooth) add(once(line.smooth), { label: `${line.label} smoothed`, width: 1.6, points: { show: false } });
  });
  return { data: data as unknown as uPlot.AlignedData, looks, bands };
}

/** A line of so few values hardly is one: they are marked. */
const FEW = 4;

/** How a series of the plot looks, and which line it is of; `band` is an edge that only bounds a filled area. */
type Look = Omit<uPlot.Series, "stroke"> & { line: number; band?: boolean };

/** null is a gap in the line; undefined is a place where this line has no value and goes on. */
type Value = number | null | undefined;
type Column = ArrayLike<number> | null;

function interleaved(columns: readonly Column[], line: Line, log: boolean): Value[] {
  const size = line.mean.length;
  const values = new Array<Value>(size * columns.length);
  columns.forEach((column, j) => {
    if (column === null) return;
    for (let i = 0; i < size; i++) {
      const value = column[i] ?? Number.NaN;
      const known = Number.isFinite(value);
      const broken = known ? log && value <= 0 : (line.nonfinite?.[i] ?? 0) > 0;
      values[i * columns.length + j] = broken ? null : known ? value : undefined;
    }
  });
  return values;
}

/** The colour of a band: its line's, so thin that those of others show through. */
function faint(colour: string): string {
  return colour.startsWith("#") ? `${colour}2b` : colour;
}

function yScale(scale: Scale, lines: readonly Line[], level: number | undefined, reach: [number, number] | undefined): uPlot.Scale {
  if (scale === "log") return { distr: 3, range: decades };
  if (scale === "symlog") return { distr: 4, asinh: threshold(lines), range: bent(threshold(lines)) };
  return { range: reach ? within(reach) : roomy(level) };
}

/** Where a symmetric logarithm begins to be one: a thousandth of the largest magnitude, as a power of ten. */
export function threshold(lines: readonly Pick<Line, "min" | "max">[]): number {
  let most = 0;
  for (const { min, max } of lines) {
    for (let i = 0; i < min.length; i++) {
      const reach = Math.max(Math.abs(min[i] ?? 0), Math.abs(max[i] ?? 0));
      if (Number.isFinite(reach)) most = Math.max(most, reach);
    }
  }
  return most > 0 ? 10 ** (Math.floor(Math.log10(most)) - 3) : 1;
}

/** Whole decades round what there is. */
function decades(_: uPlot, low: number, high: number): [number, number] {
  if (!(low > 0) || !(high > 0)) return [0.1, 1];
  const floor = 10 ** Math.floor(Math.log10(low));
  const ceiling = 10 ** Math.ceil(Math.log10(high));
  return [floor, ceiling > floor ? ceiling : floor * 10];
}

/** Some room on both sides, as it looks on a symmetric logarithm. */
function bent(linear: number) {
  return (_: uPlot, low: number | null, high: number | null): [number, number] => {
    const [least, most] = [Math.asinh((low ?? 0) / linear), Math.asinh((high ?? 1) / linear)];
    const room = (most - least || 1) * 0.05;
    return [Math.sinh(least - room) * linear, Math.sinh(most + room) * linear];
  };
}

/** From edge to edge of what there is to be seen at least, with some room for what lies beyond. */
function within([least, most]: [number, number]) {
  return (_: uPlot, low: number | null, high: number | null): [number, number] => {
    const room = (Math.max(high ?? most, most) - least || 1) * 0.05;
    return [low !== null && low < least ? low - room : least, high !== null && high > most ? high + room : most + room || 1];
  };
}

function roomy(level: number | undefined) {
  return (_: uPlot, low: number | null, high: number | null): [number, number] => {
    const least = Math.min(low ?? 0, level ?? Number.POSITIVE_INFINITY);
    const most = Math.max(high ?? 1, level ?? Number.NEGATIVE_INFINITY);
    const room = (most - least || Math.abs(most) || 1) * 0.05;
    return [least - room, most + room];
  };
}

function drawing(options: Partial<uPlot.Options>, latest: Latest): Partial<uPlot.Options> {
  const draw = (plot: uPlot) => {
    const { lines, level } = latest.current;
    marks(plot, lines);
    if (level !== undefined) across(plot, level);
  };
  const height = (plot: uPlot) => {
    const { top, event } = plot.cursor;
    if (!event) return; // the pointer is on another chart
    latest.current.onHeight?.(top === undefined || top < 0 ? null : plot.posToVal(top, "y"));
  };
  return { ...options, hooks: { ...options.hooks, draw: [draw], setCursor: [...(options.hooks?.setCursor ?? []), height] } };
}

function across(plot: uPlot, level: number): void {
  const y = plot.valToPos(level, "y", true);
  const { ctx, bbox } = plot;
  ctx.save();
  ctx.strokeStyle = token("warn");
  ctx.setLineDash([4, 4]);
  ctx.beginPath();
  ctx.moveTo(bbox.left, y);
  ctx.lineTo(bbox.left + bbox.width, y);
  ctx.stroke();
  ctx.restore();
}

/** What was not finite: a tooth at the top edge, where no value can hide it. */
function marks(plot: uPlot, lines: readonly Line[]): void {
  const { ctx, bbox } = plot;
  const xs = plot.data[0];
  const size = 4 * devicePixelRatio;
  ctx.save();
  ctx.fillStyle = token("nonfinite");
  for (const { nonfinite, mean } of lines) {
    if (!nonfinite) continue;
    const each = Math.max(1, Math.round(xs.length / Math.max(1, mean.length)));
    let free = Number.NEGATIVE_INFINITY;
    for (let i = 0; i < nonfinite.length; i++) {
      if (!nonfinite[i]) continue;
      const x = plot.valToPos(xs[i * each] ?? 0, "x", true);
      if (x < bbox.left || x > bbox.left + bbox.width || x - free < 1) continue;
      free = x;
      ctx.beginPath();
      ctx.moveTo(x - size, bbox.top);
      ctx.lineTo(x + size, bbox.top);
      ctx.lineTo(x, bbox.top + 2 * size);
      ctx.fill();
    }
  }
  ctx.restore();
}
