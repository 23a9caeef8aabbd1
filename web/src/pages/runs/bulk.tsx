/** What can be done with the runs that are ticked. */

import { useSignal } from "@preact/signals";
import { change } from "../../api";
import { href, set } from "../../router";
import { news } from "../../state";
import { say } from "../../ui/toast";
import type { Columns } from "./table";

interface Props {
  project: string;
  uids: string[];
  columns: Columns;
}

type Asked = "tags" | "notes" | null;

export function Bulk({ project, uids, columns }: Props) {
  const asked = useSignal<Asked>(null);
  const text = useSignal("");
  const places = uids.map((uid) => (columns["uid"] ?? []).indexOf(uid)).filter((i) => i >= 0);
  const of = (name: string) => places.map((i) => columns[name]?.[i]);
  const runs = `${uids.length} run${uids.length === 1 ? "" : "s"}`;
  const ask = (what: Asked) => {
    const [first] = of(what ?? "");
    text.value = what === "tags" ? [...new Set(of("tags").flatMap((tags) => (tags ?? []) as string[]))].join(", ") : String(first ?? "");
    asked.value = asked.value === what ? null : what;
  };
  const apply = async () => {
    const what = asked.value;
    if (what === null) return;
    const value = what === "tags" ? [...new Set(text.value.split(",").map((tag) => tag.trim()).filter(Boolean))] : text.value;
    const before = places.map((i): [string, unknown] => [String(columns["uid"]?.[i]), columns[what]?.[i] ?? (what === "tags" ? [] : "")]);
    asked.value = null;
    await done(change("POST", "runs/bulk", { uids, changes: { [what]: value } }), `${what === "tags" ? "Tags" : "Notes"} of ${runs} changed`, () =>
      Promise.all(before.map(([uid, old]) => change("PATCH", `runs/${uid}`, { [what]: old }))),
    );
  };
  const trash = async () => {
    set({ ticked: undefined });
    await done(Promise.all(uids.map((uid) => change("DELETE", `runs/${uid}`))), `${runs} deleted`, () =>
      Promise.all(uids.map((uid) => change("POST", `runs/${uid}/restore`))),
    );
  };
  return (
    <>
      <a class="button" href={href(["p", project, "compare"], { runs: uids.join(",") })}>
        Compare {runs}
      </a>
      <a class="button" href={href(["p", project], { runs: uids.join(",") })}>
        Show in the workspace
      </a>
      <button type="button" aria-expanded={asked.value === "tags"} onClick={() => ask("tags")}>Tags</button>
      <button type="button" aria-expanded={asked.value === "notes"} onClick={() => ask("notes")}>Notes</button>
      <button type="button" onClick={trash}>Delete</button>
      <button type="button" class="chip" onClick={() => set({ ticked: undefined })}>
        none ✕
      </button>
      {asked.value !== null && (
        <form class="asked" onSubmit={(event) => { event.preventDefault(); void apply(); }}>
          <input
            value={text.value}
            aria-label={`${asked.value} of ${runs}`}
            placeholder={asked.value === "tags" ? "baseline, ablation" : "what these runs are"}
            ref={(node) => node?.focus()}
            onInput={(event) => { text.value = event.currentTarget.value; }}
          />
          <button type="submit">Set for {runs}</button>
        </form>
      )}
    </>
  );
}

async function done(work: Promise<unknown>, text: string, back: () => Promise<unknown>): Promise<void> {
  try {
    await work;
    say(text, () => void done(back(), "Undone", async () => {}));
  } catch (error) {
    say((error as Error).message);
  }
  news.value += 1;
}
