/** The layers of two runs over steps: one above the other, and how far apart they are. */

import { type Signal, useSignal } from "@preact/signals";
import { useMemo } from "preact/hooks";
import { frame, useAnswer } from "../api";
import type { Range } from "../charts/axes";
import { type Cells, HeatChart } from "../charts/heat";
import { aligned, type Grid, logarithm, pooled, ratio, type Row, rowsWithin } from "../charts/layers";
import { robust } from "../charts/limits";
import type { Frame } from "../frame";
import { number } from "../format";
import type { HeatmapHeader, RunAnswer } from "../model";
import { place, set } from "../router";
import { cursor } from "../state";
import { steps } from "./look";
import { Distribution, FormatChoice } from "./stability/detail";
import { buckets, Choice, KINDS, Legend, type Pointed } from "./stability/parts";
import { SHARE } from "../charts/limits";

const SHOWN = {
  norm: { text: "norm", pool: "norm" },
  absmax: { text: "largest element, mean over tensors", pool: "mean" },
} as const;
type Stat = keyof typeof SHOWN;
const MOST_ROWS = 20;
const ROW = 12;
/** Octaves at the two ends of the colours of the difference. */
const APART: [number, number] = [-3, 3];

interface Props {
  runs: RunAnswer[];
  range: Signal<Range>;
  all: [number, number];
  live: number;
  syncKey: string;
}

export function Split({ runs, range, all, live, syncKey }: Props) {
  const query = place.value.query;
  const sides = sidesOf(runs, query);
  const kind = query.get("kind") ?? "gradient";
  const stat: Stat = query.get("stat") === "absmax" ? "absmax" : "norm";
  const width = useSignal(0);
  const pointed = useSignal<Pointed | null>(null);
  const bodies = sides.map((run) => ({ run: run.uid, kind, stat, x: steps(range), px: buckets(width.value) }));
  const key = width.value && sides.length === 2 ? JSON.stringify([bodies, live]) : null;
  const answer = useAnswer(key, (signal) => Promise.all(bodies.map((body) => frame<HeatmapHeader>("heatmap", body, signal))));
  const { data, error } = answer.value;
  const maps = useMemo(() => mapsOf(data ?? [], stat), [data, stat]);
  const [first, second] = sides;
  if (!first || !second) return null;
  const tensor = query.get("tensor");
  const chosen = maps.rows.findIndex((row) => patternOf(row, maps.names) === tensor);
  const shared = {
    labels: maps.rows.map((row, i) => ({ row: i, text: row.path })),
    range,
    all,
    cursor,
    syncKey,
    height: Math.max(48, maps.rows.length * ROW) + 10,
    selected: chosen < 0 ? null : chosen,
    onWidth: (pixels: number) => { width.value = pixels; },
    onPoint: (row: number | null, column: number | null, at: { x: number; y: number }) => {
      pointed.value = row === null || column === null ? null : { row, column, ...at };
    },
    onClick: (row: number) => {
      const found = maps.rows[row];
      if (found) set({ tensor: patternOf(found, maps.names) });
    },
  };
  const words = `${kind}, ${SHOWN[stat].text}`;
  const lacking = data ? sides.filter((_, i) => data[i]?.header.rows.length === 0).map((run) => run.name) : [];
  return (
    <section class="card stack spaced" aria-label="layers of two runs">
      <h2 class="bar">
        Layers
        <Side label="first run" at={first} runs={runs} name="a" />
        <span class="quiet">against</span>
        <Side label="second run" at={second} runs={runs} name="b" />
        <Choice label="kind" value={kind} options={KINDS.map((one) => [one, one])} onChange={(value) => set({ kind: value, tensor: undefined })} />
        <Choice label="what is shown" value={stat} options={Object.entries(SHOWN).map(([name, one]) => [name, one.text])} onChange={(value) => set({ stat: value })} />
      </h2>
      {error && <div class="tone-crit note">{error.message}</div>}
      {lacking.length > 0 && <p class="note quiet">{lacking.join(" and ")} recorded no {kind}: run.watch(model) does.</p>}
      {sides.map((run, i) => (
        <figure class="panel" key={`${i}${run.uid}`}>
          <figcaption>
            <span class="of">{run.name}</span> <small>{i === 0 ? "first" : "second"}</small>
            <Legend limits={maps.limits} kind="sequential" scale={{ base: 10, unit: "" }} />
          </figcaption>
          <HeatChart {...shared} cells={maps.each[i] ?? NO_CELLS} kind="sequential" limits={maps.limits} bare title={`layers by step of ${run.name}, ${words}`} />
        </figure>
      ))}
      <figure class="panel">
        <figcaption>
          Second against first <small>aligned by step, {maps.width === 1 ? "each" : `columns of ${number(maps.width)}`}</small>
          <Legend limits={APART} kind="diverging" scale={{ base: 2, unit: "× the first" }} missing />
        </figcaption>
        <HeatChart {...shared} cells={maps.apart} kind="diverging" limits={APART} title={`difference of layers by step, ${words}`} />
      </figure>
      <Tip pointed={pointed.value} maps={maps} />
      {tensor && <Distributions sides={sides} range={range} all={all} live={live} syncKey={syncKey} kind={kind} tensor={tensor} />}
    </section>
  );
}

function sidesOf(runs: readonly RunAnswer[], query: URLSearchParams): RunAnswer[] {
  const find = (name: string) => runs.find((run) => run.uid === query.get(name));
  const first = find("a") ?? runs[0];
  const second = find("b") ?? runs.find((run) => run !== first);
  return first && second ? [first, second] : [];
}

function Side({ label, at, runs, name }: { label: string; at: RunAnswer; runs: RunAnswer[]; name: string }) {
  return <Choice label={label} value={at.uid} options={runs.map((run) => [run.uid, run.name])} onChange={(uid) => set({ [name]: uid })} />;
}

function Distributions({ sides, tensor, ...rest }: { sides: RunAnswer[]; tensor: string; range: Signal<Range>; all: [number, number]; live: number; syncKey: string; kind: string }) {
  return (
    <>
      {sides.map((run, i) => (
        <figure class="panel" key={`${i}${run.uid}`}>
          <figcaption>
            Distribution <small>{rest.kind} of {tensor} in {run.name}</small>
            {i === 0 && (
              <button type="button" class="chip" onClick={() => set({ tensor: undefined })}>
                close ✕
              </button>
            )}
            {i === 0 && <FormatChoice />}
            <Legend limits={[-6, 0]} kind="sequential" scale={SHARE} />
          </figcaption>
          <Distribution run={run} tensor={tensor} height={160} {...rest} />
        </figure>
      ))}
    </>
  );
}

/** What the server finds the tensors of a row by. */
function patternOf({ path }: Row, names: readonly string[]): string {
  return names.includes(path) ? path : `${path}.*`;
}

interface Maps {
  names: readonly string[];
  rows: Row[];
  width: number;
  limits: [number, number];
  /** The values themselves, a map a run. */
  values: Float64Array[];
  each: Cells[];
  apart: Cells;
}

const NO_CELLS: Cells = { x: [], end: 0, rows: 0, values: [] };
const NO_MAPS: Maps = { names: [], rows: [], width: 1, limits: [0, 1], values: [], each: [], apart: NO_CELLS };

function mapsOf(frames: readonly Frame<HeatmapHeader>[], stat: Stat): Maps {
  if (frames.length < 2) return NO_MAPS;
  const { x, width, tables } = aligned(frames.map(gridOf));
  const names = tables[0]?.names ?? [];
  const rows = rowsWithin(names, MOST_ROWS);
  const end = (x[x.length - 1] ?? 0) + width;
  const found = tables.map((table) => pooled(table, rows, SHOWN[stat].pool));
  const logs = found.map(({ values }) => logarithm(values));
  const [first, second] = found;
  if (!first || !second) return NO_MAPS;
  const values = ratio(second.values, first.values);
  const missing = Uint8Array.from(values, (_, i) => Number(Number.isNaN(first.values[i]) !== Number.isNaN(second.values[i])));
  const nonfinite = first.nonfinite.map((bad, i) => bad | (second.nonfinite[i] ?? 0));
  return {
    names,
    rows,
    width,
    limits: robust(logs.flatMap((log) => Array.from(log))),
    values: found.map((one) => one.values),
    each: found.map((one, i) => ({ x, end, rows: rows.length, values: logs[i] ?? [], nonfinite: one.nonfinite })),
    apart: { x, end, rows: rows.length, values, nonfinite, missing },
  };
}

function gridOf({ header, columns }: Frame<HeatmapHeader>): Grid {
  const x = columns.get("x") ?? [];
  return { names: header.rows, x, bucket: header.bucket, columns: x.length, cells: columns.get("cells") ?? [], flags: columns.get("flags") ?? [] };
}

function Tip({ pointed, maps }: { pointed: Pointed | null; maps: Maps }) {
  if (pointed === null) return null;
  const { row, column, x, y } = pointed;
  const at = row * maps.apart.x.length + column;
  const value = (i: number) => maps.values[i]?.[at] ?? Number.NaN;
  const text = (i: number) => (maps.each[i]?.nonfinite?.[at] ? "not finite" : Number.isNaN(value(i)) ? "–" : number(value(i)));
  const times = value(1) / value(0);
  return (
    <div class="tip" style={{ left: `${x + 14}px`, top: `${y + 14}px` }}>
      <strong>{maps.rows[row]?.path}</strong>
      <div>
        step {number(maps.apart.x[column] ?? null)} · {text(0)} and {text(1)}
        {Number.isFinite(times) && ` · ${number(times)} ×`}
      </div>
    </div>
  );
}
