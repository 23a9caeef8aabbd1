/** A few runs side by side: what they were given, what came of it, and their curves over each other. */

import { useMemo } from "preact/hooks";
import { get, useAnswer } from "../api";
import { whole } from "../charts/axes";
import { colour, slots } from "../charts/colours";
import { number } from "../format";
import type { RunAnswer } from "../model";
import { href, place, set } from "../router";
import { news, theme } from "../state";
import { Answered, Empty } from "../ui/notices";
import { StateMark } from "../ui/marks";
import { flat } from "./overview";
import { LookBar } from "./look";
import { Panels } from "./panels";
import type { Source } from "./series";
import { range } from "../zoomed";
import { Split } from "./split";

const MOST = 12;
/** Room for the names, and for each run, in pixels. */
const [NAMES, SIDE] = [280, 140];

export function Compare({ project }: { project: string }) {
  const uids = (place.value.query.get("runs") ?? "").split(",").filter(Boolean).slice(0, MOST);
  const answer = useAnswer(`compare ${uids} ${news.value}`, (signal) =>
    Promise.all(uids.map((uid) => get<RunAnswer>(`runs/${uid}`, signal))),
  );
  if (uids.length === 0) {
    return (
      <Empty title="Nothing to compare yet">
        <p>
          Choose runs in the <a href={href(["p", project, "runs"])}>table of runs</a>: a box before each name.
        </p>
      </Empty>
    );
  }
  return (
    <div class="page wide">
      <h1>Compare</h1>
      <Answered answer={answer.value}>{(runs) => <Sides project={project} runs={runs} />}</Answered>
    </div>
  );
}

function Sides({ project, runs }: { project: string; runs: RunAnswer[] }) {
  const everything = place.value.query.get("all") === "1";
  const shades = slots(runs.map((run) => run.uid));
  const sources = useMemo<Source[]>(
    () => runs.map((run) => ({ item: { run: run.uid }, label: run.name, colour: colour(shades.get(run.uid) ?? 0) })),
    [runs.map((run) => run.uid).join(), theme.value],
  );
  const all = whole(Math.max(...runs.map((run) => run.last_step ?? 0)));
  const live = runs.some((run) => run.state === "running") ? news.value : 0;
  const watched = runs.filter((run) => run.keys.some((name) => name.startsWith("watch/")));
  const metrics = [...new Set(runs.flatMap((run) => Object.keys(run.summary)))].filter((name) => !/^(system|_tt)\//.test(name));
  return (
    <>
      <div class="bar">
        <label>
          <input type="checkbox" checked={everything} onChange={() => set({ all: everything ? undefined : "1" })} /> show rows that are equal too
        </label>
      </div>
      <div class="card scroll">
        <table class="sides" style={{ minWidth: `${NAMES + SIDE * runs.length}px` }}>
          <thead>
            <tr>
              <th />
              {runs.map((run) => (
                <th key={run.uid} scope="col">
                  <i class="swatch" style={{ background: colour(shades.get(run.uid) ?? 0) }} />
                  <a href={href(["p", project, "r", run.uid])}>{run.name}</a>
                  <div>
                    <StateMark state={run.state} />
                  </div>
                </th>
              ))}
            </tr>
          </thead>
          <Rows title="Configuration" sides={runs.map((run) => new Map(flat(run.config)))} everything={everything} />
          <Results metrics={metrics} runs={runs} everything={everything} />
        </table>
      </div>
      <div class="bar spaced">
        <LookBar range={range} all={all} />
      </div>
      {watched.length > 1 && <Split runs={watched} range={range} all={all} live={live} syncKey="compare" />}
      <Panels
        metrics={metrics.sort()}
        logged={() => true}
        sources={sources}
        range={range}
        all={all}
        live={live}
        syncKey="compare"
      />
    </>
  );
}

/** A row a name: the names that not all sides have alike, or all of them. */
function Rows({ title, sides, everything }: { title: string; sides: Map<string, string>[]; everything: boolean }) {
  const names = [...new Set(sides.flatMap((side) => [...side.keys()]))];
  const shown = names.filter((name) => everything || sides.some((side) => side.get(name) !== sides[0]?.get(name)));
  return (
    <tbody>
      <tr class="part">
        <th scope="rowgroup" colSpan={sides.length + 1}>
          {title} <small>{shown.length ? `${shown.length} of ${names.length}; tinted where it is unlike the first` : "all alike"}</small>
        </th>
      </tr>
      {shown.map((name) => (
        <tr key={name}>
          <th scope="row">{name}</th>
          {sides.map((side, i) => (
            <td key={i} class={side.get(name) !== sides[0]?.get(name) ? "other" : ""}>
              {side.get(name) ?? <span class="quiet">–</span>}
            </td>
          ))}
        </tr>
      ))}
    </tbody>
  );
}

/** The summaries, and how far each is from the first. */
function Results({ metrics, runs, everything }: { metrics: string[]; runs: RunAnswer[]; everything: boolean }) {
  const shown = metrics.filter((name) => everything || !name.startsWith("watch/")).sort();
  const base = (name: string) => runs[0]?.summary[name];
  return (
    <tbody>
      <tr class="part">
        <th scope="rowgroup" colSpan={runs.length + 1}>
          Summary <small>{shown.length}</small>
        </th>
      </tr>
      {shown.map((name) => (
        <tr key={name}>
          <th scope="row">{name}</th>
          {runs.map((run, i) => (
            <td key={run.uid}>
              {shownValue(run.summary[name])} {i > 0 && <small class="quiet">{difference(run.summary[name], base(name))}</small>}
            </td>
          ))}
        </tr>
      ))}
    </tbody>
  );
}

function shownValue(value: unknown): string {
  return value === undefined || value === null ? "–" : typeof value === "number" ? number(value) : String(value);
}

export function difference(value: unknown, base: unknown): string {
  if (typeof value !== "number" || typeof base !== "number" || base === 0 || value === base) return "";
  const percent = (100 * (value - base)) / Math.abs(base);
  return `${percent > 0 ? "+" : "−"}${number(Number(Math.abs(percent).toPrecision(2)))} %`;
}
