/** What the ranks printed, by time. */

import { get, useAnswer } from "../api";
import { inFile } from "../embedded";
import type { LogsAnswer, RunAnswer } from "../model";
import { place, set } from "../router";
import { news } from "../state";
import { Answered, Empty } from "../ui/notices";
import { Windowed } from "../ui/windowed";

const ROW = 20;
const MOST = 10_000;

export function Logs({ run }: { run: RunAnswer }) {
  const search = place.value.query.get("q") ?? "";
  const rank = place.value.query.get("rank");
  const parameters = new URLSearchParams({ limit: String(MOST), ...(search && { q: search }), ...(rank && { rank }) });
  const key = `logs ${run.uid} ${parameters} ${run.state === "running" ? news.value : 0}`;
  const answer = useAnswer(key, (signal) => get<LogsAnswer>(`runs/${run.uid}/logs?${parameters}`, signal));
  return (
    <>
      {!inFile && <div class="bar">
        <input type="search" value={search} placeholder="Lines that contain" aria-label="lines that contain" spellcheck={false}
          onInput={(event) => set({ q: event.currentTarget.value || undefined }, { gradual: true })} />
        {run.world_size > 1 && (
          <label>
            Rank
            <select value={rank ?? ""} onChange={(event) => set({ rank: event.currentTarget.value || undefined })}>
              <option value="">all</option>
              {Array.from({ length: Math.min(run.world_size, 256) }, (_, i) => (
                <option value={i}>{i}</option>
              ))}
            </select>
          </label>
        )}
      </div>}
      <Answered answer={answer.value}>
        {({ lines }) =>
          lines.length === 0 ? (
            <Empty title={search ? "No line contains that" : "No output was recorded"}>
              {!search && <p>Printed lines are recorded with <code>init(console=True)</code>.</p>}
            </Empty>
          ) : (
            <Windowed
              as="list"
              class="card log"
              follow={run.state === "running"}
              count={lines.length}
              rowHeight={ROW}
              label="output"
              row={(i) => {
                const line = lines[i];
                return (
                  line && (
                    <div class="line" key={i} role="listitem">
                      <span class="quiet">{new Date(line.time).toLocaleTimeString("en-GB")}</span>
                      <span class="rank">{line.rank}</span>
                      <span class={line.stream === "stderr" ? "tone-warn" : ""}>{line.line}</span>
                    </div>
                  )
                );
              }}
            />
          )
        }
      </Answered>
    </>
  );
}
