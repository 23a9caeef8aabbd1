/** One run: what it is, its curves, its health, its machine, its output, its files. */

import { address, get, useAnswer } from "../api";
import { inFile } from "../embedded";
import { ago, duration, number } from "../format";
import type { Finding, RunAnswer } from "../model";
import { href, place } from "../router";
import { news } from "../state";
import { range, sameSteps } from "../zoomed";
import { Answered } from "../ui/notices";
import { SeverityMark, StateMark } from "../ui/marks";
import { Charts } from "./charts";
import { Files } from "./files";
import { Logs } from "./logs";
import { Overview } from "./overview";
import { Stability } from "./stability";
import { graveFirst, title, Where } from "./stability/findings";

const TABS = ["stability", "charts", "system", "logs", "files", "overview"] as const;
type Tab = (typeof TABS)[number];
const NAMES: Record<Tab, string> = {
  stability: "Stability",
  charts: "Charts",
  system: "System",
  logs: "Logs",
  files: "Files",
  overview: "Overview",
};

export function Run({ project, uid, tab }: { project: string; uid: string; tab: string }) {
  const answer = useAnswer(`run ${uid} ${news.value}`, (signal) => get<RunAnswer>(`runs/${uid}`, signal));
  const live = answer.value.data?.state === "running" ? news.value : 0;
  const findings = useAnswer(`findings ${uid} ${live}`, (signal) => get<Finding[]>(`runs/${uid}/findings`, signal));
  const here: Tab = (TABS as readonly string[]).includes(tab) ? (tab as Tab) : "charts";
  return (
    <div class="page wide">
      <Answered answer={answer.value}>
        {(run) => (
          <>
            <Title run={run} />
            <nav class="tabs" aria-label="of this run">
              {TABS.filter((name) => !inFile || name !== "files").map((name) => (
                <a key={name} href={href(["p", project, "r", uid, name], sameSteps())} aria-current={name === here ? "page" : undefined}>
                  {NAMES[name]}
                </a>
              ))}
            </nav>
            {here !== "stability" && <Gravest uid={uid} project={project} findings={findings.value.data ?? []} />}
            {here === "overview" && <Overview run={run} />}
            {here === "charts" && <Charts run={run} range={range} of={(name) => !/^(system|_tt)\//.test(name)} />}
            {here === "system" && <Charts run={run} range={range} of={(name) => name.startsWith("system/")} />}
            {here === "stability" && <Stability run={run} range={range} answer={findings.value} />}
            {here === "logs" && <Logs run={run} />}
            {here === "files" && <Files run={run} />}
          </>
        )}
      </Answered>
    </div>
  );
}

/** The gravest finding, on every tab: nobody should have to look for it. */
function Gravest({ project, uid, findings }: { project: string; uid: string; findings: Finding[] }) {
  const [first] = graveFirst(findings);
  if (!first || first.severity === "info") return null;
  return (
    <a class={`gravest on-${first.severity === "critical" ? "crit" : "warn"}`} href={href(["p", project, "r", uid, "stability"])}>
      <SeverityMark severity={first.severity} word /> <strong>{title(first)}</strong> since step {number(first.first_step)}
      <Where finding={first} />
      {findings.length > 1 && <span class="quiet">and {findings.length - 1} more</span>}
    </a>
  );
}

function Title({ run }: { run: RunAnswer }) {
  return (
    <div class="title">
      <h1>{run.name}</h1>
      <StateMark state={run.state} />
      <span class="quiet">
        {run.world_size} {run.world_size === 1 ? "rank" : "ranks"}
        {run.attempts.length > 1 && ` · ${run.attempts.length} attempts`} · began {inFile ? new Date(run.created).toLocaleString("en-GB") : ago(run.created)} · {duration(run.duration_s)}
      </span>
      {run.tags.map((tag) => (
        <span class="chip" key={tag}>
          {tag}
        </span>
      ))}
      {!inFile && (
        <a class="button" href={address(`runs/${run.uid}/html`)} download title="this page as one HTML file that needs no server">
          Save as HTML
        </a>
      )}
      <code class="uid" title="what every command takes">
        {place.value.path[3]}
      </code>
    </div>
  );
}
