/** Layers over steps, in the order of the model: a row a part of it, which opens to the parts below. */

import { useSignal } from "@preact/signals";
import { useMemo } from "preact/hooks";
import { frame, useAnswer } from "../../api";
import { answers } from "../../embedded";
import { whole } from "../../charts/axes";
import { type Cells, HeatChart } from "../../charts/heat";
import { againstMedian, labelOf, logarithm, opened, type Pool, pooled, rowsAt, rowsWithin, type TreeRow } from "../../charts/layers";
import { robust } from "../../charts/limits";
import type { Frame } from "../../frame";
import type { HeatmapHeader } from "../../model";
import { useQuery } from "../../query";
import { cursor } from "../../state";
import { Empty } from "../../ui/notices";
import { steps } from "../look";
import { Actions, buckets, Choice, endOf, KINDS, Legend, NOTHING, type Panel, type Pointed, ROW, Tip } from "./parts";

const MODES = {
  median: { text: "norm against its own median", stat: "norm", pool: "norm", scale: { base: 2, unit: "× its median" } },
  norm: { text: "norm", stat: "norm", pool: "norm", scale: { base: 10, unit: "" } },
  absmax: { text: "largest element, mean over tensors", stat: "absmax", pool: "mean", scale: { base: 10, unit: "" } },
  zeros: { text: "share of zeros, mean over tensors", stat: "zeros", pool: "mean", scale: { unit: "" } },
} as const;
type Mode = keyof typeof MODES;
/** Rows, unless a depth is chosen: a screen has to show more than layers. */
const MOST_ROWS = 24;
const MOST_HEIGHT = 420;

interface LayerRow extends TreeRow {
  /** What the server finds its tensors by. */
  pattern: string;
  names: string[];
}

export function Layers({ run, range, live, findings }: Panel) {
  const { query, set } = useQuery();
  const kind = query.get("kind") ?? "gradient";
  const mode = (query.get("mode") ?? "median") as Mode;
  const { text, stat, pool, scale } = MODES[mode] ?? MODES.median;
  const width = useSignal(0);
  const pointed = useSignal<Pointed | null>(null);
  const body = { run: run.uid, kind, stat, x: steps(range), px: buckets(width.value) };
  const key = width.value ? JSON.stringify([body, live]) : null;
  const answer = useAnswer(key, (signal) => frame<HeatmapHeader>("heatmap", body, signal));
  const data = answer.value.data;
  const depth = query.get("depth") ?? "";
  const open = query.get("open") ?? "";
  const { cells, rows } = useMemo(() => layersOf(data, mode, pool, depth, open), [data, mode, pool, depth, open]);
  const diverging = mode === "median";
  const shown = useMemo<[number, number]>(() => (diverging ? [-3, 3] : mode === "zeros" ? [0, 1] : robust(cells.values)), [cells, mode]);
  const height = Math.max(40, Math.min(MOST_HEIGHT, rows.length * ROW)) + 10;
  const tensor = query.get("tensor");
  const chosen = tensor === null ? -1 : rows.findLastIndex((row) => row.pattern === tensor || row.names.includes(tensor));
  const choose = (pattern: string | undefined) => {
    if (answers("histogram", { run: run.uid, kind, name: pattern, x: body.x })) set({ tensor: pattern });
  };
  const sick = new Set(findings.filter((finding) => finding.severity !== "info").flatMap((finding) => finding.names));
  return (
    <figure class="panel">
      <figcaption>
        Layers
        <Choice label="kind" value={kind} options={KINDS.filter((name) => answers("heatmap", { ...body, kind: name })).map((name) => [name, name])} onChange={(value) => set({ kind: value, tensor: undefined })} />
        <Choice label="what is shown" value={mode} options={Object.entries(MODES).filter(([, one]) => answers("heatmap", { ...body, stat: one.stat })).map(([name, one]) => [name, one.text])} onChange={(value) => set({ mode: value })} />
        <Choice
          label="depth"
          value={depth}
          options={[["", "as fits"], ["1", "1 level"], ["2", "2 levels"], ["3", "3 levels"], ["99", "every tensor"]]}
          onChange={(value) => set({ depth: value || undefined, open: undefined })}
        />
        <Legend limits={shown} kind={diverging ? "diverging" : "sequential"} scale={scale} />
        <Actions show="layers" run={run} range={range} />
      </figcaption>
      {answer.value.error && <div class="tone-crit note">{answer.value.error.message}</div>}
      {data && rows.length === 0 ? (
        <Empty title={`No ${kind} was recorded`}>
          <p>
            <code>run.watch(model, log="all")</code> records gradients and parameters; <code>log=("updates", "activations", "optimizer")</code> the others.
          </p>
        </Empty>
      ) : (
        <div class="grown">
          <HeatChart
            cells={cells}
            kind={diverging ? "diverging" : "sequential"}
            limits={shown}
            labels={[]}
            range={range}
            all={whole(run.last_step)}
            cursor={cursor}
            syncKey={run.uid}
            height={height}
            bare
            selected={chosen < 0 ? null : chosen}
            title={`layers by step, ${kind}, ${text}`}
            onWidth={(pixels) => { width.value = pixels; }}
            onPoint={(row, column, at) => { pointed.value = row === null || column === null ? null : { row, column, ...at }; }}
            onClick={(row) => choose(rows[row]?.pattern)}
          />
          <Tree rows={rows} height={height - 10} chosen={chosen} sick={sick} onChoose={choose} />
        </div>
      )}
      <Tip pointed={pointed.value} cells={cells} name={(row) => rows[row]?.path ?? ""} scale={scale} />
    </figure>
  );
}

/** The names beside the rows: those with parts open and close, the others choose their tensor. */
function Tree({ rows, height, chosen, sick, onChoose }: { rows: LayerRow[]; height: number; chosen: number; sick: Set<string>; onChoose: (pattern: string) => void }) {
  const { query, set } = useQuery();
  const each = height / Math.max(1, rows.length);
  const every = Math.max(1, Math.ceil(11 / each));
  const open = (query.get("open") ?? "").split(",").filter(Boolean);
  const press = (row: LayerRow) => {
    if (row.open === undefined) return onChoose(row.pattern);
    const next = row.open ? open.filter((path) => path !== row.path) : [...open, row.path];
    set({ open: next.join(",") || undefined });
  };
  return (
    <div class="tree" role="group" aria-label="parts of the model">
      {rows.map((row, i) =>
        i % every === 0 || i === chosen ? (
          <button
            type="button"
            key={row.path}
            style={{ top: `${4 + i * each}px`, height: `${Math.max(each, 11)}px`, lineHeight: `${Math.max(each, 11)}px`, paddingLeft: `${4 + row.level * 6}px` }}
            class={i === chosen ? "chosen" : ""}
            title={row.path}
            {...(row.open === undefined ? {} : { "aria-expanded": row.open })}
            onClick={() => press(row)}
          >
            <span aria-hidden="true">{row.open === undefined ? "" : row.open ? "▾ " : "▸ "}</span>
            {labelOf(row, row.names.some((name) => sick.has(name)))}
          </button>
        ) : null,
      )}
    </div>
  );
}

function layersOf(data: Frame<HeatmapHeader> | undefined, mode: Mode, pool: Pool, depth: string, open: string): { rows: LayerRow[]; cells: Cells } {
  const names = data?.header.rows ?? [];
  const x = data?.columns.get("x") ?? NOTHING;
  const columns = x.length;
  const top = depth ? rowsAt(names, Number(depth)) : rowsWithin(names, MOST_ROWS);
  const parts = opened(names, top, new Set(open.split(",")));
  const table = { names, columns, cells: data?.columns.get("cells") ?? [], flags: data?.columns.get("flags") ?? [] };
  const { values, nonfinite } = pooled(table, parts, pool);
  const shown = mode === "median" ? againstMedian(values, columns) : mode === "zeros" ? values : logarithm(values);
  const rows = parts.map((part) => ({
    ...part,
    pattern: names.includes(part.path) ? part.path : `${part.path}.*`,
    names: part.members.map((i) => names[i] ?? ""),
  }));
  return { rows, cells: { x, end: endOf(x, data?.header.bucket ?? 1), rows: rows.length, values: shown, nonfinite } };
}
