/** The runs of a project: filtered by an expression, sorted by any column, compared by what differs. */

import { useSignal } from "@preact/signals";
import { useEffect, useMemo, useRef } from "preact/hooks";
import { post, useAnswer } from "../api";
import { colour, slots } from "../charts/colours";
import { ago, duration, number } from "../format";
import type { RunsAnswer, State } from "../model";
import { go, href, place, set } from "../router";
import { news } from "../state";
import { Answered, Empty } from "../ui/notices";
import { StateMark } from "../ui/marks";
import { useKeys } from "../ui/shell";
import { Windowed } from "../ui/windowed";

const FIXED = ["uid", "name", "state", "created", "duration_s", "world_size", "tags", "last_step"];
const WIDTH = 96;
const ROW = 28;
const MOST = 1000;

export function Runs({ project }: { project: string }) {
  const filter = place.value.query.get("filter") ?? "";
  const sort = place.value.query.get("sort") ?? "-created";
  const columns = place.value.query.get("columns")?.split(",");
  const key = JSON.stringify([project, filter, sort, columns, news.value]);
  const answer = useAnswer(key, (signal) =>
    post<RunsAnswer>(
      `projects/${encodeURIComponent(project)}/runs/query`,
      { filter, sort: [sort], columns: [...FIXED, ...(columns ?? ["group", "config", "summary"])], limit: MOST },
      signal,
    ),
  );
  return (
    <div class="page wide">
      <h1 class="row">
        {project} <small>{answer.value.data ? `${answer.value.data.n} runs` : ""}</small>
      </h1>
      <FilterBar filter={filter} error={answer.value.error} />
      <Answered answer={answer.value.error ? { ...answer.value, error: undefined } : answer.value}>
        {(data) =>
          data.n === 0 ? (
            <Empty title={filter ? "No run fits this filter" : "No run in this project"}>
              {filter && <button type="button" onClick={() => set({ filter: undefined })}>Show all runs</button>}
            </Empty>
          ) : (
            <Grid project={project} data={data} sort={sort} chosen={columns} />
          )
        }
      </Answered>
    </div>
  );
}

function FilterBar({ filter, error }: { filter: string; error: Error | undefined }) {
  const field = useRef<HTMLInputElement>(null);
  const typed = useSignal(filter);
  useEffect(() => {
    typed.value = filter;
  }, [filter]);
  useKeys({ "/": () => field.current?.focus() });
  const apply = () => set({ filter: typed.value || undefined }, { push: true });
  return (
    <div class="filter">
      <input
        ref={field}
        type="search"
        value={typed.value}
        placeholder="Filter: config.lr < 3e-4 and state = running"
        aria-label="filter"
        aria-invalid={error !== undefined}
        spellcheck={false}
        onInput={(event) => { typed.value = event.currentTarget.value; }}
        onKeyDown={(event) => { if (event.key === "Enter") apply(); }}
        onBlur={apply}
      />
      {error && <span class="tone-crit" role="alert">{error.message}</span>}
    </div>
  );
}

function Grid({ project, data, sort, chosen }: { project: string; data: RunsAnswer; sort: string; chosen: string[] | undefined }) {
  const columns = useMemo(() => spread(data.columns), [data]);
  const uids = (columns["uid"] ?? []) as string[];
  const others = chosen ?? Object.keys(columns).filter((name) => !FIXED.includes(name) && differs(columns[name] ?? [], name));
  const shades = slots(uids.slice(0, 200));
  const cell = (name: string, i: number) => columns[name]?.[i];
  const template = `minmax(220px, 1.6fr) 110px 100px 100px 60px 80px ${others.map(() => `minmax(${WIDTH}px, 1fr)`).join(" ")}`;
  const style = { gridTemplateColumns: template, minWidth: `${670 + WIDTH * others.length}px` };
  const ticked = (place.value.query.get("ticked") ?? "").split(",").filter(Boolean);
  const tick = (uid: string) => {
    const next = ticked.includes(uid) ? ticked.filter((one) => one !== uid) : [...ticked, uid];
    set({ ticked: next.join(",") || undefined });
  };
  useKeys({ c: () => ticked.length && go(["p", project, "compare"], { runs: ticked.join(",") }) });
  const head = (
    <div class="grid-row head" role="row" style={style}>
      <Head name="name" text="Run" sort={sort} />
      <Head name="state" text="State" sort={sort} />
      <Head name="created" text="Began" sort={sort} numeric />
      <Head name="duration_s" text="Duration" sort={sort} numeric />
      <Head name="world_size" text="Ranks" sort={sort} numeric />
      <Head name="last_step" text="Step" sort={sort} numeric />
      {others.map((name) => (
        <Head key={name} name={name} text={name} sort={sort} numeric />
      ))}
    </div>
  );
  return (
    <>
    <div class="bar">
      {ticked.length > 0 ? (
        <>
          <a class="button" href={href(["p", project, "compare"], { runs: ticked.join(",") })}>
            Compare {ticked.length} {ticked.length === 1 ? "run" : "runs"}
          </a>
          <a class="button" href={href(["p", project], { runs: ticked.join(",") })}>
            Show in the workspace
          </a>
          <button type="button" class="chip" onClick={() => set({ ticked: undefined })}>
            none ✕
          </button>
        </>
      ) : (
        <span class="quiet">The box before a name chooses a run to compare.</span>
      )}
    </div>
    <Windowed
      as="table"
      class="card runs"
      count={uids.length}
      rowHeight={ROW}
      label={`runs of ${project}`}
      head={head}
      row={(i) => {
        const uid = uids[i] ?? "";
        return (
          <div class="grid-row" role="row" key={uid} style={style}>
            <span role="cell" class="name">
              <input type="checkbox" checked={ticked.includes(uid)} aria-label={`choose ${String(cell("name", i))}`} onChange={() => tick(uid)} />
              <i class="swatch" style={{ background: colour(shades.get(uid) ?? 0) }} />
              <a href={href(["p", project, "r", uid])}>{String(cell("name", i))}</a>
              {((cell("tags", i) ?? []) as string[]).map((tag) => (
                <span class="chip">{tag}</span>
              ))}
            </span>
            <span role="cell">
              <StateMark state={cell("state", i) as State} />
            </span>
            <span role="cell" class="num quiet">{ago(cell("created", i) as string)}</span>
            <span role="cell" class="num quiet">{duration(cell("duration_s", i) as number | null)}</span>
            <span role="cell" class="num quiet">{number(cell("world_size", i) as number | null)}</span>
            <span role="cell" class="num quiet">{number(cell("last_step", i) as number | null)}</span>
            {others.map((name) => (
              <span role="cell" key={name} class="num" title={String(cell(name, i) ?? "")}>
                {shown(cell(name, i))}
              </span>
            ))}
          </div>
        );
      }}
    />
    </>
  );
}

function Head({ name, text, sort, numeric = false }: { name: string; text: string; sort: string; numeric?: boolean }) {
  const way = sort === name ? "ascending" : sort === `-${name}` ? "descending" : "none";
  const next = way === "descending" ? name : `-${name}`;
  return (
    <span role="columnheader" aria-sort={way} class={numeric ? "num" : ""}>
      <button type="button" title={text} onClick={() => set({ sort: next })}>
        <small>{/^(config|summary)\./.exec(text)?.[0]}</small>
        {text.replace(/^(config|summary)\./, "")}
        {way === "ascending" ? " ↑" : way === "descending" ? " ↓" : ""}
      </button>
    </span>
  );
}

/** A column for each key of the configurations and summaries. */
export function spread(columns: Record<string, unknown[]>): Record<string, unknown[]> {
  const { config = [], summary = [], ...rest } = columns;
  const found: Record<string, unknown[]> = { ...rest };
  for (const [part, rows] of [["config", config], ["summary", summary]] as const) {
    rows.forEach((row, i) => {
      for (const [key, value] of Object.entries((row ?? {}) as Record<string, unknown>)) {
        const name = `${part}.${key}`;
        found[name] ??= new Array<unknown>(rows.length).fill(null);
        found[name][i] = value;
      }
    });
  }
  return found;
}

/** Whether a column tells runs apart: metrics always do, of the configuration what is not the same everywhere. */
function differs(values: unknown[], name: string): boolean {
  if (!name.startsWith("config.")) return !/^summary\.(system|watch)\//.test(name) && values.some((value) => value !== null);
  const first = JSON.stringify(values[0] ?? null);
  return values.some((value) => JSON.stringify(value ?? null) !== first);
}

function shown(value: unknown): string {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") return number(value);
  return typeof value === "string" ? value : JSON.stringify(value);
}
