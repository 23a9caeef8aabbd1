/** How curves are drawn: kept in the address, so that it can be sent to somebody. */

import type { Signal } from "@preact/signals";
import type { Range, Scale } from "../charts/axes";
import { number, short } from "../format";
import { place, set } from "../router";
import { useKeys } from "../ui/shell";

/** In steps, over how many a value counts for the trend; the first is none. */
export const TAUS = [0, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000];
const SCALES: Scale[] = ["linear", "log", "symlog"];

export interface Look {
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
    scale: scale === "log" || scale === "symlog" ? scale : "linear",
    logX: query.get("logx") === "1",
    smooth: smooth === null ? undefined : Math.max(0, Math.min(TAUS.length - 1, Number(smooth) || 0)),
    search: query.get("search") ?? "",
  };
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

export function LookBar({ range, all }: { range: Signal<Range>; all: [number, number] }) {
  const { scale, logX, smooth, search } = useLook();
  const at = smoothing(smooth, all);
  const smoother = (by: number) => set({ smooth: String(Math.max(0, Math.min(TAUS.length - 1, at + by))) });
  const scaled = (to: string) => set({ y: to === "linear" ? undefined : to });
  useKeys({
    l: () => scaled(SCALES[(SCALES.indexOf(scale) + 1) % SCALES.length] ?? "linear"),
    s: () => smoother(-1),
    S: () => smoother(1),
    "0": () => {
      range.value = null;
    },
  });
  return (
    <>
      <input
        type="search"
        value={search}
        placeholder="Metrics: a regular expression"
        aria-label="metrics"
        spellcheck={false}
        onInput={(event) => set({ search: event.currentTarget.value || undefined })}
      />
      <label title="A value so many steps back counts 1/e. Computed over all values; the raw line stays behind it.">
        Smoothing
        <input type="range" min="0" max={TAUS.length - 1} value={at} onInput={(event) => set({ smooth: event.currentTarget.value })} />
        <span class="tau">{at === 0 ? "none" : `${short(TAUS[at] ?? 0)} steps`}</span>
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
  return (
    <button
      type="button"
      class="chip"
      title="all steps (0)"
      onClick={() => {
        range.value = null;
      }}
    >
      steps {number(Math.round(low))} to {number(Math.round(high))} ✕
    </button>
  );
}

/** The steps that are asked for: half-open. */
export function steps(range: Signal<Range>): { from: number | null; to: number | null } {
  if (range.value === null) return { from: null, to: null };
  return { from: Math.floor(range.value[0]), to: Math.ceil(range.value[1]) + 1 };
}
