/** What the panels of the Stability view share. */

import type { Signal } from "@preact/signals";
import { GUTTER, type Range, RIGHT } from "../../charts/axes";
import type { Cells } from "../../charts/heat";
import { type Scale, valueOf } from "../../charts/limits";
import { number } from "../../format";
import type { Finding, RunAnswer } from "../../model";
import { useQuery } from "../../query";
import { Menu } from "../../ui/menu";
import { useReportActions } from "../reports/adding";
import { stabilityPanel } from "../reports/panel";

export interface Panel {
  run: Pick<RunAnswer, "uid" | "last_step" | "world_size">;
  range: Signal<Range>;
  /** Changes when there may be something new. */
  live: number;
  findings: Finding[];
}

export interface Pointed {
  row: number;
  column: number;
  x: number;
  y: number;
}

/** Kinds of tensors that are watched. */
export const KINDS = ["gradient", "parameter", "update", "activation", "optimizer"];
export const NOTHING = new Float64Array(0);
/** Height of a row of a heatmap, in pixels, unless there are too many. */
export const ROW = 13;

/** Where the last column ends: as wide as the one before it, since samples may be further apart than buckets. */
export function endOf(x: ArrayLike<number>, bucket: number): number {
  const last = x[x.length - 1] ?? 0;
  return last + Math.max(bucket, x.length > 1 ? last - (x[x.length - 2] ?? 0) : 1);
}

/** As many buckets as pixels, in hundreds: a window that is dragged a little wider asks for nothing new. */
export function buckets(width: number): number {
  return Math.max(100, Math.floor((width - GUTTER - RIGHT) / 100) * 100);
}

/** What is shown, to be chosen; where the panel is pinned, in words. */
export function Choice({ label, value, options, onChange }: { label: string; value: string; options: (readonly [string, string])[]; onChange: (value: string) => void }) {
  if (useQuery().pinned) return value ? <small>{options.find(([name]) => name === value)?.[1] ?? value}</small> : null;
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

/** What can be done with a panel of this view. */
export function Actions({ show, run, range, of }: { show: "layers" | "ranks" | "distribution"; run: Panel["run"]; range: Signal<Range>; of?: string | undefined }) {
  const { query } = useQuery();
  const shown = new URLSearchParams(query);
  if (of) shown.set("of", of);
  const actions = useReportActions(() => stabilityPanel(show, run.uid, shown, range.value));
  return actions.length > 0 && <Menu label={`what can be done with the ${show}`} actions={actions} />;
}

export function Legend({ limits, kind, scale, missing = false }: { limits: [number, number]; kind: "sequential" | "diverging"; scale: Scale; missing?: boolean }) {
  const [low, high] = limits.map((limit) => number(Number(valueOf(scale, limit).toPrecision(2))));
  return (
    <span class="legend">
      {low}
      <i class={`ramp ${kind}`} />
      {high} <small>{scale.unit}</small>
      <i class="swatch" style={{ background: "var(--nonfinite)" }} /> <small>not finite</small>
      {missing && <i class="swatch" style={{ background: "var(--mask)" }} />} {missing && <small>not there</small>}
    </span>
  );
}

export function Tip({ pointed, cells, name, scale }: { pointed: Pointed | null; cells: Cells; name: (row: number) => string; scale: Scale }) {
  if (pointed === null) return null;
  const { row, column, x, y } = pointed;
  const i = row * cells.x.length + column;
  const value = cells.values[i] ?? Number.NaN;
  const there = Number.isNaN(value) ? "–" : `${number(valueOf(scale, value))} ${scale.unit}`;
  return (
    <div class="tip" style={{ left: `${x + 14}px`, top: `${y + 14}px` }}>
      <strong>{name(row)}</strong>
      <div>
        step {number(cells.x[column] ?? null)} · {cells.nonfinite?.[i] ? "not finite" : there}
      </div>
    </div>
  );
}
