/** Panels of metrics in sections by prefix, for one run or many: each asks for its data when it comes into sight. */

import { type Signal, useSignal } from "@preact/signals";
import { useEffect, useMemo, useRef } from "preact/hooks";
import { frame, useAnswer } from "../api";
import type { Range } from "../charts/axes";
import { type Line, LineChart } from "../charts/line";
import { number } from "../format";
import type { SeriesHeader, SeriesItem } from "../model";
import { place, set } from "../router";
import { cursor, pointed } from "../state";
import { Empty } from "../ui/notices";
import { useKeys } from "../ui/shell";

const HEIGHT = 200;
const GUTTER = 56;
/** Shares of all steps over which values are smoothed. */
const SMOOTHING = [0, 0.005, 0.01, 0.02, 0.05, 0.1];

/** One line of every panel: what is asked of the server but for the metric, and how it looks. */
export interface Source {
  item: Omit<SeriesItem, "metric">;
  label: string;
  colour: string;
}

/** How curves are drawn: in the address, so that it can be sent to somebody. */
export function useLook() {
  const query = place.value.query;
  const log = query.get("log") === "1";
  const smooth = Number(query.get("smooth") ?? "2");
  return { log, smooth, smoothing: SMOOTHING[smooth] ?? 0, search: query.get("search") ?? "" };
}

export function LookBar({ range }: { range: Signal<Range> }) {
  const { log, smooth, search } = useLook();
  const smoother = (by: number) => set({ smooth: String(Math.max(0, Math.min(SMOOTHING.length - 1, smooth + by))) });
  useKeys({
    l: () => set({ log: log ? undefined : "1" }),
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
      <label>
        Smoothing
        <input
          type="range"
          min="0"
          max={SMOOTHING.length - 1}
          value={smooth}
          onInput={(event) => set({ smooth: event.currentTarget.value })}
        />
      </label>
      <label>
        <input type="checkbox" checked={log} onChange={() => set({ log: log ? undefined : "1" })} /> log y
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

interface Props {
  metrics: string[];
  sources: Source[];
  range: Signal<Range>;
  all: [number, number];
  /** Changes when there may be something new. */
  live: number;
  syncKey: string;
}

export function Panels({ metrics, ...rest }: Props) {
  const { search } = useLook();
  const shown = metrics.filter((name) => matches(search, name));
  if (shown.length === 0) return <Empty title={search ? "No metric is called that" : "Nothing has been logged yet"} />;
  return (
    <>
      {sections(shown).map(([title, names]) => (
        <section key={title}>
          {title && (
            <h2 class="section">
              {title} <small>{names.length}</small>
            </h2>
          )}
          <div class="panels">
            {names.map((metric) => (
              <Panel key={metric} metric={metric} {...rest} />
            ))}
          </div>
        </section>
      ))}
    </>
  );
}

type PanelProps = Omit<Props, "metrics"> & { metric: string };

function Panel(props: PanelProps) {
  const node = useRef<HTMLElement>(null);
  const seen = useSignal(false);
  useEffect(() => {
    if (!node.current) return;
    const watched = new IntersectionObserver(
      ([entry]) => {
        seen.value = entry?.isIntersecting ?? false;
      },
      { rootMargin: "200px" },
    );
    watched.observe(node.current);
    return () => watched.disconnect();
  }, [seen]);
  return (
    <figure ref={node} class="card panel">
      <figcaption title={props.metric}>{props.metric}</figcaption>
      {seen.value ? <Curves {...props} /> : <div style={{ height: `${HEIGHT + 20}px` }} />}
    </figure>
  );
}

function Curves({ metric, sources, range, all, live, syncKey }: PanelProps) {
  const { log, smoothing } = useLook();
  const width = useSignal(0);
  const body = {
    items: sources.map(({ item }) => ({ ...item, metric })),
    x: steps(range),
    px: Math.max(100, Math.floor(width.value / 100) * 100),
    smooth: tau(all, smoothing),
  };
  const key = width.value && sources.length ? JSON.stringify([body, live]) : null;
  const answer = useAnswer(key, (signal) => frame<SeriesHeader>("series", body, signal));
  const data = answer.value.data;
  const focus = pointed.value;
  const lines = useMemo(() => (data ? linesOf(data, sources, { focus, smoothed: smoothing > 0 }) : []), [data, sources, focus, smoothing]);
  const x = data?.columns.get("x") ?? new Float64Array(0);
  return (
    <>
      {answer.value.error && <div class="tone-crit note">{answer.value.error.message}</div>}
      <LineChart
        x={x}
        bucket={data?.header.bucket ?? 0}
        lines={lines}
        range={range}
        all={all}
        cursor={cursor}
        syncKey={syncKey}
        height={HEIGHT}
        gutter={GUTTER}
        log={log}
        title={metric}
        onWidth={(pixels) => {
          width.value = pixels;
        }}
      />
      <Reading steps={x} lines={lines} />
    </>
  );
}

/** The steps that are asked for: half-open. */
export function steps(range: Signal<Range>): { from: number | null; to: number | null } {
  if (range.value === null) return { from: null, to: null };
  return { from: Math.floor(range.value[0]), to: Math.ceil(range.value[1]) + 1 };
}

/** Over how many steps values are smoothed: a share of all there are, so that it does not change as one zooms. */
export function tau([low, high]: [number, number], share: number): { kind: "ema"; tau: number } | null {
  return share > 0 ? { kind: "ema", tau: Math.max(1, share * (high - low)) } : null;
}

/** What lines there are in an answer; those that the pointer is not on step back. */
export function linesOf(
  { header, columns }: { header: SeriesHeader; columns: Map<string, ArrayLike<number>> },
  sources: readonly Source[],
  { focus = null, smoothed = true }: { focus?: string | null; smoothed?: boolean } = {},
): Line[] {
  return header.items.flatMap((item, i): Line[] => {
    const source = sources[i];
    const mean = columns.get(`mean.${i}`);
    if (!source || !mean) return [];
    const column = (name: string) => columns.get(`${name}.${i}`) ?? mean;
    return [
      {
        label: source.label,
        colour: focus !== null && focus !== item.run ? "rgb(128 128 128 / 25%)" : source.colour,
        first: column("first"),
        min: column("min"),
        max: column("max"),
        last: column("last"),
        mean,
        smooth: smoothed ? columns.get(`smooth.${i}`) : undefined,
      },
    ];
  });
}

/** The values at the cursor. */
function Reading({ steps, lines }: { steps: ArrayLike<number>; lines: Line[] }) {
  const at = cursor.value;
  if (at === null || steps.length === 0) return <div class="reading">&nbsp;</div>;
  const i = lastBefore(steps, at);
  const there = lines.filter((line) => !Number.isNaN(line.mean[i] ?? Number.NaN));
  return (
    <div class="reading">
      <span class="quiet">step {number(steps[i] ?? null)}</span>
      {there.slice(0, 6).map((line) => (
        <span key={line.label} title={line.label}>
          <i class="swatch" style={{ background: line.colour }} />
          {number(line.mean[i] ?? null)}
          {line.min[i] !== line.max[i] && (
            <small>
              {" "}
              {number(line.min[i] ?? null)} … {number(line.max[i] ?? null)}
            </small>
          )}
        </span>
      ))}
    </div>
  );
}

/** The place of the last step that is not behind `at`. */
export function lastBefore(steps: ArrayLike<number>, at: number): number {
  let low = 0;
  let high = steps.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if ((steps[middle] ?? 0) <= at) low = middle;
    else high = middle - 1;
  }
  return low;
}

function matches(pattern: string, name: string): boolean {
  try {
    return new RegExp(pattern, "i").test(name);
  } catch {
    return name.includes(pattern);
  }
}

/** Names by the part before the first slash; those without one come first. */
export function sections(names: readonly string[]): [string, string[]][] {
  const found = new Map<string, string[]>();
  for (const name of names) {
    const title = name.includes("/") ? name.slice(0, name.indexOf("/")) : "";
    found.set(title, [...(found.get(title) ?? []), name]);
  }
  return [...found].sort(([a], [b]) => Number(a !== "") - Number(b !== "") || a.localeCompare(b));
}
