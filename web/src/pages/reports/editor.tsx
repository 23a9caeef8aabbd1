/** Where a report is written. What was not saved yet is kept by the browser until it is, or is given up. */

import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { change, get, ServerError } from "../../api";
import type { ReportAnswer } from "../../model";
import { set } from "../../router";
import { keep, kept } from "../../state";
import { say } from "../../ui/toast";
import { block } from "./blocks";
import { Insert } from "./insert";
import { Markdown } from "./markdown";
import { insert, type Mark, MARKS, marked } from "./typing";

/** What one types is shown once one pauses: a panel that is half written asks nothing. */
const PAUSE_MS = 300;

interface Draft {
  version: number;
  title: string;
  text: string;
}

export function Editor({ report, onSaved }: { report: ReportAnswer; onSaved: () => void }) {
  const name = `draft ${report.id}`;
  const draft = useSignal<Draft>(found(name) ?? { version: report.version, title: report.title, text: report.text });
  const stored = useSignal<Draft>({ version: report.version, title: report.title, text: report.text });
  const conflict = useSignal<string | null>(null);
  const area = useRef<HTMLTextAreaElement>(null);
  const { title, text, version } = draft.value;
  const changed = title !== stored.value.title || text !== stored.value.text;
  const shown = usePaused(text);
  useEffect(() => keep(name, changed ? JSON.stringify(draft.value) : null), [changed, draft.value]);
  const edit = (changes: Partial<Draft>) => { draft.value = { ...draft.peek(), ...changes }; };
  const save = async (over: number = version) => {
    if (!title.trim()) return say("A report needs a title");
    try {
      const done = await change<ReportAnswer>("PUT", `reports/${report.id}`, { title, text }, { "if-match": String(over) });
      stored.value = { version: done?.version ?? over + 1, title, text };
      edit({ version: stored.value.version });
      conflict.value = null;
      onSaved();
      say("Saved");
    } catch (error) {
      if (error instanceof ServerError && error.status === 409) conflict.value = error.message;
      else say((error as Error).message);
    }
  };
  const saveOver = async () => save((await get<ReportAnswer>(`reports/${report.id}`)).version);
  const giveUp = () => {
    draft.value = stored.peek();
    conflict.value = null;
  };
  const press = (event: KeyboardEvent) => {
    const mark = MARKS.find((one) => one.key === event.key.toLowerCase());
    if (!(event.ctrlKey || event.metaKey)) return;
    if (event.key.toLowerCase() === "s") {
      event.preventDefault();
      void save();
    } else if (mark && event.target === area.current) {
      event.preventDefault();
      write(mark);
    }
  };
  const write = (mark: Mark) => area.current && marked(area.current, mark);
  return (
    <div class="editing" onKeyDown={press}>
      <div class="title">
        <h1 class="unseen">{title || "A report"}</h1>
        <input class="heading" value={title} maxLength={256} aria-label="title" placeholder="Title" onInput={(event) => edit({ title: event.currentTarget.value })} />
        <div class="tools">
          <span class="quiet" role="status">{changed ? "not saved yet" : `version ${stored.value.version}`}</span>
          {changed && <button type="button" onClick={giveUp}>Give up changes</button>}
          <button type="button" class="primary" disabled={!changed} onClick={() => void save()}>Save</button>
          <button type="button" onClick={() => set({ edit: undefined })}>Done</button>
        </div>
      </div>
      {conflict.value && (
        <div class="problem" role="alert">
          <strong>{conflict.value}</strong>{" "}
          <button type="button" onClick={() => void saveOver()}>Save mine as the newest version</button>
        </div>
      )}
      <div class="sides-by-side">
        <div class="card writing">
          <div class="marks" role="toolbar" aria-label="format">
            {MARKS.map((mark) => (
              <button type="button" key={mark.name} class="plain" title={mark.key ? `${mark.name} (Ctrl ${mark.key.toUpperCase()})` : mark.name} aria-label={mark.name} onClick={() => write(mark)}>
                {mark.sign}
              </button>
            ))}
            <Insert project={report.project} onInsert={(panel) => area.current && insert(area.current, panel)} />
          </div>
          <textarea
            ref={area}
            value={text}
            aria-label="text, in Markdown"
            placeholder="Markdown. Panels come here by “Insert a panel”, or from any page by ⋯ → Add to a report."
            spellcheck
            onInput={(event) => edit({ text: event.currentTarget.value })}
          />
        </div>
        <div class="card proof report" role="region" aria-label="preview" tabIndex={0}>
          <Markdown text={shown} block={block} />
        </div>
      </div>
    </div>
  );
}

function found(name: string): Draft | null {
  return JSON.parse(kept(name) ?? "null") as Draft | null;
}

/** A value once it has stayed the same for a moment. */
function usePaused(value: string): string {
  const settled = useSignal(value);
  useEffect(() => {
    const timer = setTimeout(() => { settled.value = value; }, PAUSE_MS);
    return () => clearTimeout(timer);
  }, [value, settled]);
  return settled.value;
}
