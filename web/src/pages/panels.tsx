/** Panels of metrics in sections by prefix, for one run or many: each asks for its data when it comes into sight. */

import { type Signal, signal, useSignal } from "@preact/signals";
import { useEffect, useMemo, useRef } from "preact/hooks";
import type uPlot from "uplot";
import { address, raw, useAnswer } from "../api";
import type { Range } from "../charts/axes";
import { download, fileName, png, python, svg } from "../charts/export";
import { type Line, LineChart } from "../charts/line";
import { cursor, pointed } from "../state";
import { type Action, Menu } from "../ui/menu";
import { Empty } from "../ui/notices";
import { useKeys } from "../ui/shell";
import { say } from "../ui/toast";
import { smoothing, tau, useLook, window } from "./look";
import { Data, Reading } from "./reading";
import { curves, linesOf, logarithmicCurves, type SeriesBody, type Source } from "./series";

const HEIGHT = 200;
const GUTTER = 56;
/** Sections of so many panels begin closed: a metric for each layer is what the Stability view is for. */
const MOST_OPEN = 60;

interface Props {
  metrics: string[];
  sources: Source[];
  range: Signal<Range>;
  all: [number, number];
  /** Changes when there may be something new. */
  live: number;
  syncKey: string;
}

/** The metric whose panel fills the window. */
const full = signal<string | null>(null);

export function Panels({ metrics, ...rest }: Props) {
  const { search } = useLook();
  const shown = metrics.filter((name) => matches(search, name));
  const beside = (by: number) => {
    if (full.value === null) return;
    const order = sections(shown).flatMap(([, names]) => names);
    full.value = order[(order.indexOf(full.value) + by + order.length) % order.length] ?? null;
  };
  useKeys({
    Escape: () => { full.value = null; },
    ArrowRight: () => beside(1),
    ArrowLeft: () => beside(-1),
  });
  useEffect(() => () => { full.value = null; }, []);
  if (shown.length === 0) return <Empty title={search ? "No metric is called that" : "Nothing has been logged yet"} />;
  if (full.value !== null && shown.includes(full.value)) return <Panel key={full.value} metric={full.value} {...rest} />;
  return (
    <>
      {sections(shown).map(([title, names]) => (
        <Section key={title} title={title} names={names} {...rest} />
      ))}
    </>
  );
}

function Section({ title, names, ...rest }: Omit<Props, "metrics"> & { title: string; names: string[] }) {
  const open = useSignal(names.length <= MOST_OPEN);
  const searched = useLook().search !== "" && names.length <= MOST_OPEN;
  const panels = (open.value || searched) && (
    <div class="panels">
      {names.map((metric) => (
        <Panel key={metric} metric={metric} {...rest} />
      ))}
    </div>
  );
  if (!title) return <section>{open.value ? panels : <Closed count={names.length} onOpen={() => { open.value = true; }} />}</section>;
  return (
    <section>
      <h2 class="section">
        <button type="button" class="fold" aria-expanded={Boolean(panels)} onClick={() => { open.value = !open.value; }}>
          <span aria-hidden="true">{panels ? "▾" : "▸"}</span> {title} <small>{names.length}</small>
        </button>
      </h2>
      {panels}
    </section>
  );
}

function Closed({ count, onOpen }: { count: number; onOpen: () => void }) {
  return (
    <button type="button" onClick={onOpen}>
      Show all {count} metrics
    </button>
  );
}

type PanelProps = Omit<Props, "metrics"> & { metric: string };

function Panel(props: PanelProps) {
  const node = useRef<HTMLElement>(null);
  const seen = useSignal(false);
  const actions = useSignal<Action[]>([]);
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
  const filled = full.value === props.metric;
  return (
    <figure ref={node} class={filled ? "card panel full" : "card panel"}>
      <figcaption title={props.metric}>
        <span class="of">{props.metric}</span>
        <button type="button" class="plain" aria-label={filled ? "back to all panels" : `fill the window with ${props.metric}`} onClick={() => { full.value = filled ? null : props.metric; }}>
          {filled ? "✕" : "⤢"}
        </button>
        <Menu label={`what can be done with ${props.metric}`} actions={actions.value} />
      </figcaption>
      {seen.value ? <Curves {...props} height={filled ? Math.max(HEIGHT, innerHeight - 260) : HEIGHT} actions={actions} /> : <div style={{ height: `${HEIGHT + 20}px` }} />}
    </figure>
  );
}

function Curves({ metric, sources, range, all, live, syncKey, height, actions }: PanelProps & { height: number; actions: Signal<Action[]> }) {
  const { axis, scale, logX, smooth } = useLook();
  const stepwise = axis.mode === "step";
  const chosen = stepwise ? smoothing(smooth, all) : (smooth ?? 0);
  const width = useSignal(0);
  const at = useSignal<number | null>(null);
  const table = useSignal(false);
  const plot = useRef<uPlot | null>(null);
  const body: SeriesBody = {
    items: sources.map(({ item }) => ({ ...item, metric })),
    x: window(axis, range),
    px: Math.max(100, Math.floor(width.value / 100) * 100),
    smooth: tau(chosen),
  };
  const log = logX && axis.mode !== "time";
  const key = width.value && sources.length ? JSON.stringify([body, log, live]) : null;
  const answer = useAnswer(key, (stop) => (log ? logarithmicCurves(body, whole.current, stop) : curves(body, stop)));
  const data = answer.value.data;
  const whole = useRef(all);
  if (stepwise) whole.current = all;
  else if (data && data.x.length > 0 && range.value === null) whole.current = [data.x[0] ?? 0, data.x[data.x.length - 1] ?? 1];
  const lines = useMemo(() => (data ? linesOf(data, sources, { smoothed: chosen > 0 }) : []), [data, sources, chosen]);
  actions.value = useMemo(() => actionsOf(metric, body, lines, plot, table), [metric, JSON.stringify(body), lines]);
  return (
    <>
      {answer.value.error && <div class="tone-crit note">{answer.value.error.message}</div>}
      <LineChart
        x={data?.x ?? NOTHING}
        bucket={data?.bucket ?? 0}
        lines={lines}
        range={range}
        all={whole.current}
        cursor={cursor}
        syncKey={syncKey}
        height={height}
        gutter={GUTTER}
        scale={scale}
        logX={log}
        clock={axis.mode === "time"}
        title={metric}
        focus={pointed.value}
        onHeight={(value) => { at.value = value; }}
        onReady={(made) => { plot.current = made; }}
        onWidth={(pixels) => { width.value = pixels; }}
      />
      <Reading axis={axis} steps={data?.x ?? NOTHING} lines={lines} height={at.value} />
      {table.value && data && <Data x={data.x} lines={lines} title={metric} />}
    </>
  );
}

const NOTHING = new Float64Array(0);

function actionsOf(metric: string, body: SeriesBody, lines: Line[], plot: { current: uPlot | null }, table: Signal<boolean>): Action[] {
  const legend = { title: metric, lines };
  const values = async (format: "csv" | "parquet") => download(await raw(`series?format=${format}`, body), fileName(metric, format));
  const script = python(address("../..").replace(/\/$/, ""), body.items.map((item) => item.run), metric, body.x.mode ? { from: null, to: null } : body.x);
  const copied = async () => {
    await navigator.clipboard.writeText(script);
    say("Copied: Python that reads these values");
  };
  const save = (make: (of: uPlot) => Promise<Blob> | Blob, ending: string) => async () => {
    if (plot.current) download(await make(plot.current), fileName(metric, ending));
  };
  return [
    { text: "Save as PNG", act: save((of) => png(of, legend), "png") },
    { text: "Save as SVG", act: save((of) => new Blob([svg(of, legend)], { type: "image/svg+xml" }), "svg") },
    { text: "Save values as CSV", act: () => values("csv") },
    { text: "Save values as Parquet", act: () => values("parquet") },
    { text: "Copy as Python", act: copied },
    { text: "Show the values", act: () => { table.value = !table.value; } },
  ];
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
    const section = found.get(title);
    if (section) section.push(name);
    else found.set(title, [name]);
  }
  return [...found].sort(([a], [b]) => Number(a !== "") - Number(b !== "") || a.localeCompare(b));
}
