/** What rules found, scripts alerted to and alert rules fired on, in all runs of a project; and those rules. */

import { get, useAnswer } from "../api";
import { ago, number } from "../format";
import type { Alarm, AlarmsAnswer, Severity, Told } from "../model";
import { href, place, set } from "../router";
import { news } from "../state";
import { SeverityMark } from "../ui/marks";
import { Answered, Empty } from "../ui/notices";
import { Rules } from "./rules";

const SOURCES: Record<Alarm["source"], string> = { finding: "found by the stability rules", alert: "said by the script", rule: "an alert rule" };
const SHOWN: Record<string, Severity[]> = { critical: ["critical"], warning: ["critical", "warning"], info: ["critical", "warning", "info"] };

export function Alerts({ project }: { project: string }) {
  const answer = useAnswer(`alarms ${project} ${news.value}`, (signal) => get<AlarmsAnswer>(`projects/${encodeURIComponent(project)}/alarms`, signal));
  const least = place.value.query.get("severity") ?? "info";
  const fits = (line: Alarm) => (SHOWN[least] ?? []).includes(line.severity);
  return (
    <div class="page">
      <h1>Alerts</h1>
      <div class="bar">
        <label>
          Severity
          <select value={least} onChange={(event) => set({ severity: event.currentTarget.value === "info" ? undefined : event.currentTarget.value })}>
            <option value="info">all</option>
            <option value="warning">warning and critical</option>
            <option value="critical">critical</option>
          </select>
        </label>
        {answer.value.data && <span class="quiet">{extent(answer.value.data)}</span>}
      </div>
      <Rules project={project} targets={answer.value.data?.targets ?? []} />
      <Answered answer={answer.value}>{({ lines }) => <Lines lines={lines.filter(fits)} all={lines.length} />}</Answered>
    </div>
  );
}

/** Of how many runs the lines are. */
function extent({ runs, of }: { runs: number; of: number }): string {
  if (runs < of) return `of the newest ${runs} of ${of} runs`;
  return of === 1 ? "of 1 run" : `of ${of} runs`;
}

/** Whether a target took a message: one that has yet to, or never will, is told apart. */
function Delivered({ told }: { told: Told }) {
  const tries = told.tries === 1 ? "once" : `${told.tries} times`;
  const state = told.state === "sent" ? "sent to" : told.state === "given up" ? `given up after ${told.tries} tries:` : told.tries === 0 ? "goes to" : `refused ${tries}, is tried again:`;
  return <span class={`chip ${told.state === "sent" ? "" : told.tries > 0 ? "tone-crit" : ""}`}>{state} {told.service}</span>;
}

function Lines({ lines, all }: { lines: Alarm[]; all: number }) {
  if (lines.length === 0 && all > 0) return <Empty title="Nothing this grave"><button type="button" onClick={() => set({ severity: undefined })}>Show all</button></Empty>;
  if (lines.length === 0) {
    return (
      <Empty title="No alert">
        <p>No rule has found or fired on anything, and no script has called <code>run.alert("title", "text", level="warning")</code>.</p>
      </Empty>
    );
  }
  return (
    <ul class="card alarms" aria-label="alerts">
      {lines.map((line, i) => (
        <li key={i}>
          <a href={href(["p", line.project, "r", line.uid, "stability"], { at: line.step === null ? undefined : String(line.step) })}>
            <SeverityMark severity={line.severity} word /> <strong>{line.title}</strong>{" "}
            <span class="quiet">
              {line.run} {line.step !== null && `· step ${number(line.step)}`} · {SOURCES[line.source]} · {ago(line.time)}
              {line.over && ` · over since ${ago(line.over)}`}
            </span>
            {line.told?.map((each) => <Delivered key={each.target} told={each} />)}
            <span class="said">{line.text}</span>
          </a>
        </li>
      ))}
    </ul>
  );
}
