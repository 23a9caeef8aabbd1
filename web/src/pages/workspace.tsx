/** The runs of a project against each other: a list to choose from, and every metric with a line a run. */

import { signal } from "@preact/signals";
import { useMemo } from "preact/hooks";
import { get, post, useAnswer } from "../api";
import { type Range, whole } from "../charts/axes";
import { colour, slots } from "../charts/colours";
import type { KeysAnswer, RunsAnswer, State } from "../model";
import { href, place, set } from "../router";
import { news, pointed, theme } from "../state";
import { Answered, Empty } from "../ui/notices";
import { StateMark } from "../ui/marks";
import { Windowed } from "../ui/windowed";
import { LookBar } from "./look";
import { Panels } from "./panels";
import type { Source } from "./series";

/** So many runs are shown until somebody chooses. */
const FIRST = 10;
const ROW = 28;
const range = signal<Range>(null);

interface Listed {
  uid: string;
  name: string;
  state: State;
  last: number | null;
}

export function Workspace({ project }: { project: string }) {
  const filter = place.value.query.get("filter") ?? "";
  const path = `projects/${encodeURIComponent(project)}`;
  const columns = ["uid", "name", "state", "last_step"];
  const runs = useAnswer(JSON.stringify([project, filter, news.value]), (signal) =>
    post<RunsAnswer>(`${path}/runs/query`, { filter, sort: ["-created"], columns, limit: 2000 }, signal),
  );
  const keys = useAnswer(`keys ${project} ${news.value}`, (signal) => get<KeysAnswer>(`${path}/keys`, signal));
  const listed = useMemo(() => (runs.value.data ? listedOf(runs.value.data) : []), [runs.value.data]);
  const chosen = place.value.query.get("runs")?.split(",") ?? listed.slice(0, FIRST).map((run) => run.uid);
  const shades = slots(chosen);
  const sources = useMemo<Source[]>(
    () =>
      listed
        .filter((run) => chosen.includes(run.uid))
        .map((run) => ({ item: { run: run.uid }, label: run.name, colour: colour(shades.get(run.uid) ?? 0) })),
    [listed, chosen.join(), theme.value],
  );
  const shown = listed.filter((run) => chosen.includes(run.uid));
  const all = whole(Math.max(...shown.map((run) => run.last ?? 0)));
  const toggle = (uid: string) => {
    const next = chosen.includes(uid) ? chosen.filter((one) => one !== uid) : [...chosen, uid];
    set({ runs: next.join(",") });
  };
  const row = (i: number) => {
    const run = listed[i];
    if (!run) return null;
    const on = chosen.includes(run.uid);
    return (
      <div
        class="picked"
        role="listitem"
        key={run.uid}
        onMouseEnter={() => {
          pointed.value = on ? run.uid : null;
        }}
        onMouseLeave={() => {
          pointed.value = null;
        }}
      >
        <button type="button" class="plain" aria-pressed={on} aria-label={`show ${run.name}`} onClick={() => toggle(run.uid)}>
          <i class="swatch" style={{ background: on ? colour(shades.get(run.uid) ?? 0) : "var(--mask)" }} />
        </button>
        <a href={href(["p", project, "r", run.uid])}>{run.name}</a>
        <StateMark state={run.state} />
      </div>
    );
  };
  return (
    <div class="workspace">
      <aside class="card">
        <input
          type="search"
          value={filter}
          placeholder="Filter runs"
          aria-label="filter runs"
          spellcheck={false}
          onChange={(event) => set({ filter: event.currentTarget.value || undefined, runs: undefined })}
        />
        {runs.value.error && <p class="tone-crit note">{runs.value.error.message}</p>}
        <Windowed count={listed.length} rowHeight={ROW} row={row} as="list" label="runs" class="picks" />
      </aside>
      <div>
        <div class="bar">
          <LookBar range={range} all={all} />
        </div>
        <Answered answer={keys.value}>
          {(data) =>
            runs.value.data && listed.length === 0 ? (
              <Empty title={filter ? "No run fits this filter" : "No run in this project"} />
            ) : (
              <Panels
                metrics={data.metric.map(({ key }) => key).filter((name) => !/^(system|_tt)\//.test(name))}
                sources={sources}
                range={range}
                all={all}
                live={shown.some((run) => run.state === "running") ? news.value : 0}
                syncKey={project}
              />
            )
          }
        </Answered>
      </div>
    </div>
  );
}

function listedOf({ columns }: RunsAnswer): Listed[] {
  const column = (name: string) => columns[name] ?? [];
  return (column("uid") as string[]).map((uid, i) => ({
    uid,
    name: String(column("name")[i]),
    state: column("state")[i] as State,
    last: (column("last_step")[i] ?? null) as number | null,
  }));
}
