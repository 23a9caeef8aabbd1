/** The panels of a report, each drawn by what draws it on its own page. */

import { type ComponentChildren } from "preact";
import { useMemo } from "preact/hooks";
import { post, useAnswer } from "../../api";
import { pinned, type Range, whole } from "../../charts/axes";
import { colour, slots } from "../../charts/colours";
import { inFile } from "../../embedded";
import { number } from "../../format";
import type { PanelRun, RunsAnswer } from "../../model";
import { Pinned } from "../../query";
import { href } from "../../router";
import { news, pointed, theme } from "../../state";
import { Panel } from "../panels";
import { type Columns, spread } from "../runs/table";
import { type Source, sourcesOf } from "../series";
import { Detail } from "../stability/detail";
import { Layers } from "../stability/layers";
import { Ranks } from "../stability/ranks";
import { type Fields, LANGUAGE, parsePanel, queryOf, rangeOf, runsOf } from "./panel";

/** As many runs as fit into a filter. */
const AT_ONCE = 40;

export function block(language: string, code: string): ComponentChildren | undefined {
  return language === LANGUAGE ? <Block code={code} /> : undefined;
}

interface Found extends PanelRun {
  group: string | undefined;
}

function Block({ code }: { code: string }) {
  const fields = useMemo(() => parsePanel(code), [code]);
  const uids = runsOf(fields);
  const by = fields["group"];
  const running = useMemo(() => ({ any: false }), [code]);
  const key = uids.length ? JSON.stringify([uids, by, running.any ? news.value : 0]) : null;
  const answer = useAnswer(key, (signal) => find(uids, by, signal));
  const runs = answer.value.data;
  running.any = !inFile && (runs ?? []).some((run) => run.state === "running");
  if (uids.length === 0) return <Wrong>A panel names its runs by their uids: <code>runs: 0123456789abcdef</code></Wrong>;
  if (answer.value.error) return <Wrong>{answer.value.error.message}</Wrong>;
  if (!runs) return <figure class="card panel pinned waiting" aria-busy="true" />;
  if (runs.length === 0) return <Wrong>{uids.length === 1 ? "The run of this panel is" : "The runs of this panel are"} not there: deleted, or not for you to see</Wrong>;
  return (
    <Pinned.Provider value={queryOf(fields)}>
      <Shown code={code} fields={fields} runs={runs} missing={uids.length - runs.length} live={running.any ? news.value : 0} />
    </Pinned.Provider>
  );
}

function Wrong({ children }: { children: ComponentChildren }) {
  return (
    <figure class="card panel pinned wrong" role="note">
      {children}
    </figure>
  );
}

async function find(uids: string[], by: string | undefined, signal: AbortSignal): Promise<Found[]> {
  const columns = ["uid", "name", "project", "state", "last_step", "world_size", ...(by ? [by] : [])];
  const parts = Array.from({ length: Math.ceil(uids.length / AT_ONCE) }, (_, i) => uids.slice(i * AT_ONCE, (i + 1) * AT_ONCE));
  const asked = parts.map((some) => post<RunsAnswer>("projects/-/runs/query", { filter: `uid in [${some.map((uid) => `"${uid}"`).join(", ")}]`, columns, limit: AT_ONCE }, signal));
  const found = (await Promise.all(asked)).flatMap((part) => rowsOf(spread(part.columns), by));
  return found.sort((a, b) => uids.indexOf(a.uid) - uids.indexOf(b.uid));
}

function rowsOf(columns: Columns, by: string | undefined): Found[] {
  const column = (name: string) => columns[name] ?? [];
  return column("uid").map((uid, i) => {
    const group = by ? column(by)[i] : undefined;
    return {
      uid: String(uid),
      name: String(column("name")[i]),
      project: String(column("project")[i]),
      state: column("state")[i] as Found["state"],
      last_step: (column("last_step")[i] ?? null) as number | null,
      world_size: Number(column("world_size")[i] ?? 1),
      group: group === undefined || group === null ? undefined : typeof group === "string" ? group : JSON.stringify(group),
    };
  });
}

interface ShownProps {
  code: string;
  fields: Fields;
  runs: Found[];
  missing: number;
  live: number;
}

function Shown({ code, fields, runs, missing, live }: ShownProps) {
  const range = useMemo(() => pinned(rangeOf(fields)), [code]);
  const [first] = runs;
  if (!first) return null;
  const shared = { run: first, range, live, findings: [] };
  const drawn: Record<string, () => ComponentChildren> = {
    layers: () => <Layers {...shared} />,
    ranks: () => <Ranks {...shared} />,
    distribution: () => <Detail {...shared} />,
  };
  const own = drawn[fields["show"] ?? ""];
  if (!own && !fields["metric"]) return <Wrong>A panel names what it shows: <code>metric: loss</code>, or <code>show: layers</code>, <code>ranks</code> or <code>distribution</code></Wrong>;
  return (
    <div class="pinned">
      {own ? <div class="card">{own()}</div> : <Curves fields={fields} runs={runs} range={range} live={live} />}
      <Names runs={own ? [first] : runs} fields={fields} missing={missing} coloured={!own} />
    </div>
  );
}

function sources(fields: Fields, runs: Found[]): Source[] {
  const [first] = runs;
  const ranks = fields["ranks"] ?? "mean";
  if (first && runs.length === 1 && ranks !== "mean") return sourcesOf(first, ranks);
  const shades = shadesOf(fields, runs);
  return runs.map((run) => ({
    item: { run: run.uid },
    label: run.name,
    colour: colour(shades.get(fields["group"] ? (run.group ?? "–") : run.uid) ?? 0),
    ...(fields["group"] ? { group: run.group ?? "–" } : {}),
  }));
}

/** Slots of colours: of groups in the order of their names, of runs as everywhere. */
function shadesOf(fields: Fields, runs: readonly Found[]): Map<string, number> {
  if (!fields["group"]) return slots(runs.map((run) => run.uid));
  return new Map([...new Set(runs.map((run) => run.group ?? "–"))].sort().map((group, i) => [group, i]));
}

function Curves({ fields, runs, range, live }: { fields: Fields; runs: Found[]; range: ReturnType<typeof pinned>; live: number }) {
  const last = Math.max(...runs.map((run) => run.last_step ?? 0));
  const lines = useMemo(() => sources(fields, runs), [fields, runs, theme.value]);
  return <Panel shown={{ name: fields["metric"] ?? "", source: "metric" }} sources={lines} range={range} all={whole(last)} live={live} syncKey={`report ${fields["x"] ?? "step"}`} />;
}

/** Which line is which, and of what the panel is. */
function Names({ runs, fields, missing, coloured }: { runs: Found[]; fields: Fields; missing: number; coloured: boolean }) {
  const shades = shadesOf(fields, runs);
  const part: Range = rangeOf(fields);
  const named = coloured && fields["group"] ? [...shades].map(([name, slot]) => ({ name, slot, run: undefined })) : runs.map((run) => ({ name: run.name, slot: shades.get(run.uid) ?? 0, run }));
  return (
    <ul class="names" aria-label="runs of this panel">
      {named.map(({ name, slot, run }) => (
        <li key={run?.uid ?? name} onMouseEnter={() => { pointed.value = run?.uid ?? null; }} onMouseLeave={() => { pointed.value = null; }}>
          {coloured && (runs.length > 1 || !fields["ranks"]) && <i class="swatch" style={{ background: colour(slot) }} />}
          {run && !inFile ? <a href={href(["p", run.project, "r", run.uid])}>{name}</a> : name}
        </li>
      ))}
      {missing > 0 && <li class="quiet">{missing} more {missing === 1 ? "is" : "are"} not there any more</li>}
      {part && <li class="quiet">{words(fields["x"], part)}</li>}
    </ul>
  );
}

function words(axis: string | undefined, [low, high]: [number, number]): string {
  if (axis === "time") return `${new Date(low * 1000).toLocaleString("en-GB")} to ${new Date(high * 1000).toLocaleString("en-GB")}`;
  const of = axis === undefined || axis === "step" ? "steps" : axis === "relative" ? "seconds" : axis.replace(/^metric:/, "");
  return `${of} ${number(low)} to ${number(high)}`;
}
