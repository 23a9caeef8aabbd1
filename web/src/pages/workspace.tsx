/** The runs of a project against each other: a list to choose from, and every metric with a line a run. */

import { useMemo } from "preact/hooks";
import { get, post, useAnswer, useSame } from "../api";
import { whole } from "../charts/axes";
import { colour, slots } from "../charts/colours";
import { number } from "../format";
import type { KeysAnswer, RunsAnswer, State } from "../model";
import { href, place, set } from "../router";
import { news, pointed, theme } from "../state";
import { Answered, Empty } from "../ui/notices";
import { StateMark } from "../ui/marks";
import { Views } from "../ui/views";
import { Windowed } from "../ui/windowed";
import { LookBar } from "./look";
import { Many } from "./many";
import { Panels } from "./panels";
import { type Columns, spread } from "./runs/table";
import type { Source } from "./series";
import { range } from "../zoomed";

/** So many runs are shown until somebody chooses. */
const FIRST = 10;
/** More lines than these in a panel say nothing, and more the server does not take at once. */
const MOST = 1000;
const ROW = 28;

interface Listed {
  uid: string;
  name: string;
  state: State;
  last: number | null;
  group: string | undefined;
}

export function Workspace({ project }: { project: string }) {
  const filter = place.value.query.get("filter") ?? "";
  const by = place.value.query.get("group");
  const path = `projects/${encodeURIComponent(project)}`;
  const columns = ["uid", "name", "state", "last_step", ...(by ? [by] : [])];
  const runs = useAnswer(JSON.stringify([project, filter, by, news.value]), (signal) =>
    post<RunsAnswer>(`${path}/runs/query`, { filter, sort: ["-created"], columns, limit: 2000 }, signal),
  );
  const keys = useAnswer(`keys ${project} ${news.value}`, (signal) => get<KeysAnswer>(`${path}/keys`, signal));
  const listed = useSame(useMemo(() => (runs.value.data ? listedOf(spread(runs.value.data.columns), by) : []), [runs.value.data]));
  const given = place.value.query.get("runs")?.split(",").filter(Boolean);
  const chosen = useMemo(() => given ?? listed.slice(0, by ? MOST : FIRST).map((run) => run.uid), [given?.join(), listed, by]);
  const settings = (keys.value.data?.config ?? []).map(({ key }) => `config.${key}`);
  const metrics = (keys.value.data?.metric ?? []).map(({ key }) => key).filter((name) => !/^(system|_tt)\//.test(name));
  const along = keys.value.data?.along ?? {};
  const many = place.value.query.get("show") === "many";
  const shown = listed.filter((run) => chosen.includes(run.uid));
  const all = whole(Math.max(...shown.map((run) => run.last ?? 0)));
  const body = { project, listed, chosen, by };
  return (
    <div class="workspace">
      <List {...body} filter={filter} error={runs.value.error} pending={runs.value.data?.pending ?? 0} />
      <div>
        <h1 class="unseen">Workspace of {project}</h1>
        <div class="bar">
          <Views project={project} />
          <label>
            Show
            <select value={many ? "many" : "curves"} onChange={(event) => set({ show: event.currentTarget.value === "many" ? "many" : undefined })}>
              <option value="curves">curves</option>
              <option value="many">settings and results</option>
            </select>
          </label>
          {!many && (
            <>
              <label>
                Group by
                <select value={by ?? ""} onChange={(event) => set({ group: event.currentTarget.value || undefined })}>
                  <option value="">nothing</option>
                  <option value="group">group</option>
                  {settings.map((name) => (
                    <option key={name} value={name}>{name.slice(7)}</option>
                  ))}
                </select>
              </label>
              <LookBar range={range} all={all} metrics={metrics} defined={Object.keys(along).length > 0} />
            </>
          )}
        </div>
        {many ? <Many project={project} filter={filter} /> : (
          <Answered answer={keys.value}>
            {() =>
              runs.value.data && listed.length === 0 ? (
                <Empty title={filter ? "No run fits this filter" : "No run in this project"} />
              ) : (
                <Curves {...body} metrics={metrics} along={along} all={all} live={shown.some((run) => run.state === "running") ? news.value : 0} />
              )
            }
          </Answered>
        )}
      </div>
    </div>
  );
}

interface Chosen {
  project: string;
  listed: Listed[];
  chosen: string[];
  by: string | null;
}

function Curves({ project, listed, chosen, by, metrics, along, all, live }: Chosen & { metrics: string[]; along: Record<string, string>; all: [number, number]; live: number }) {
  const sources = useMemo<Source[]>(() => {
    const those = listed.filter((run) => chosen.includes(run.uid)).slice(0, MOST);
    const shades = by ? groupSlots(those) : slots(those.map((run) => run.uid));
    return those.map((run) => ({
      item: { run: run.uid },
      label: run.name,
      colour: colour(shades.get(by ? (run.group ?? "–") : run.uid) ?? 0),
      ...(by ? { group: run.group ?? "–" } : {}),
    }));
  }, [listed, chosen, by, theme.value]);
  return <Panels metrics={metrics} along={(name) => along[name]} logged={() => true} sources={sources} range={range} all={all} live={live} syncKey={project} />;
}

function groupSlots(runs: readonly Listed[]): Map<string, number> {
  return new Map([...new Set(runs.map((run) => run.group ?? "–"))].sort().map((group, i) => [group, i]));
}

function List({ project, listed, chosen, by, filter, error, pending }: Chosen & { filter: string; error: Error | undefined; pending: number }) {
  const shades = useMemo(() => (by ? groupSlots(listed) : slots(chosen)), [by, listed, chosen]);
  const toggle = (uid: string) => set({ runs: (chosen.includes(uid) ? chosen.filter((one) => one !== uid) : [...chosen, uid]).join(",") });
  const row = (i: number) => {
    const run = listed[i];
    if (!run) return null;
    const on = chosen.includes(run.uid);
    const slot = shades.get(by ? (run.group ?? "–") : run.uid) ?? 0;
    return (
      <div
        class="picked"
        role="listitem"
        key={run.uid}
        onMouseEnter={() => { pointed.value = on ? run.uid : null; }}
        onMouseLeave={() => { pointed.value = null; }}
      >
        <button type="button" class="plain" aria-pressed={on} aria-label={`show ${run.name}`} onClick={() => toggle(run.uid)}>
          <i class="swatch" style={{ background: on ? colour(slot) : "var(--mask)" }} />
        </button>
        <a href={href(["p", project, "r", run.uid])} title={run.name}>{run.name}</a>
        <StateMark state={run.state} />
      </div>
    );
  };
  return (
    <aside class="card">
      <input
        type="search"
        value={filter}
        placeholder="Filter runs"
        aria-label="filter runs"
        spellcheck={false}
        onChange={(event) => set({ filter: event.currentTarget.value || undefined, runs: undefined })}
      />
      {error && <p class="tone-crit note">{error.message}</p>}
      <div class="row quiet">
        {chosen.length} of {listed.length} shown
        <span>
          <button type="button" class="chip" onClick={() => set({ runs: listed.slice(0, MOST).map((run) => run.uid).join(",") })}>all</button>
          <button type="button" class="chip" onClick={() => set({ runs: undefined })}>latest</button>
        </span>
      </div>
      {pending > 0 && <p class="quiet note">{number(pending)} more runs are being read</p>}
      <Windowed count={listed.length} rowHeight={ROW} row={row} as="list" label="runs" class="picks" />
    </aside>
  );
}

function listedOf(columns: Columns, by: string | null): Listed[] {
  const column = (name: string) => columns[name] ?? [];
  return (column("uid") as string[]).map((uid, i) => {
    const value = by === null ? undefined : column(by)[i];
    return {
      uid,
      name: String(column("name")[i]),
      state: column("state")[i] as State,
      last: (column("last_step")[i] ?? null) as number | null,
      group: value === undefined || value === null ? undefined : typeof value === "string" ? value : JSON.stringify(value),
    };
  });
}
