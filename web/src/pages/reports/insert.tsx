/** A panel put into the text at hand: a metric of the newest runs, to be narrowed down afterwards. */

import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { get, post, useAnswer } from "../../api";
import type { KeysAnswer, RunsAnswer } from "../../model";
import { curvesPanel, writePanel } from "./panel";

const MOST_METRICS = 200;
const NEWEST = 5;

export function Insert({ project, onInsert }: { project: string; onInsert: (block: string) => void }) {
  const open = useSignal(false);
  const node = useRef<HTMLDivElement>(null);
  useEffect(() => {
    if (!open.value) return;
    node.current?.querySelector("select")?.focus();
    const away = (event: Event) => {
      if (!node.current?.contains(event.target as Node)) open.value = false;
    };
    addEventListener("pointerdown", away);
    return () => removeEventListener("pointerdown", away);
  }, [open.value]);
  return (
    <div ref={node} class="menued" onKeyDown={(event) => { if (event.key === "Escape") open.value = false; }}>
      <button type="button" aria-haspopup="dialog" aria-expanded={open.value} onClick={() => { open.value = !open.value; }}>
        Insert a panel
      </button>
      {open.value && <Choose project={project} onInsert={(block) => { open.value = false; onInsert(block); }} />}
    </div>
  );
}

function Choose({ project, onInsert }: { project: string; onInsert: (block: string) => void }) {
  const path = `projects/${encodeURIComponent(project)}`;
  const answer = useAnswer(`insert ${project}`, async (signal) => {
    const runs = post<RunsAnswer>(`${path}/runs/query`, { sort: ["-created"], columns: ["uid", "name"], limit: 200 }, signal);
    const keys = get<KeysAnswer>(`${path}/keys`, signal);
    const { columns } = await runs;
    return { metrics: (await keys).metric.map(({ key }) => key), uids: (columns["uid"] ?? []) as string[], names: (columns["name"] ?? []) as string[] };
  });
  const metric = useSignal("");
  const run = useSignal("");
  const { metrics = [], uids = [], names = [] } = answer.value.data ?? {};
  const known = metrics.filter((name) => !/^(system|_tt)\//.test(name)).slice(0, MOST_METRICS);
  const chosen = metric.value || (known.find((name) => /(^|[/_])loss$/.test(name)) ?? known[0] ?? "");
  const pick = () => {
    const runs = run.value ? [run.value] : uids.slice(0, NEWEST);
    onInsert(writePanel(curvesPanel(chosen, runs.map((uid) => ({ item: { run: uid } })), new URLSearchParams(), null, 0)));
  };
  return (
    <div class="menu left chooser" role="dialog" aria-label="insert a panel">
      <form onSubmit={(event) => { event.preventDefault(); pick(); }}>
        <label>
          <span>Metric</span>
          <select value={chosen} onChange={(event) => { metric.value = event.currentTarget.value; }}>
            {known.map((name) => (
              <option key={name}>{name}</option>
            ))}
          </select>
        </label>
        <label>
          <span>Runs</span>
          <select value={run.value} onChange={(event) => { run.value = event.currentTarget.value; }}>
            <option value="">the newest {Math.min(NEWEST, uids.length)}</option>
            {uids.map((uid, i) => (
              <option key={uid} value={uid}>{names[i]}</option>
            ))}
          </select>
        </label>
        <button type="submit" disabled={!chosen || uids.length === 0}>Insert</button>
        <p class="quiet">Layers, ranks, groups and ranges: look at them on their page, then ⋯ → Add to this report.</p>
      </form>
    </div>
  );
}
