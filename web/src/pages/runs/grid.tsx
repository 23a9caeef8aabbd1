/** The rows: only those, and of those only the columns, that are in sight. */

import type { ComponentChildren } from "preact";
import { useSignal } from "@preact/signals";
import { useMemo } from "preact/hooks";
import { colour, slots } from "../../charts/colours";
import type { State } from "../../model";
import { go, href, place, set } from "../../router";
import { StateMark } from "../../ui/marks";
import { useKeys } from "../../ui/shell";
import { type Sight, Windowed } from "../../ui/windowed";
import { aggregate, type Columns, grouped, shown, titleOf } from "./table";

const ROW = 28;
const NAME = 260;
const WIDTHS: Record<string, number> = { state: 104, created: 104, duration_s: 104, world_size: 68, last_step: 84 };
/** Columns of words, which begin at the left. */
const WORDS = new Set(["state", "group", "job_type", "notes"]);
/** Of the others, by their names. */
const [NARROW, WIDE, LETTER, AIR] = [96, 240, 7, 32];

interface Props {
  project: string;
  columns: Columns;
  names: string[];
  sort: string;
  group: string | null;
  ticked: string[];
  onTick: (uids: string[]) => void;
}

type Line = { run: number } | { group: string; members: number[]; open: boolean };

export function Grid({ project, columns, names, sort, group, ticked, onTick }: Props) {
  const uids = (columns["uid"] ?? []) as string[];
  const closed = useSignal<ReadonlySet<string>>(new Set());
  const at = useSignal(-1);
  const shades = useMemo(() => slots(uids.slice(0, 200)), [uids]);
  const lines = useMemo(() => linesOf(columns, uids.length, group, closed.value), [columns, group, closed.value]);
  const laid = useMemo(() => layout(names), [names]);
  const toggle = (uid: string) => onTick(ticked.includes(uid) ? ticked.filter((one) => one !== uid) : [...ticked, uid]);
  const current = () => {
    const line = lines[at.value];
    return line && "run" in line ? uids[line.run] : undefined;
  };
  const move = (by: number) => { at.value = Math.max(0, Math.min(lines.length - 1, at.value + by)); };
  useKeys({
    c: () => ticked.length && go(["p", project, "compare"], { runs: ticked.join(",") }),
    j: () => move(1),
    k: () => move(-1),
    x: () => { const uid = current(); if (uid) toggle(uid); },
    Enter: () => { const uid = current(); if (uid) go(["p", project, "r", uid]); },
  });
  const cells = (sight: Sight, cell: (name: string) => ComponentChildren) => inSight(laid, sight).map(([name, left, width]) => (
    <span role="cell" key={name} class={WORDS.has(name) ? "" : "num"} style={{ left: `${left}px`, width: `${width}px` }}>
      {cell(name)}
    </span>
  ));
  const one = (i: number, number: number, sight: Sight) => {
    const uid = uids[i] ?? "";
    const name = String(columns["name"]?.[i]);
    return (
      <div class={number === at.value ? "grid-row at" : "grid-row"} role="row" aria-rowindex={number + 2} key={uid} style={{ width: `${laid.total}px` }}>
        <span role="rowheader" class="name" title={name}>
          <input type="checkbox" checked={ticked.includes(uid)} aria-label={`choose ${name}`} onChange={() => toggle(uid)} />
          <i class="swatch" style={{ background: colour(shades.get(uid) ?? 0) }} />
          <a href={href(["p", project, "r", uid])}>{name}</a>
          {((columns["tags"]?.[i] ?? []) as string[]).map((tag) => (
            <span class="chip" key={tag}>{tag}</span>
          ))}
        </span>
        {cells(sight, (column) => {
          const value = columns[column]?.[i];
          return column === "state" ? <StateMark state={value as State} /> : <span title={String(value ?? "")}>{shown(column, value)}</span>;
        })}
      </div>
    );
  };
  const row = (number: number, sight: Sight) => {
    const line = lines[number];
    if (!line) return null;
    if ("run" in line) return one(line.run, number, sight);
    const fold = () => {
      const next = new Set(closed.value);
      if (line.open) next.add(line.group);
      else next.delete(line.group);
      closed.value = next;
    };
    return (
      <div class="grid-row grouped" role="row" key={`group ${line.group}`} style={{ width: `${laid.total}px` }}>
        <span role="rowheader" class="name">
          <button type="button" class="fold" aria-expanded={line.open} onClick={fold}>
            <span aria-hidden="true">{line.open ? "▾" : "▸"}</span> {line.group} <small class="quiet">{line.members.length}</small>
          </button>
        </span>
        {cells(sight, (column) => (column === "created" || column === "state" ? "" : aggregate(columns[column] ?? [], line.members)))}
      </div>
    );
  };
  const head = (sight: Sight) => (
    <div class="grid-row head" role="row" style={{ width: `${laid.total}px` }}>
      <Head name="name" sort={sort} />
      {inSight(laid, sight).map(([name, left, width]) => (
        <Head key={name} name={name} sort={sort} style={{ left: `${left}px`, width: `${width}px` }} />
      ))}
    </div>
  );
  return <Windowed as="table" class="card runs" count={lines.length} rowHeight={ROW} label={`runs of ${project}`} head={head} row={row} shown={at.value} />;
}

function linesOf(columns: Columns, count: number, group: string | null, closed: ReadonlySet<string>): Line[] {
  if (group === null) return Array.from({ length: count }, (_, run) => ({ run }));
  return grouped(columns[group] ?? [], count).flatMap(({ key, members }): Line[] => {
    const open = !closed.has(key);
    return [{ group: key, members, open }, ...(open ? members.map((run) => ({ run })) : [])];
  });
}

interface Laid {
  places: [string, number, number][];
  total: number;
}

function layout(names: readonly string[]): Laid {
  let left = NAME;
  const places = names.map((name): [string, number, number] => {
    const width = WIDTHS[name] ?? Math.max(NARROW, Math.min(WIDE, name.length * LETTER + AIR));
    left += width;
    return [name, left - width, width];
  });
  return { places, total: left };
}

function inSight({ places }: Laid, { left, width }: Sight): [string, number, number][] {
  return places.filter(([, from, size]) => from + size >= left && from <= left + width);
}

function Head({ name, sort, style }: { name: string; sort: string; style?: Record<string, string> }) {
  const way = sort === name ? "ascending" : sort === `-${name}` ? "descending" : "none";
  const text = name === "name" ? "Run" : titleOf(name);
  return (
    <span role="columnheader" aria-sort={way} class={!style ? "name" : WORDS.has(name) ? "" : "num"} style={style}>
      <button type="button" title={name} onClick={() => set({ sort: way === "descending" ? name : `-${name}` })}>
        <small>{/^(config|summary)\./.exec(name)?.[0]}</small>
        {text}
        {way === "ascending" ? " ↑" : way === "descending" ? " ↓" : ""}
      </button>
    </span>
  );
}

/** The tick boxes as the address has them. */
export function useTicked(): [string[], (uids: string[]) => void] {
  const ticked = (place.value.query.get("ticked") ?? "").split(",").filter(Boolean);
  return [ticked, (uids) => set({ ticked: uids.join(",") || undefined })];
}
