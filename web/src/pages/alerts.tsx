/** What rules found and scripts alerted to, in all runs of a project. */

import { get, useAnswer } from "../api";
import { ago, number } from "../format";
import type { Alarm, AlarmsAnswer, Severity } from "../model";
import { href, place, set } from "../router";
import { news } from "../state";
import { SeverityMark } from "../ui/marks";
import { Answered, Empty } from "../ui/notices";

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
      <Answered answer={answer.value}>{({ lines }) => <Lines lines={lines.filter(fits)} all={lines.length} />}</Answered>
    </div>
  );
}

/** Of how many runs the lines are. */
function extent({ runs, of }: { runs: number; of: number }): string {
  if (runs < of) return `of the newest ${runs} of ${of} runs`;
  return of === 1 ? "of 1 run" : `of ${of} runs`;
}

function Lines({ lines, all }: { lines: Alarm[]; all: number }) {
  if (lines.length === 0 && all > 0) return <Empty title="Nothing this grave"><button type="button" onClick={() => set({ severity: undefined })}>Show all</button></Empty>;
  if (lines.length === 0) {
    return (
      <Empty title="No alert">
        <p>No rule has found anything, and no script has called <code>run.alert("title", "text", level="warning")</code>.</p>
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
              {line.run} {line.step !== null && `· step ${number(line.step)}`} · {line.source === "alert" ? "said by the script" : "found by a rule"} · {ago(line.time)}
            </span>
            <span class="said">{line.text}</span>
          </a>
        </li>
      ))}
    </ul>
  );
}
