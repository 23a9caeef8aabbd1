/** Many runs at once: which settings go with which results. */

import { useSignal } from "@preact/signals";
import { useMemo } from "preact/hooks";
import { post, useAnswer } from "../api";
import { type Dimension, Parallel } from "../charts/parallel";
import { Scatter } from "../charts/scatter";
import { number } from "../format";
import type { RunsAnswer } from "../model";
import { go, place, set } from "../router";
import { news } from "../state";
import { Answered, Empty } from "../ui/notices";
import { type Columns, differs, spread } from "./runs/table";

const MOST = 1000;
const MOST_AXES = 6;

export function Many({ project, filter }: { project: string; filter: string }) {
  const answer = useAnswer(JSON.stringify(["many", project, filter, news.value]), (signal) =>
    post<RunsAnswer>(`projects/${encodeURIComponent(project)}/runs/query`, { filter, columns: ["uid", "name", "config", "summary"], limit: MOST }, signal),
  );
  const columns = useMemo(() => (answer.value.data ? spread(answer.value.data.columns) : {}), [answer.value.data]);
  return <Answered answer={answer.value}>{() => <Charts project={project} columns={columns} />}</Answered>;
}

function Charts({ project, columns }: { project: string; columns: Columns }) {
  const query = place.value.query;
  const focus = useSignal<number | null>(null);
  const brushes = useSignal<Record<string, [number, number]>>({});
  const uids = (columns["uid"] ?? []) as string[];
  const settings = Object.keys(columns).filter((name) => name.startsWith("config.") && differs(columns[name] ?? []));
  const results = Object.keys(columns).filter((name) => /^summary\.(?!system|watch|_tt)/.test(name) && (columns[name] ?? []).some((value) => typeof value === "number"));
  const result = query.get("result") ?? results.find((name) => /loss$/.test(name)) ?? results[0];
  const against = query.get("against") ?? settings.find((name) => (columns[name] ?? []).every((value) => typeof value === "number")) ?? settings[0];
  if (!result || !against) return <Empty title="Nothing to compare runs by"><p>It takes runs with configurations that differ, and a metric.</p></Empty>;
  const of = (name: string): Dimension => ({ name, values: (columns[name] ?? []).map((value) => (typeof value === "number" || typeof value === "string" ? value : value == null ? null : JSON.stringify(value))) });
  const label = (run: number) => `${String(columns["name"]?.[run])}: ${result.slice(8)} ${number(columns[result]?.[run] as number | null)}`;
  const open = (run: number) => go(["p", project, "r", uids[run] ?? ""]);
  const choice = (text: string, key: string, value: string, options: string[]) => (
    <label>
      {text}
      <select value={value} onChange={(event) => set({ [key]: event.currentTarget.value })}>
        {options.map((name) => (
          <option key={name} value={name}>{name}</option>
        ))}
      </select>
    </label>
  );
  return (
    <>
      <div class="bar">
        {choice("Result", "result", result, results)}
        {choice("against", "against", against, [...settings, ...results])}
        <span class="quiet">{focus.value === null ? "Drag along an axis to keep the runs that pass there." : label(focus.value)}</span>
      </div>
      <figure class="card panel">
        <Parallel dimensions={[...settings.slice(0, MOST_AXES), result].map(of)} focus={focus} brushes={brushes} label={label} onOpen={open} />
      </figure>
      <figure class="card panel spaced">
        <Scatter x={of(against)} y={of(result)} colour={of(result)} focus={focus} label={label} onOpen={open} />
      </figure>
    </>
  );
}
