/** Panels of what was logged, in sections by prefix, for one run or many: each asks for its data when it comes into sight. */

import { type Signal, signal, useSignal } from "@preact/signals";
import { useEffect, useMemo, useRef } from "preact/hooks";
import type uPlot from "uplot";
import { address, post, raw, useAnswer } from "../api";
import type { Range } from "../charts/axes";
import { download, fileName, png, python, svg } from "../charts/export";
import { type Line, LineChart } from "../charts/line";
import { answers, inFile } from "../embedded";
import type { LoggedName, LoggedSource } from "../model";
import { useQuery } from "../query";
import { cursor, pointed } from "../state";
import { type Action, Menu } from "../ui/menu";
import { Empty } from "../ui/notices";
import { useKeys } from "../ui/shell";
import { say } from "../ui/toast";
import { Logged, MOST_SIDES } from "./logged";
import { axisFor, inWords, smoothing, TAUS, tau, useLook, window } from "./look";
import { Data, Reading } from "./reading";
import { useReportActions } from "./reports/adding";
import { curvesPanel } from "./reports/panel";
import { curves, linesOf, logarithmicCurves, type SeriesBody, type Source } from "./series";

const HEIGHT = 200;
const GUTTER = 56;
/** Sections of so many panels begin closed: a metric for each layer is what the Stability view is for. */
const MOST_OPEN = 60;

const LOSS = /(^|[/_])loss$/;

interface Props {
  metrics: string[];
  /** Of what is no number, which names are meant. */
  logged: (name: string) => boolean;
  sources: Source[];
  range: Signal<Range>;
  all: [number, number];
  /** The metric that lies along x of one, unless people choose otherwise. */
  along?: (metric: string) => string | undefined;
  /** Changes when there may be something new. */
  live: number;
  syncKey: string;
}

/** What a panel shows: the lines of a metric, or files or texts. */
interface Shown {
  name: string;
  source: "metric" | LoggedSource;
}

/** The panel that fills the window. */
const full = signal<string | null>(null);

export function Panels({ metrics, logged, ...rest }: Props) {
  const { search } = useLook();
  const runs = useMemo(() => [...new Set(rest.sources.map(({ item }) => item.run))].slice(0, MOST_SIDES), [rest.sources]);
  const names = useAnswer(runs.length && answers("logged/names", { runs }) ? `logged ${runs} ${rest.live}` : null, (signal) => post<LoggedName[]>("logged/names", { runs }, signal));
  const others = (names.value.data ?? []).filter(({ name }) => logged(name));
  const every: Shown[] = [...metrics.map((name) => ({ name, source: "metric" as const })), ...others];
  const shown = every.filter(({ name }) => matches(search, name));
  const beside = (by: number) => {
    if (full.value === null) return;
    const order = sections(shown).flatMap(([, panels]) => panels.map(keyOf));
    full.value = order[(order.indexOf(full.value) + by + order.length) % order.length] ?? null;
  };
  useKeys({
    Escape: () => { full.value = null; },
    ArrowRight: () => beside(1),
    ArrowLeft: () => beside(-1),
  });
  useEffect(() => () => { full.value = null; }, []);
  if (shown.length === 0 && names.value.loading) return <div class="waiting" aria-busy="true" />;
  if (shown.length === 0) return <Empty title={search ? "Nothing is called that" : "Nothing has been logged yet"} />;
  const filling = shown.find((one) => keyOf(one) === full.value);
  if (filling) return <Panel key={full.value} shown={filling} fills {...rest} />;
  return (
    <>
      {sections(shown).map(([title, panels]) => (
        <Section key={title} title={title} panels={panels} {...rest} />
      ))}
    </>
  );
}

function keyOf({ name, source }: Shown): string {
  return `${source} ${name}`;
}

type Rest = Omit<Props, "metrics" | "logged">;

function Section({ title, panels, ...rest }: Rest & { title: string; panels: Shown[] }) {
  const open = useSignal(panels.length <= MOST_OPEN);
  const searched = useLook().search !== "" && panels.length <= MOST_OPEN;
  const drawn = (open.value || searched) && (
    <div class="panels">
      {panels.map((shown) => (
        <Panel key={keyOf(shown)} shown={shown} fills {...rest} />
      ))}
    </div>
  );
  if (!title) return <section>{open.value ? drawn : <Closed count={panels.length} onOpen={() => { open.value = true; }} />}</section>;
  return (
    <section>
      <h2 class="section">
        <button type="button" class="fold" aria-expanded={Boolean(drawn)} onClick={() => { open.value = !open.value; }}>
          <span aria-hidden="true">{drawn ? "▾" : "▸"}</span> {title} <small>{panels.length}</small>
        </button>
      </h2>
      {drawn}
    </section>
  );
}

function Closed({ count, onOpen }: { count: number; onOpen: () => void }) {
  return (
    <button type="button" onClick={onOpen}>
      Show all {count}
    </button>
  );
}

type PanelProps = Rest & {
  shown: Shown;
  /** It can fill the window, and waits with its data until it is in sight. */
  fills?: boolean;
};

export function Panel({ shown, fills = false, ...rest }: PanelProps) {
  const node = useRef<HTMLElement>(null);
  const seen = useSignal(!fills);
  const actions = useSignal<Action[]>([]);
  useEffect(() => {
    if (!node.current || !fills) return;
    const watched = new IntersectionObserver(
      ([entry]) => {
        seen.value = entry?.isIntersecting ?? false;
      },
      { rootMargin: "200px" },
    );
    watched.observe(node.current);
    return () => watched.disconnect();
  }, [seen]);
  const { name, source } = shown;
  const filled = fills && full.value === keyOf(shown);
  const { axis } = useLook();
  const own = axisFor(axis, rest.along?.(name));
  const body = { ...rest, height: filled ? Math.max(HEIGHT, innerHeight - 260) : HEIGHT };
  return (
    <figure ref={node} class={filled ? "card panel full" : "card panel"}>
      <figcaption title={name}>
        <span class="of">
          {name}
          {source === "metric" && own !== axis && <small class="quiet"> over {own.metric}</small>}
        </span>
        {fills && <button type="button" class="plain" aria-label={filled ? "back to all panels" : `fill the window with ${name}`} onClick={() => { full.value = filled ? null : keyOf(shown); }}>
          {filled ? "✕" : "⤢"}
        </button>}
        {source === "metric" && <Menu label={`what can be done with ${name}`} actions={actions.value} />}
      </figcaption>
      {!seen.value ? (
        <div style={{ height: `${HEIGHT + 20}px` }} />
      ) : source === "metric" ? (
        <Curves metric={name} actions={actions} {...body} />
      ) : (
        <Logged name={name} source={source} {...body} />
      )}
    </figure>
  );
}

function Curves({ metric, sources, range: shared, all, along, live, syncKey, height, actions }: Rest & { metric: string; height: number; actions: Signal<Action[]> }) {
  const look = useLook();
  const { scale, logX, smooth } = look;
  const axis = axisFor(look.axis, along?.(metric));
  const own = { range: useSignal<Range>(null), cursor: useSignal<number | null>(null) };
  const together = axis === look.axis;
  const range = together ? shared : own.range;
  const pointer = together ? cursor : own.cursor;
  const { query, pinned } = useQuery();
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
  const log = logX && axis.mode !== "time" && (stepwise || !pinned || range.value !== null);
  const key = width.value && sources.length ? JSON.stringify([body, log, live]) : null;
  const answer = useAnswer(key, (stop) => (log ? logarithmicCurves(body, whole.current, stop) : curves(body, stop)));
  const data = answer.value.data;
  const whole = useRef(all);
  if (stepwise) whole.current = all;
  else if (data && data.x.length > 0 && range.value === null) whole.current = [data.x[0] ?? 0, data.x[data.x.length - 1] ?? 1];
  const lines = useMemo(() => (data ? linesOf(data, sources, { smoothed: chosen > 0 }) : []), [data, sources, chosen]);
  const seen = together ? query : new URLSearchParams({ ...Object.fromEntries(query), x: inWords(axis) });
  const adding = useReportActions(() => curvesPanel(metric, sources, seen, stepwise ? range.value : (range.value ?? whole.current), TAUS[chosen] ?? 0));
  const saving = useMemo(() => actionsOf(metric, body, lines, plot, table), [metric, JSON.stringify(body), lines]);
  actions.value = useMemo(() => [...saving, ...adding], [saving, adding]);
  return (
    <>
      {answer.value.error && <div class="tone-crit note">{answer.value.error.message}</div>}
      <LineChart
        x={data?.x}
        bucket={data?.bucket ?? 0}
        lines={lines}
        range={range}
        all={whole.current}
        cursor={pointer}
        syncKey={together ? syncKey : `${syncKey} ${metric}`}
        height={height}
        gutter={GUTTER}
        scale={scale}
        logX={log}
        reach={reachOf(metric)}
        clock={axis.mode === "time"}
        title={metric}
        focus={pointed.value}
        onHeight={(value) => { at.value = value; }}
        onReady={(made) => { plot.current = made; }}
        onWidth={(pixels) => { width.value = pixels; }}
      />
      <Reading metric={metric} cursor={pointer} axis={axis} steps={data?.x ?? NOTHING} lines={lines} height={at} />
      {table.value && data && <Data x={data.x} lines={lines} title={metric} />}
    </>
  );
}

const NOTHING = new Float64Array(0);

/** What is measured of the machine is a part of something, or a flow: it is seen against nothing, and all. */
function reachOf(metric: string): [number, number] | undefined {
  return metric.startsWith("system/") ? [0, metric.endsWith("percent") ? 100 : 0] : undefined;
}

function actionsOf(metric: string, body: SeriesBody, lines: Line[], plot: { current: uPlot | null }, table: Signal<boolean>): Action[] {
  const legend = { title: metric, lines };
  const asked = inFile ? [] : fromServer(metric, body);
  const save = (make: (of: uPlot) => Promise<Blob> | Blob, ending: string) => async () => {
    if (plot.current) download(await make(plot.current), fileName(metric, ending));
  };
  return [
    { text: "Save as PNG", act: save((of) => png(of, legend), "png") },
    { text: "Save as SVG", act: save((of) => new Blob([svg(of, legend)], { type: "image/svg+xml" }), "svg") },
    ...asked,
    { text: "Show the values", act: () => { table.value = !table.value; } },
  ];
}

/** What takes the values at full resolution, which a file does not have. */
function fromServer(metric: string, body: SeriesBody): Action[] {
  const values = async (format: "csv" | "parquet") => download(await raw(`series?format=${format}`, body), fileName(metric, format));
  const script = python(address("../..").replace(/\/$/, ""), body.items.map((item) => item.run), metric, body.x.mode ? { from: null, to: null } : body.x);
  const copied = async () => {
    await navigator.clipboard.writeText(script);
    say("Copied: Python that reads these values");
  };
  return [
    { text: "Save values as CSV", act: () => values("csv") },
    { text: "Save values as Parquet", act: () => values("parquet") },
    { text: "Copy as Python", act: copied },
  ];
}

function matches(pattern: string, name: string): boolean {
  try {
    return new RegExp(pattern, "i").test(name);
  } catch {
    return name.includes(pattern);
  }
}

/** Names by the part before the first slash; those without one, or with one of their own, come first, and losses before all. */
function sections<T extends { name: string }>(panels: readonly T[]): [string, T[]][] {
  const found = new Map<string, T[]>();
  const head = (name: string) => name.slice(0, Math.max(0, name.indexOf("/")));
  const sizes = new Map<string, number>();
  for (const { name } of panels) sizes.set(head(name), (sizes.get(head(name)) ?? 0) + 1);
  for (const panel of panels.toSorted((a, b) => Number(LOSS.test(b.name)) - Number(LOSS.test(a.name)))) {
    const title = sizes.get(head(panel.name)) === 1 ? "" : head(panel.name);
    const section = found.get(title);
    if (section) section.push(panel);
    else found.set(title, [panel]);
  }
  return [...found].sort(([a], [b]) => Number(a !== "") - Number(b !== "") || a.localeCompare(b));
}
