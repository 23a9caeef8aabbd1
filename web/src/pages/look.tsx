/** How curves are drawn: kept in the address, so that it can be sent to somebody. */

import type { Signal } from "@preact/signals";
import { earlier, later, type Range, type Scale, wanted, zoom } from "../charts/axes";
import { inFile } from "../embedded";
import { duration, number, short } from "../format";
import { useQuery } from "../query";
import { place, set } from "../router";
import { useKeys } from "../ui/shell";
import type { SeriesBody } from "./series";

/** In steps, over how many a value counts for the trend; the first is none. */
export const TAUS = [0, ...Array.from({ length: 28 }, (_, i) => [1, 2, 5][i % 3]! * 10 ** Math.floor(i / 3))];
const SCALES: Scale[] = ["linear", "log", "symlog"];

/** What lies along x: steps, seconds since the run began, the time of day, or another metric. */
export interface Axis {
  mode: "step" | "relative" | "time" | "metric";
  metric?: string;
}

export interface Look {
  axis: Axis;
  scale: Scale;
  logX: boolean;
  /** A place in `TAUS`; undefined as long as nobody has chosen. */
  smooth: number | undefined;
  search: string;
}

/** What lies along x of a metric: what was chosen, else the metric that `define_metric` said. */
export function axisFor(axis: Axis, said: string | undefined): Axis {
  const chosen = place.value.query.get("x") !== null;
  return chosen || said === undefined ? axis : { mode: "metric", metric: said };
}

export function useLook(): Look {
  const { query } = useQuery();
  const scale = query.get("y");
  const smooth = query.get("smooth");
  return {
    axis: axisOf(query.get("x") ?? "step"),
    scale: scale === "log" || scale === "symlog" ? scale : "linear",
    logX: query.get("logx") === "1",
    smooth: smooth === null ? undefined : Math.max(0, Math.min(TAUS.length - 1, Number(smooth) || 0)),
    search: query.get("search") ?? "",
  };
}

/** `relative`, `time`, or `metric:tokens` in the address. */
function axisOf(text: string): Axis {
  if (text.startsWith(METRIC)) return { mode: "metric", metric: text.slice(METRIC.length) };
  return { mode: text === "relative" || text === "time" ? text : "step" };
}

const METRIC = "metric:";

/** The same way round. */
export function inWords({ mode, metric = "" }: Axis): string {
  return mode === "metric" ? METRIC + metric : mode;
}
/** In the list of what may lie along x: for each metric what `define_metric` said. */
const AS_DEFINED = "";

/** A place on x in words. */
export function placeOn({ mode, metric }: Axis, x: number): string {
  if (mode === "time") return new Date(x * 1000).toLocaleString("en-GB");
  if (mode === "relative") return `${duration(x)} after it began`;
  return `${mode === "metric" ? metric : "step"} ${number(x)}`;
}

function unit({ mode, metric }: Axis, count = 0): string {
  return mode === "step" ? (count === 1 ? "step" : "steps") : mode === "metric" ? (metric ?? "") : "s";
}

/**
 * Which of `TAUS` smooths the curves: the one that was chosen, else about a hundredth of all steps. It is a number of
 * steps and not a share of what is in sight, so that a curve keeps its shape as one zooms.
 */
export function smoothing(chosen: number | undefined, [low, high]: [number, number]): number {
  if (chosen !== undefined) return chosen;
  const wanted = (high - low) / 100;
  return TAUS.findLastIndex((tau) => tau <= wanted);
}

/** What the server is asked for. */
export function tau(place: number): { kind: "ema"; tau: number } | null {
  const steps = TAUS[place] ?? 0;
  return steps > 0 ? { kind: "ema", tau: steps } : null;
}

/** The metrics that may lie along x. */
const MOST_METRICS = 200;

interface BarProps {
  range: Signal<Range>;
  all: [number, number];
  metrics?: string[];
  /** Whether the run says of some metrics what lies along x. */
  defined?: boolean;
}

export function LookBar({ range, all, metrics = [], defined = false }: BarProps) {
  const { axis, scale, logX, smooth, search } = useLook();
  const at = axis.mode === "step" ? smoothing(smooth, all) : (smooth ?? 0);
  const along = (to: string) => {
    set({ x: to === (defined ? AS_DEFINED : "step") ? undefined : to, smooth: undefined, range: undefined });
  };
  const smoother = (by: number) => set({ smooth: String(Math.max(0, Math.min(TAUS.length - 1, at + by))) }, { gradual: true });
  const scaled = (to: string) => set({ y: to === "linear" ? undefined : to });
  useKeys({
    l: () => scaled(SCALES[(SCALES.indexOf(scale) + 1) % SCALES.length] ?? "linear"),
    ...(inFile ? {} : { s: () => smoother(-1), S: () => smoother(1) }),
    "0": () => zoom(range, null),
    "[": () => earlier(range),
    "]": () => later(range),
  });
  return (
    <>
      <input
        type="search"
        value={search}
        placeholder="Metrics: a regular expression"
        aria-label="metrics"
        spellcheck={false}
        onInput={(event) => set({ search: event.currentTarget.value || undefined }, { gradual: true })}
      />
      {!inFile && <Along axis={axis} at={at} defined={defined} metrics={metrics} onAxis={along} />}
      <label>
        y
        <select value={scale} aria-label="scale of y" onChange={(event) => scaled(event.currentTarget.value)}>
          {SCALES.map((name) => (
            <option key={name}>{name}</option>
          ))}
        </select>
      </label>
      {!inFile && (
        <label>
          <input type="checkbox" checked={logX} onChange={() => set({ logx: logX ? undefined : "1" })} /> log x
        </label>
      )}
      <Zoom range={range} />
    </>
  );
}

/** Smoothing and the axis of x: a file has the values of one of each. */
function Along({ axis, at, metrics, defined, onAxis }: { axis: Axis; at: number; metrics: string[]; defined: boolean; onAxis: (to: string) => void }) {
  return (
    <>
      <label title="A value so many steps back counts 1/e. Computed over all values; the raw line stays behind it.">
        Smoothing
        <input type="range" min="0" max={TAUS.length - 1} value={at} onInput={(event) => set({ smooth: event.currentTarget.value }, { gradual: true })} />
        <span class="tau">{at === 0 ? "none" : `${short(TAUS[at] ?? 0)} ${unit(axis, TAUS[at])}`}</span>
      </label>
      <label>
        x
        <select value={defined && place.value.query.get("x") === null ? AS_DEFINED : inWords(axis)} aria-label="what lies along x" onChange={(event) => onAxis(event.currentTarget.value)}>
          {defined && <option value={AS_DEFINED}>as the run says</option>}
          <option value="step">step</option>
          <option value="relative">time since it began</option>
          <option value="time">time of day</option>
          {metrics.slice(0, MOST_METRICS).map((name) => (
            <option key={name} value={METRIC + name}>{name}</option>
          ))}
        </select>
      </label>
    </>
  );
}

/** What is shown of the steps, and the way back to all. */
export function Zoom({ range }: { range: Signal<Range> }) {
  const { axis } = useLook();
  if (range.value === null) return null;
  const [low, high] = range.value;
  const text = axis.mode === "step" ? `steps ${number(Math.round(low))} to ${number(Math.round(high))}` : `${placeOn(axis, low)} to ${placeOn(axis, high)}`;
  return (
    <button
      type="button"
      class="chip"
      title="all of it (0)"
      onClick={() => zoom(range, null)}
    >
      {text} ✕
    </button>
  );
}

/** What is asked for of an axis: half-open. */
export function window({ mode, metric }: Axis, range: Signal<Range>): SeriesBody["x"] {
  if (mode === "step") return steps(range);
  const [from = null, to = null] = wanted(range) ?? [];
  return { mode, ...(metric === undefined ? {} : { metric }), from, to };
}

/** The steps that are asked for: half-open. */
export function steps(range: Signal<Range>): { from: number | null; to: number | null } {
  const part = wanted(range);
  return part === null ? { from: null, to: null } : { from: Math.floor(part[0]), to: Math.ceil(part[1]) + 1 };
}
