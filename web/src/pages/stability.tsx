/** Is it sick, since when, which layer, which rank, what kind, what changed: one range of steps for all panels. */

import { type Signal, useSignal } from "@preact/signals";
import { useMemo } from "preact/hooks";
import { frame, get, useAnswer } from "../api";
import type { Frame } from "../frame";
import { GUTTER, type Range, RIGHT, whole } from "../charts/axes";
import { colour } from "../charts/colours";
import { type Cells, HeatChart } from "../charts/heat";
import { LineChart } from "../charts/line";
import { againstMedian, againstOthers, logarithm, type Pool, pooled, rowsAt, rowsWithin } from "../charts/layers";
import { robust } from "../charts/limits";
import { bucketLabels, fractions } from "../charts/buckets";
import { number } from "../format";
import type { Finding, HeatmapHeader, HistogramHeader, RunAnswer, SeriesHeader } from "../model";
import { place, set } from "../router";
import { cursor, news } from "../state";
import { SeverityMark } from "../ui/marks";
import { Answered, Empty } from "../ui/notices";
import { useKeys } from "../ui/shell";
import { smoothing, steps, tau, Zoom } from "./look";
import { curves, linesOf } from "./series";

const KINDS = ["gradient", "parameter", "update", "activation", "optimizer"];
const MODES = {
  median: { text: "norm against its own median", stat: "norm", pool: "norm", unit: "× its median, as a power of 2" },
  norm: { text: "norm", stat: "norm", pool: "norm", unit: "log₁₀" },
  absmax: { text: "largest element, mean over tensors", stat: "absmax", pool: "mean", unit: "log₁₀" },
  zeros: { text: "share of zeros, mean over tensors", stat: "zeros", pool: "mean", unit: "" },
} as const;
type Mode = keyof typeof MODES;
/** Rows of the heatmap of layers, unless a depth is chosen. */
const MOST_ROWS = 40;
/** Ranks of the heatmap of ranks. */
const MOST_RANKS = 256;
const ROW = 14;

interface Props {
  run: RunAnswer;
  range: Signal<Range>;
}

export function Stability({ run, range }: Props) {
  const live = run.state === "running" ? news.value : 0;
  const answer = useAnswer(`findings ${run.uid} ${live}`, (signal) =>
    get<Finding[]>(`runs/${run.uid}/findings`, signal),
  );
  const findings = answer.value.data ?? [];
  const at = useSignal(-1);
  const choose = (i: number) => {
    const finding = findings[i];
    if (!finding) return;
    at.value = i;
    range.value = round(finding);
    const [name] = finding.names;
    if (name) set({ tensor: name, ...(finding.kind ? { kind: finding.kind } : {}) });
  };
  useKeys({
    ".": () => choose(Math.min(at.value + 1, findings.length - 1)),
    ",": () => choose(Math.max(at.value - 1, 0)),
    "0": () => {
      range.value = null;
    },
  });
  return (
    <div class="stability">
      <div class="stack">
        <Lane findings={findings} range={range} run={run} onChoose={choose} chosen={at.value} />
        <Curves run={run} range={range} live={live} />
        <Layers run={run} range={range} live={live} findings={findings} />
        {run.world_size > 1 && <Ranks run={run} range={range} live={live} />}
        <Detail run={run} range={range} live={live} />
      </div>
      <aside class="card findings" aria-label="findings">
        <h2>
          Findings <small>{findings.length || ""}</small> <Zoom range={range} />
        </h2>
        <Answered answer={answer.value}>
          {() =>
            findings.length === 0 ? (
              <p class="quiet">No rule has found anything. That is what a healthy run looks like.</p>
            ) : (
              <ol>
                {findings.map((finding, i) => (
                  <li key={i} class={i === at.value ? "chosen" : ""}>
                    <button type="button" onClick={() => choose(i)}>
                      <SeverityMark severity={finding.severity} /> <strong>{finding.rule.replaceAll("_", " ")}</strong>
                      <span class="quiet"> {when(finding)}</span>
                      <p>{finding.why}</p>
                      <p class="quiet">{finding.look_at}</p>
                    </button>
                  </li>
                ))}
              </ol>
            )
          }
        </Answered>
      </aside>
    </div>
  );
}

/** A finding and as much again on both sides. */
export function round({ first_step, last_step }: Finding): Range {
  const end = last_step ?? first_step;
  const room = Math.max(20, end - first_step);
  return [Math.max(0, first_step - room), end + room];
}

function when({ first_step, last_step }: Finding): string {
  if (last_step === null) return `since step ${number(first_step)}`;
  return last_step === first_step ? `step ${number(first_step)}` : `steps ${number(first_step)} to ${number(last_step)}`;
}

/** Every finding where it was, above the panels: the index of the run. */
function Lane({ findings, range, run, onChoose, chosen }: { findings: Finding[]; range: Signal<Range>; run: RunAnswer; onChoose: (i: number) => void; chosen: number }) {
  const [low, high] = range.value ?? whole(run.last_step);
  return (
    <div class="lane" role="group" style={{ marginLeft: `${GUTTER}px`, marginRight: `${RIGHT}px` }} aria-label="findings over steps">
      {findings.map((finding, i) => {
        const share = (finding.first_step - low) / (high - low);
        return share >= 0 && share <= 1 ? (
          <button type="button" key={i} style={{ left: `${share * 100}%` }} class={i === chosen ? "chosen" : ""} title={`${finding.rule}: ${finding.why}`} onClick={() => onChoose(i)}>
            <SeverityMark severity={finding.severity} />
          </button>
        ) : null;
      })}
    </div>
  );
}

const CURVES: [string, string, boolean][] = [
  ["loss", "Loss", false],
  ["watch/grad_norm", "Gradient norm", true],
];

function Curves({ run, range, live }: Props & { live: number }) {
  const known = Object.keys(run.summary);
  const loss = known.find((name) => name === "loss") ?? known.find((name) => /(^|[/_])loss$/.test(name));
  const metrics = CURVES.map(([metric, title, log]) => [metric === "loss" ? loss : metric, title, log] as const);
  return (
    <>
      {metrics.map(([metric, title, log]) =>
        metric && known.includes(metric) ? <Curve key={metric} run={run} range={range} live={live} metric={metric} title={title} log={log} /> : null,
      )}
    </>
  );
}

function Curve({ run, range, live, metric, title, log }: Props & { live: number; metric: string; title: string; log: boolean }) {
  const width = useSignal(0);
  const body = { items: [{ run: run.uid, metric }], x: steps(range), px: buckets(width.value), smooth: tau(smoothing(undefined, whole(run.last_step))) };
  const key = width.value ? JSON.stringify([body, live]) : null;
  const answer = useAnswer(key, (signal) => curves(body, signal));
  const data = answer.value.data;
  const lines = useMemo(() => {
    const source = { item: { run: run.uid }, label: title, colour: colour(log ? 3 : 0) };
    return data ? linesOf(data, [source]) : [];
  }, [data, log]);
  return (
    <figure class="card panel">
      <figcaption>
        {title} <small>{metric === title.toLowerCase() ? "" : metric}</small>
      </figcaption>
      <LineChart
        x={data?.x ?? NOTHING}
        bucket={data?.bucket ?? 0}
        lines={lines}
        range={range}
        all={whole(run.last_step)}
        cursor={cursor}
        syncKey={run.uid}
        height={130}
        scale={log ? "log" : "linear"}
        title={title}
        onWidth={(pixels) => {
          width.value = pixels;
        }}
      />
    </figure>
  );
}

const NOTHING = new Float64Array(0);

interface Pointed {
  row: number;
  column: number;
  x: number;
  y: number;
}

function Layers({ run, range, live, findings }: Props & { live: number; findings: Finding[] }) {
  const query = place.value.query;
  const kind = query.get("kind") ?? "gradient";
  const mode = (query.get("mode") ?? "median") as Mode;
  const depth = query.get("depth") ?? "";
  const { text, stat, pool, unit } = MODES[mode] ?? MODES.median;
  const width = useSignal(0);
  const pointed = useSignal<Pointed | null>(null);
  const body = { run: run.uid, kind, stat, x: steps(range), px: buckets(width.value) };
  const key = width.value ? JSON.stringify([body, live]) : null;
  const answer = useAnswer(key, (signal) => frame<HeatmapHeader>("heatmap", body, signal));
  const data = answer.value.data;
  const { cells, rows } = useMemo(() => layersOf(data, mode, pool, depth), [data, mode, pool, depth]);
  const sick = new Set(findings.filter((finding) => finding.severity !== "info").flatMap((finding) => finding.names));
  const chosen = rows.findIndex((row) => row.pattern === query.get("tensor"));
  const diverging = mode === "median";
  const shown = useMemo<[number, number]>(() => (diverging ? [-3, 3] : mode === "zeros" ? [0, 1] : robust(cells.values)), [cells, mode]);
  return (
    <figure class="card panel">
      <figcaption>
        Layers
        <Choice label="kind" value={kind} options={KINDS.map((name) => [name, name])} onChange={(value) => set({ kind: value, tensor: undefined })} />
        <Choice label="what is shown" value={mode} options={Object.entries(MODES).map(([name, one]) => [name, one.text])} onChange={(value) => set({ mode: value })} />
        <Choice
          label="depth"
          value={depth}
          options={[["", "as fits"], ["1", "1 level"], ["2", "2 levels"], ["3", "3 levels"], ["99", "every tensor"]]}
          onChange={(value) => set({ depth: value || undefined })}
        />
        <Legend limits={shown} kind={diverging ? "diverging" : "sequential"} unit={unit} />
      </figcaption>
      {answer.value.error && <div class="tone-crit note">{answer.value.error.message}</div>}
      {data && rows.length === 0 ? (
        <Empty title={`No ${kind} was recorded`}>
          <p>
            <code>run.watch(model, log="all")</code> records gradients and parameters; <code>log=("updates", "activations", "optimizer")</code> the others.
          </p>
        </Empty>
      ) : (
        <HeatChart
          cells={cells}
          kind={diverging ? "diverging" : "sequential"}
          limits={shown}
          labels={rows.map(({ path, members }, row) => ({ row, text: members.some((name) => sick.has(name)) ? `▲ ${path}` : path }))}
          range={range}
          all={whole(run.last_step)}
          cursor={cursor}
          syncKey={run.uid}
          height={Math.max(120, Math.min(420, rows.length * ROW + 26))}
          selected={chosen < 0 ? null : chosen}
          title={`layers by step, ${kind}, ${text}`}
          onWidth={(pixels) => {
            width.value = pixels;
          }}
          onPoint={(row, column, at) => {
            pointed.value = row === null || column === null ? null : { row, column, ...at };
          }}
          onClick={(row) => set({ tensor: rows[row]?.pattern })}
        />
      )}
      <Tip pointed={pointed.value} cells={cells} name={(row) => rows[row]?.path ?? ""} />
    </figure>
  );
}

function layersOf(data: Frame<HeatmapHeader> | undefined, mode: Mode, pool: Pool, depth: string) {
  const names = data?.header.rows ?? [];
  const x = data?.columns.get("x") ?? new Float64Array(0);
  const columns = x.length;
  const parts = depth ? rowsAt(names, Number(depth)) : rowsWithin(names, MOST_ROWS);
  const table = { names, columns, cells: data?.columns.get("cells") ?? [], flags: data?.columns.get("flags") ?? [] };
  const { values, nonfinite } = pooled(table, parts, pool);
  const shown = mode === "median" ? againstMedian(values, columns) : mode === "zeros" ? values : logarithm(values);
  const rows = parts.map(({ path, members }) => ({
    path,
    pattern: names.includes(path) ? path : `${path}.*`,
    members: members.map((i) => names[i] ?? ""),
  }));
  return { rows, cells: { x, end: endOf(x, data?.header.bucket ?? 1), rows: rows.length, values: shown, nonfinite } };
}

function Ranks({ run, range, live }: Props & { live: number }) {
  const metric = place.value.query.get("of") ?? "watch/local_grad_norm";
  const width = useSignal(0);
  const pointed = useSignal<Pointed | null>(null);
  const ranks = Math.min(run.world_size, MOST_RANKS);
  const body = {
    items: Array.from({ length: ranks }, (_, rank) => ({ run: run.uid, metric, rank })),
    x: steps(range),
    px: buckets(width.value),
  };
  const key = width.value ? JSON.stringify([body, live]) : null;
  const answer = useAnswer(key, (signal) => frame<SeriesHeader>("series", body, signal));
  const data = answer.value.data;
  const cells = useMemo<Cells>(() => ranksOf(data, ranks), [data, ranks]);
  const known = Object.keys(run.summary).filter((name) => !name.startsWith("_tt/"));
  const metrics = [...new Set(["watch/local_grad_norm", ...known])];
  return (
    <figure class="card panel">
      <figcaption>
        Ranks
        <Choice label="metric of each rank" value={metric} options={metrics.map((name) => [name, name])} onChange={(value) => set({ of: value })} />
        <Legend limits={[-1, 1]} kind="diverging" unit="× the median rank, as a power of 2" />
      </figcaption>
      {answer.value.error && <div class="tone-crit note">{answer.value.error.message}</div>}
      <HeatChart
        cells={cells}
        kind="diverging"
        limits={[-1, 1]}
        labels={Array.from({ length: ranks }, (_, row) => ({ row, text: `rank ${row}` }))}
        range={range}
        all={whole(run.last_step)}
        cursor={cursor}
        syncKey={run.uid}
        height={Math.max(60, Math.min(300, ranks * ROW + 26))}
        title={`ranks by step, ${metric}`}
        onWidth={(pixels) => {
          width.value = pixels;
        }}
        onPoint={(row, column, at) => {
          pointed.value = row === null || column === null ? null : { row, column, ...at };
        }}
      />
      <Tip pointed={pointed.value} cells={cells} name={(row) => `rank ${row}`} />
    </figure>
  );
}

function ranksOf(data: Frame<SeriesHeader> | undefined, ranks: number): Cells {
  const x = data?.columns.get("x") ?? new Float64Array(0);
  const values = new Float64Array(ranks * x.length).fill(Number.NaN);
  const nonfinite = new Uint8Array(values.length);
  for (let rank = 0; rank < ranks; rank++) {
    const mean = data?.columns.get(`mean.${rank}`);
    const bad = data?.columns.get(`nonfinite.${rank}`);
    for (let i = 0; i < x.length; i++) {
      values[rank * x.length + i] = mean?.[i] ?? Number.NaN;
      nonfinite[rank * x.length + i] = bad?.[i] ? 1 : 0;
    }
  }
  const shown = againstOthers(values, x.length);
  return { x, end: endOf(x, data?.header.bucket ?? 1), rows: data ? ranks : 0, values: shown, nonfinite };
}

/** Where the last column ends: as wide as the one before it, since samples may be further apart than buckets. */
function endOf(x: ArrayLike<number>, bucket: number): number {
  const last = x[x.length - 1] ?? 0;
  return last + Math.max(bucket, x.length > 1 ? last - (x[x.length - 2] ?? 0) : 1);
}

/** The distribution of one tensor over steps. */
function Detail({ run, range, live }: Props & { live: number }) {
  const query = place.value.query;
  const kind = query.get("kind") ?? "gradient";
  const tensor = query.get("tensor");
  const width = useSignal(0);
  const body = { run: run.uid, kind, name: tensor ?? "*", x: steps(range), px: buckets(width.value) };
  const key = width.value ? JSON.stringify([body, live]) : null;
  const answer = useAnswer(key, (signal) => frame<HistogramHeader>("histogram", body, signal));
  const data = answer.value.data;
  const picture = useMemo(() => {
    const x = data?.columns.get("x") ?? new Float64Array(0);
    return fractions(data?.columns.get("counts") ?? new Float32Array(0), x, endOf(x, data?.header.bucket ?? 1));
  }, [data]);
  return (
    <figure class="card panel">
      <figcaption>
        Distribution <small>{kind} of {tensor ?? "all tensors"}{tensor ? "" : "; click a layer to choose one"}</small>
        {tensor && (
          <button type="button" class="chip" onClick={() => set({ tensor: undefined })}>
            all tensors ✕
          </button>
        )}
        <Legend limits={[-6, 0]} kind="sequential" unit="log₁₀ of the share" />
      </figcaption>
      {answer.value.error && <div class="tone-crit note">{answer.value.error.message}</div>}
      <HeatChart
        cells={picture.cells}
        kind="sequential"
        limits={[-6, 0]}
        labels={bucketLabels(picture.buckets)}
        range={range}
        all={whole(run.last_step)}
        cursor={cursor}
        syncKey={run.uid}
        height={240}
        title={`histogram by step of ${tensor ?? "all tensors"}`}
        onWidth={(pixels) => {
          width.value = pixels;
        }}
      />
    </figure>
  );
}

/** As many buckets as pixels, in hundreds: a window that is dragged a little wider asks for nothing new. */
function buckets(width: number): number {
  return Math.max(100, Math.floor((width - GUTTER - RIGHT) / 100) * 100);
}

function Choice({ label, value, options, onChange }: { label: string; value: string; options: (readonly [string, string])[]; onChange: (value: string) => void }) {
  return (
    <select aria-label={label} value={value} onChange={(event) => onChange(event.currentTarget.value)}>
      {options.map(([name, text]) => (
        <option key={name} value={name}>
          {text}
        </option>
      ))}
    </select>
  );
}

function Legend({ limits: [low, high], kind, unit }: { limits: [number, number]; kind: "sequential" | "diverging"; unit: string }) {
  return (
    <span class="legend">
      {number(low)}
      <i class={`ramp ${kind}`} />
      {number(high)} <small>{unit}</small>
      <i class="swatch" style={{ background: "var(--nonfinite)" }} /> <small>not finite</small>
    </span>
  );
}

function Tip({ pointed, cells, name }: { pointed: Pointed | null; cells: Cells; name: (row: number) => string }) {
  if (pointed === null) return null;
  const { row, column, x, y } = pointed;
  const i = row * cells.x.length + column;
  const value = cells.values[i];
  return (
    <div class="tip" style={{ left: `${x + 14}px`, top: `${y + 14}px` }}>
      <strong>{name(row)}</strong>
      <div>
        step {number(cells.x[column] ?? null)} · {cells.nonfinite?.[i] ? "not finite" : number(value === undefined || Number.isNaN(value) ? null : value)}
      </div>
    </div>
  );
}
