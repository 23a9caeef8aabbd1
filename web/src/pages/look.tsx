/** How curves are drawn: kept in the address, so that it can be sent to somebody. */

import type { Signal } from "@preact/signals";
import { earlier, later, type Range, type Scale, zoom } from "../charts/axes";
import { duration, number, short } from "../format";
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

export function useLook(): Look {
  const query = place.value.query;
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

/** A place on x in words. */
export function placeOn({ mode, metric }: Axis, x: number): string {
  if (mode === "time") return new Date(x * 1000).toLocaleString("en-GB");
  if (mode === "relative") return `${duration(x)} after it began`;
  return `${mode === "metric" ? metric : "step"} ${number(x)}`;
}

function unit({ mode, metric }: Axis): string {
  return mode === "step" ? "steps" : mode === "metric" ? (metric ?? "") : "s";
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

export function LookBar({ range, all, metrics = [] }: { range: Signal<Range>; all: [number, number]; metrics?: string[] }) {
  const { axis, scale, logX, smooth, search } = useLook();
  const at = axis.mode === "step" ? smoothing(smooth, all) : (smooth ?? 0);
  const along = (to: string) => {
    range.value = null;
    set({ x: to === "step" ? undefined : to, smooth: undefined });
  };
  const smoother = (by: number) => set({ smooth: String(Math.max(0, Math.min(TAUS.length - 1, at + by))) }, { gradual: true });
  const scaled = (to: string) => set({ y: to === "linear" ? undefined : to });
  useKeys({
    l: () => scaled(SCALES[(SCALES.indexOf(scale) + 1) % SCALES.length] ?? "linear"),
    s: () => smoother(-1),
    S: () => smoother(1),
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
      <label title="A value so many steps back counts 1/e. Computed over all values; the raw line stays behind it.">
        Smoothing
        <input type="range" min="0" max={TAUS.length - 1} value={at} onInput={(event) => set({ smooth: event.currentTarget.value }, { gradual: true })} />
        <span class="tau">{at === 0 ? "none" : `${short(TAUS[at] ?? 0)} ${unit(axis)}`}</span>
      </label>
      <label>
        x
        <select value={axis.mode === "metric" ? METRIC + axis.metric : axis.mode} aria-label="what lies along x" onChange={(event) => along(event.currentTarget.value)}>
          <option value="step">step</option>
          <option value="relative">time since its begin</option>
          <option value="time">time of day</option>
          {metrics.slice(0, MOST_METRICS).map((name) => (
            <option key={name} value={METRIC + name}>{name}</option>
          ))}
        </select>
      </label>
      <label>
        y
        <select value={scale} aria-label="scale of y" onChange={(event) => scaled(event.currentTarget.value)}>
          {SCALES.map((name) => (
            <option key={name}>{name}</option>
          ))}
        </select>
      </label>
      <label>
        <input type="checkbox" checked={logX} onChange={() => set({ logx: logX ? undefined : "1" })} /> log x
      </label>
      <Zoom range={range} />
    </>
  );
}

/** What is shown of the steps, and the way back to all. */
export function Zoom({ range }: { range: Signal<Range> }) {
  if (range.value === null) return null;
  const [low, high] = range.value;
  const { axis } = useLook();
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
  const [from = null, to = null] = range.value ?? [];
  return { mode, ...(metric === undefined ? {} : { metric }), from, to };
}

/** The steps that are asked for: half-open. */
export function steps(range: Signal<Range>): { from: number | null; to: number | null } {
  if (range.value === null) return { from: null, to: null };
  return { from: Math.floor(range.value[0]), to: Math.ceil(range.value[1]) + 1 };
}
