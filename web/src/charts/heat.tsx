/** Rows over steps, a colour a cell: layers, ranks, or the buckets of a histogram. */

import type { Signal } from "@preact/signals";
import { useRef } from "preact/hooks";
import uPlot from "uplot";
import { GUTTER, interaction, type Range, RIGHT, xAxis } from "./axes";
import { pixel, ramp, token } from "./colours";
import { Host } from "./host";

export interface Cells {
  /** Where each column begins, in steps; the last one ends at `end`. */
  x: ArrayLike<number>;
  end: number;
  rows: number;
  /** Row by row, from the top; NaN where nothing is known. */
  values: ArrayLike<number>;
  /** By cell, whether something in it was not finite. */
  nonfinite?: ArrayLike<number> | undefined;
  /** By cell, whether a value is missing that others have. */
  missing?: ArrayLike<number> | undefined;
}

export interface Label {
  row: number;
  text: string;
  /** Whether others make room for it where rows are narrow. */
  first?: boolean;
}

interface Props {
  cells: Cells;
  kind: "sequential" | "diverging";
  /** Values at the two ends of the colours. */
  limits: [number, number];
  /** What stands beside rows, from the top. */
  labels: Label[];
  /** Lines across, at places between rows from the top, with words at their right end. */
  guides?: readonly { row: number; text: string }[];
  range: Signal<Range>;
  all: [number, number];
  cursor: Signal<number | null>;
  syncKey: string;
  height: number;
  title: string;
  selected?: number | null;
  /** Without the numbers along x: a chart below has them. */
  bare?: boolean;
  onWidth?: (width: number) => void;
  onPoint?: (row: number | null, column: number | null, at: { x: number; y: number }) => void;
  onClick?: (row: number) => void;
}

export function HeatChart(props: Props) {
  const latest = useRef(props);
  latest.current = props;
  const { cells, height, range, cursor, syncKey, title, kind, limits, selected } = props;
  const picture = useRef<{ of: Cells; key: string; canvas: HTMLCanvasElement } | null>(null);

  const options = (): uPlot.Options => {
    const shared = interaction(syncKey, range, cursor);
    return {
      width: 0,
      height,
      padding: [4, RIGHT, 0, 0],
      scales: {
        x: { time: false, range: () => range.value ?? latest.current.all },
        y: { range: () => [latest.current.cells.rows, 0], dir: 1 },
      },
      axes: [xAxis({ bare: props.bare ?? false }), { ...xAxis(), side: 3, size: GUTTER, grid: { show: false }, ticks: { show: false }, splits: [], values: () => [] }],
      series: [{}, { show: false }],
      ...shared,
      hooks: {
        ...shared.hooks,
        draw: [(plot) => paint(plot, latest.current, drawn(picture, latest.current))],
        setCursor: [...(shared.hooks?.setCursor ?? []), (plot) => point(plot, latest.current)],
        ready: [
          (plot) => {
            plot.over.addEventListener("click", () => {
              const [row] = under(plot, latest.current);
              if (row !== null) latest.current.onClick?.(row);
            });
            plot.over.addEventListener("mouseleave", () => latest.current.onPoint?.(null, null, { x: 0, y: 0 }));
          },
        ],
      },
    };
  };
  // Two points are all the data uPlot needs: the cells are painted below its cursor.
  const data: uPlot.AlignedData = [props.all, [0, cells.rows]];
  const labels = [...props.labels, ...(props.guides ?? [])].map((label) => `${label.row}${label.text}`).join();
  return (
    <Host
      options={options}
      data={data}
      height={height}
      of={[kind, ...limits, ...props.all, labels, selected, cells.rows].join()}
      label={`${title}: ${cells.rows} rows, ${cells.x.length} columns`}
      {...(props.onWidth ? { onWidth: props.onWidth } : {})}
    />
  );
}

function drawn(picture: { current: { of: Cells; key: string; canvas: HTMLCanvasElement } | null }, props: Props) {
  const key = `${props.kind}${props.limits}${document.documentElement.dataset["theme"]}`;
  if (picture.current?.of !== props.cells || picture.current.key !== key) {
    picture.current = { of: props.cells, key, canvas: bitmap(props) };
  }
  return picture.current.canvas;
}

/** One pixel a cell. */
function bitmap({ cells, kind, limits: [low, high] }: Props): HTMLCanvasElement {
  const columns = cells.x.length;
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, columns);
  canvas.height = Math.max(1, cells.rows);
  const context = canvas.getContext("2d");
  if (!context || columns === 0 || cells.rows === 0) return canvas;
  const image = context.createImageData(columns, cells.rows);
  const pixels = new Uint32Array(image.data.buffer);
  const colours = ramp(kind);
  const bad = pixel(token("nonfinite"));
  const none = pixel(token("mask"));
  const scale = 255 / (high - low || 1);
  for (let i = 0; i < pixels.length; i++) {
    const value = cells.values[i] ?? Number.NaN;
    if (cells.nonfinite?.[i]) pixels[i] = bad;
    else if (cells.missing?.[i]) pixels[i] = none;
    else if (!Number.isNaN(value)) pixels[i] = colours[Math.max(0, Math.min(255, Math.round((value - low) * scale)))] ?? 0;
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

/** Columns may be of different widths, so each run of evenly spaced ones is stretched by itself. */
function paint(plot: uPlot, props: Props, canvas: HTMLCanvasElement): void {
  const { ctx, bbox } = plot;
  const { cells } = props;
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
  ctx.clip();
  ctx.imageSmoothingEnabled = false;
  for (const [from, to] of stretches(cells)) {
    const left = Math.round(plot.valToPos(cells.x[from] ?? 0, "x", true));
    const right = Math.round(plot.valToPos(to < cells.x.length ? (cells.x[to] ?? 0) : cells.end, "x", true));
    if (right < bbox.left || left > bbox.left + bbox.width) continue;
    ctx.drawImage(canvas, from, 0, to - from, cells.rows, left, bbox.top, Math.max(1, right - left), bbox.height);
  }
  ctx.restore();
  write(plot, props);
  rule(plot, props);
}

function rule(plot: uPlot, { cells, guides = [] }: Props): void {
  const { ctx, bbox } = plot;
  const row = bbox.height / Math.max(1, cells.rows);
  const ratio = devicePixelRatio;
  const right = bbox.left + bbox.width;
  ctx.save();
  ctx.font = `${11 * ratio}px Inter, system-ui, "DejaVu Sans", sans-serif`;
  ctx.textAlign = "right";
  ctx.textBaseline = "middle";
  ctx.fillStyle = token("ink");
  const line = 14 * ratio;
  let free = bbox.top;
  for (const guide of guides) {
    const y = Math.round(bbox.top + guide.row * row) + 0.5;
    ctx.lineWidth = ratio;
    ctx.setLineDash([4 * ratio, 4 * ratio]);
    ctx.strokeStyle = token("ink2");
    ctx.beginPath();
    ctx.moveTo(bbox.left, y);
    ctx.lineTo(right, y);
    ctx.stroke();
    if (!guide.text) continue;
    ctx.lineWidth = 4 * ratio; // a halo: what lies below the words is seen round them
    ctx.setLineDash([]);
    ctx.strokeStyle = token("surface");
    const top = Math.min(Math.max(free, y - line / 2), bbox.top + bbox.height - line);
    free = top + line;
    const at = [guide.text, right - 4 * ratio, top + line / 2] as const;
    ctx.strokeText(...at);
    ctx.fillText(...at);
  }
  ctx.restore();
}

export function stretches({ x, end }: Pick<Cells, "x" | "end">): [number, number][] {
  const found: [number, number][] = [];
  const width = (i: number) => (i + 1 < x.length ? (x[i + 1] ?? 0) : end) - (x[i] ?? 0);
  let from = 0;
  for (let i = 1; i <= x.length; i++) {
    if (i === x.length || Math.abs(width(i) - width(from)) > 1e-9 * Math.abs(width(from))) {
      found.push([from, i]);
      from = i;
    }
  }
  return found;
}

function write(plot: uPlot, { cells, labels, selected }: Props): void {
  const { ctx, bbox } = plot;
  const row = bbox.height / Math.max(1, cells.rows);
  const ratio = devicePixelRatio;
  ctx.save();
  ctx.font = `${11 * ratio}px Inter, system-ui, "DejaVu Sans", sans-serif`;
  ctx.textAlign = "right";
  ctx.textBaseline = "middle";
  const written: number[] = [];
  for (const label of labels.toSorted((a, b) => Number(b.first ?? false) - Number(a.first ?? false))) {
    const y = bbox.top + (label.row + 0.5) * row;
    if (written.some((other) => Math.abs(y - other) < 12 * ratio)) continue;
    written.push(y);
    ctx.fillStyle = token(label.row === selected ? "accent" : "ink2");
    ctx.fillText(fitted(ctx, label.text, (GUTTER - 12) * ratio), bbox.left - 6 * ratio, y);
  }
  if (selected !== null && selected !== undefined) {
    ctx.strokeStyle = token("accent");
    ctx.lineWidth = ratio;
    ctx.strokeRect(bbox.left, bbox.top + selected * row, bbox.width, row);
  }
  ctx.restore();
}

/** The end of a name says more than its beginning. */
function fitted(ctx: CanvasRenderingContext2D, text: string, room: number): string {
  if (ctx.measureText(text).width <= room) return text;
  let kept = text;
  while (kept.length > 1 && ctx.measureText(`…${kept}`).width > room) kept = kept.slice(1);
  return `…${kept}`;
}

function under(plot: uPlot, { cells }: Props): [number | null, number | null] {
  const { left, top } = plot.cursor;
  if (left === undefined || top === undefined || left < 0 || top < 0) return [null, null];
  const row = Math.floor((top / plot.over.clientHeight) * cells.rows);
  return [row >= 0 && row < cells.rows ? row : null, columnAt(cells, plot.posToVal(left, "x"))];
}

export function columnAt({ x, end }: Pick<Cells, "x" | "end">, step: number): number | null {
  if (x.length === 0 || step < (x[0] ?? 0) || step > end) return null;
  let low = 0;
  let high = x.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if ((x[middle] ?? 0) <= step) low = middle;
    else high = middle - 1;
  }
  return low;
}

function point(plot: uPlot, props: Props): void {
  if (!plot.cursor.event) return; // the pointer is on another chart
  const [row, column] = under(plot, props);
  const box = plot.over.getBoundingClientRect();
  props.onPoint?.(row, column, { x: box.left + (plot.cursor.left ?? 0), y: box.top + (plot.cursor.top ?? 0) });
}
