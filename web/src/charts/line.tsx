/** A metric over steps, of several runs or ranks: every extreme drawn at its height, the trend on top. */

import type { Signal } from "@preact/signals";
import uPlot from "uplot";
import { number } from "../format";
import { GUTTER, interaction, type Range, RIGHT, xAxis, yAxis } from "./axes";
import { Host } from "./host";

/** Buckets of one metric, on the x that all lines of a chart share. NaN where there is nothing. */
export interface Line {
  label: string;
  colour: string;
  first: ArrayLike<number>;
  min: ArrayLike<number>;
  max: ArrayLike<number>;
  last: ArrayLike<number>;
  mean: ArrayLike<number>;
  smooth?: ArrayLike<number> | undefined;
}

interface Props {
  x: ArrayLike<number>;
  /** Width of a bucket in x; 0 or 1 when every value is shown. */
  bucket: number;
  lines: Line[];
  range: Signal<Range>;
  all: [number, number];
  cursor: Signal<number | null>;
  syncKey: string;
  height?: number;
  log?: boolean;
  gutter?: number;
  title: string;
  /** A line across, such as the threshold of clipping. */
  level?: number | undefined;
  onWidth?: (width: number) => void;
}

export function LineChart(props: Props) {
  const { x, bucket, lines, range, cursor, syncKey, height = 220, log = false, gutter = GUTTER, title, level } = props;
  const drawn = traces(x, bucket, lines, log);
  const options = (): uPlot.Options => ({
    width: 0,
    height,
    padding: [8, RIGHT, 0, 0],
    scales: {
      x: { time: false, range: () => range.value ?? props.all },
      y: log ? { distr: 3, range: decades } : { range: roomy(level) },
    },
    axes: [xAxis(), yAxis(gutter, log)],
    series: [{}, ...drawn.series],
    ...withLevel(interaction(syncKey, range, cursor), level),
  });
  const of = [log, gutter, level, ...props.all, ...lines.map((line) => line.label + line.colour + (line.smooth ? "~" : ""))].join();
  return (
    <Host
      options={options}
      data={drawn.data}
      height={height}
      of={of}
      label={summary(title, lines)}
      {...(props.onWidth ? { onWidth: props.onWidth } : {})}
    />
  );
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
 * or two that it is wide the line reaches every extreme.
 */
export function traces(x: ArrayLike<number>, bucket: number, lines: readonly Line[], log: boolean) {
  const many = bucket > 1;
  const each = many ? 4 : 1;
  const xs = new Float64Array(x.length * each);
  for (let i = 0; i < x.length; i++) for (let j = 0; j < each; j++) xs[i * each + j] = (x[i] ?? 0) + (j * bucket) / each;
  const data: (Float64Array | (number | null)[])[] = [xs];
  const series: uPlot.Series[] = [];
  for (const line of lines) {
    const columns = many ? [line.first, line.min, line.max, line.last] : [line.mean];
    data.push(interleaved(columns, log));
    const smooth = line.smooth;
    series.push({
      label: line.label,
      stroke: line.colour,
      width: 1,
      alpha: smooth ? 0.33 : 1,
      spanGaps: true,
      points: { show: x.length < 2 },
    });
    if (smooth) {
      const between = { length: smooth.length } as ArrayLike<number>; // once a bucket: a line, not stairs
      data.push(interleaved([smooth, ...Array<ArrayLike<number>>(each - 1).fill(between)], log));
      series.push({ label: `${line.label} smoothed`, stroke: line.colour, width: 1.6, spanGaps: true, points: { show: false } });
    }
  }
  return { data: data as unknown as uPlot.AlignedData, series };
}

function interleaved(columns: readonly ArrayLike<number>[], log: boolean): (number | null)[] {
  const size = columns[0]?.length ?? 0;
  const values = new Array<number | null>(size * columns.length);
  columns.forEach((column, j) => {
    for (let i = 0; i < size; i++) {
      const value = column[i] ?? Number.NaN;
      values[i * columns.length + j] = Number.isFinite(value) && !(log && value <= 0) ? value : null;
    }
  });
  return values;
}

/** Whole decades round what there is. */
function decades(_: uPlot, low: number, high: number): [number, number] {
  if (!(low > 0) || !(high > 0)) return [0.1, 1];
  const floor = 10 ** Math.floor(Math.log10(low));
  const ceiling = 10 ** Math.ceil(Math.log10(high));
  return [floor, ceiling > floor ? ceiling : floor * 10];
}

function roomy(level: number | undefined) {
  return (_: uPlot, low: number | null, high: number | null): [number, number] => {
    const least = Math.min(low ?? 0, level ?? Number.POSITIVE_INFINITY);
    const most = Math.max(high ?? 1, level ?? Number.NEGATIVE_INFINITY);
    const room = (most - least || Math.abs(most) || 1) * 0.05;
    return [least - room, most + room];
  };
}

function withLevel(options: Partial<uPlot.Options>, level: number | undefined): Partial<uPlot.Options> {
  if (level === undefined) return options;
  const draw = (plot: uPlot) => {
    const y = plot.valToPos(level, "y", true);
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.strokeStyle = getComputedStyle(plot.root).getPropertyValue("--warn");
    ctx.setLineDash([4, 4]);
    ctx.beginPath();
    ctx.moveTo(bbox.left, y);
    ctx.lineTo(bbox.left + bbox.width, y);
    ctx.stroke();
    ctx.restore();
  };
  return { ...options, hooks: { ...options.hooks, draw: [draw] } };
}
