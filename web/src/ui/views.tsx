/** Saved views of a project: a name for what the address says, one's own or everybody's. */

import { useSignal } from "@preact/signals";
import { change, get, useAnswer } from "../api";
import { href, place, replace } from "../router";
import { say } from "./toast";

interface View {
  id: string;
  name: string;
  content: { query?: string };
  version: number;
  shared?: boolean;
}

export function Views({ project }: { project: string }) {
  const known = useSignal(0);
  const naming = useSignal<string | null>(null);
  const shared = useSignal(false);
  const answer = useAnswer(`views ${project} ${known.value}`, (signal) => get<View[]>(`views?project=${encodeURIComponent(project)}`, signal));
  const views = answer.value.data ?? [];
  const here = views.find((view) => view.id === place.value.query.get("view"));
  const query = () => {
    const now = new URLSearchParams(place.value.query);
    now.delete("view");
    return now.toString();
  };
  const open = (id: string) => {
    const view = views.find((one) => one.id === id);
    replace(href(["p", project], { ...Object.fromEntries(new URLSearchParams(view?.content.query ?? "")), view: view?.id }));
  };
  const attempt = async (work: Promise<unknown>, text: string) => {
    try {
      await work;
      say(text);
    } catch (error) {
      say((error as Error).message);
    }
    known.value += 1;
  };
  const save = async (name: string) => {
    naming.value = null;
    await attempt(change("POST", "views", { project, name, content: { query: query() }, shared: shared.value }), `Saved as ${name}`);
  };
  const update = (view: View) => attempt(change("PUT", `views/${view.id}`, { query: query() }, { "if-match": String(view.version) }), `${view.name} is now what you see`);
  const remove = async (view: View) => {
    open("");
    await attempt(change("DELETE", `views/${view.id}`), `${view.name} removed`);
  };
  return (
    <div class="views">
      <select aria-label="saved views" value={here?.id ?? ""} onChange={(event) => open(event.currentTarget.value)}>
        <option value="">{views.length ? "Saved views" : "No saved view"}</option>
        {views.map((view) => (
          <option key={view.id} value={view.id}>{view.shared === false ? `${view.name} (yours)` : view.name}</option>
        ))}
      </select>
      {here && here.content.query !== query() && <button type="button" onClick={() => update(here)}>Update</button>}
      {here && <button type="button" onClick={() => remove(here)}>Remove</button>}
      {naming.value === null ? (
        <button type="button" onClick={() => { naming.value = ""; }}>Save view</button>
      ) : (
        <form class="asked" onSubmit={(event) => { event.preventDefault(); if (naming.value) void save(naming.value); }}>
          <input
            ref={(node) => node?.focus()}
            value={naming.value}
            maxLength={200}
            aria-label="name of the view"
            placeholder="A name for this view"
            onInput={(event) => { naming.value = event.currentTarget.value; }}
            onKeyDown={(event) => { if (event.key === "Escape") naming.value = null; }}
          />
          <label>
            <input type="checkbox" checked={shared.value} onChange={() => { shared.value = !shared.value; }} /> for everybody
          </label>
          <button type="submit">Save</button>
        </form>
      )}
    </div>
  );
}
