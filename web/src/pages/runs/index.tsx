/** The runs of a project: filtered by an expression, sorted and grouped by any column, changed many at once. */

import { useMemo } from "preact/hooks";
import { post, useAnswer } from "../../api";
import { download, fileName } from "../../charts/export";
import type { RunsAnswer } from "../../model";
import { place, set } from "../../router";
import { news } from "../../state";
import { Answered, Empty } from "../../ui/notices";
import { Bulk } from "./bulk";
import { chosenColumns, ColumnManager } from "./columns";
import { FilterBar } from "./filter";
import { Grid, useTicked } from "./grid";
import { choices, csv, FIXED, spread, titleOf } from "./table";

const MOST = 2000;

export function Runs({ project }: { project: string }) {
  const filter = place.value.query.get("filter") ?? "";
  const sort = place.value.query.get("sort") ?? "-created";
  const key = JSON.stringify([project, filter, sort, news.value]);
  const answer = useAnswer(key, (signal) =>
    post<RunsAnswer>(
      `projects/${encodeURIComponent(project)}/runs/query`,
      { filter, sort: [sort], columns: [...FIXED, "config", "summary"], limit: MOST },
      signal,
    ),
  );
  const data = answer.value.data;
  const columns = useMemo(() => (data ? spread(data.columns) : {}), [data]);
  const keys = Object.keys(columns).filter((name) => !FIXED.includes(name));
  return (
    <div class="page wide">
      <h1 class="row">
        <span class="long" title={project}>{project}</span> <small>{data ? counted(data) : ""}</small>
      </h1>
      <FilterBar filter={filter} keys={keys} error={answer.value.error} />
      <Answered answer={answer.value.error ? { ...answer.value, error: undefined } : answer.value}>
        {(found) =>
          found.n === 0 ? (
            <Empty title={filter ? "No run fits this filter" : "No run in this project"}>
              {filter && <button type="button" onClick={() => set({ filter: undefined })}>Show all runs</button>}
            </Empty>
          ) : (
            <Table project={project} columns={columns} sort={sort} />
          )
        }
      </Answered>
    </div>
  );
}

function counted({ n, pending = 0 }: RunsAnswer): string {
  const more = pending > 0 ? `, and ${pending} that are being read` : "";
  return (n > MOST ? `the first ${MOST} of ${n} runs` : `${n} run${n === 1 ? "" : "s"}`) + more;
}

function Table({ project, columns, sort }: { project: string; columns: Record<string, unknown[]>; sort: string }) {
  const given = place.value.query.get("columns");
  const group = place.value.query.get("group");
  const names = useMemo(() => chosenColumns(columns, given), [columns, given]);
  const [ticked, tick] = useTicked();
  const groups = choices(columns).filter((name) => name === "group" || name === "job_type" || name === "state" || name.startsWith("config."));
  return (
    <>
      <div class="bar">
        <ColumnManager columns={columns} chosen={names} />
        <label>
          Group by
          <select value={group ?? ""} onChange={(event) => set({ group: event.currentTarget.value || undefined })}>
            <option value="">nothing</option>
            {groups.map((name) => (
              <option key={name} value={name}>{titleOf(name)}</option>
            ))}
          </select>
        </label>
        <button type="button" onClick={() => download(new Blob([csv(columns, names)], { type: "text/csv" }), fileName(project, "csv"))}>
          Save as CSV
        </button>
        {ticked.length > 0 ? (
          <Bulk project={project} uids={ticked} columns={columns} />
        ) : (
          <span class="quiet">The box before a name chooses a run to compare or change.</span>
        )}
      </div>
      <Grid project={project} columns={columns} names={names} sort={sort} group={group} ticked={ticked} onTick={tick} />
    </>
  );
}
