/** What a run keeps: logged files, saved files, what its processes left, its output, its journals; and its artifacts. */

import { useMemo } from "preact/hooks";
import { useSignal } from "@preact/signals";
import { address, get, useAnswer } from "../../api";
import { download, fileName } from "../../charts/export";
import { ago, bytes, number } from "../../format";
import type { Artifact, Contents, KeptAnswer, LogsAnswer, MediaAnswer, RunAnswer, SavedFile } from "../../model";
import { href, place, set } from "../../router";
import { news } from "../../state";
import { Answered, Empty, Problem } from "../../ui/notices";
import { say } from "../../ui/toast";
import { Windowed } from "../../ui/windowed";
import { ending } from "../logged/row";
import { type Entry, entriesOf, found, PARTS } from "./entries";
import { Preview } from "./preview";

const ROW = 28;
const MOST_ROWS = 10_000;

export function Files({ run }: { run: RunAnswer }) {
  const live = run.state === "running" ? news.value : 0;
  const path = `runs/${run.uid}`;
  const kept = useAnswer(`kept ${run.uid} ${live}`, (signal) => get<KeptAnswer>(`${path}/kept`, signal));
  const media = useAnswer(`media ${run.uid} ${live}`, (signal) => get<MediaAnswer>(`${path}/media?limit=${MOST_ROWS}`, signal));
  const artifacts = useAnswer(`artifacts ${run.uid} ${live}`, (signal) => get<Artifact[]>(`${path}/artifacts`, signal));
  const saved = useAnswer(`saved ${run.uid} ${live}`, (signal) => get<SavedFile[]>(`${path}/saved`, signal));
  return (
    <>
      {media.value.error && <Problem error={media.value.error} />}
      {saved.value.error && <Problem error={saved.value.error} />}
      <Answered answer={kept.value}>{(answer) => media.value.data && <Listed run={run} kept={answer} media={media.value.data} artifacts={artifacts.value.data} saved={saved.value.data} />}</Answered>
      {artifacts.value.data && artifacts.value.data.length > 0 && <Artifacts uid={run.uid} artifacts={artifacts.value.data} />}
    </>
  );
}

const NONE: SavedFile[] = [];

function Listed({ run, kept, media, artifacts = [], saved = NONE }: { run: RunAnswer; kept: KeptAnswer; media: MediaAnswer; artifacts: Artifact[] | undefined; saved: SavedFile[] | undefined }) {
  const query = place.value.query;
  const [text, part] = [query.get("q") ?? "", query.get("part") ?? ""];
  const held = artifacts.some((artifact) => artifact.contents);
  const entries = useMemo(() => entriesOf(run.uid, media.rows, kept.files, !kept.more, held, saved), [run.uid, media, kept, held, saved]);
  const shown = useMemo(() => found(entries, text, part), [entries, text, part]);
  const chosen = entries.find((entry) => entry.key === query.get("file"));
  const total = shown.reduce((sum, entry) => sum + (entry.size ?? 0), 0);
  const row = (i: number) => {
    const entry = shown[i];
    return entry && <Line key={entry.key} entry={entry} at={i} chosen={entry === chosen} />;
  };
  return (
    <>
      <div class="bar">
        <input type="search" value={text} placeholder="Files that contain" aria-label="files that contain" spellcheck={false}
          onInput={(event) => set({ q: event.currentTarget.value || undefined }, { gradual: true })} />
        <label>
          Kind
          <select value={part} onChange={(event) => set({ part: event.currentTarget.value || undefined })}>
            <option value="">all</option>
            {Object.entries(PARTS).map(([name, words]) => (
              <option key={name} value={name}>{words}</option>
            ))}
          </select>
        </label>
        <span class="quiet">{number(shown.length)} {shown.length === 1 ? "file" : "files"}, {bytes(total)}</span>
        <Console run={run} />
      </div>
      {(kept.more || media.after !== null) && <p class="tone-warn">There are more files than are listed: {number(MOST_ROWS)} of each kind.</p>}
      {shown.length === 0 ? (
        <Empty title={entries.length ? "No file is called that" : "Nothing is kept of this run"}>
          {entries.length === 0 && <p><code>run.log({"{"}"samples": torchtrack.Image(...){"}"})</code> and <code>run.save("config.yaml")</code> put files here.</p>}
        </Empty>
      ) : (
        <div class={chosen ? "files previewed" : "files"}>
          <Windowed as="table" class="card kept" count={shown.length} rowHeight={ROW} label="files of the run" head={Head} row={row} shown={chosen ? shown.indexOf(chosen) : -1} />
          {chosen && (
            <aside class="card preview" aria-label={`preview of ${chosen.name}`}>
              <h2>
                <span title={chosen.name}>{chosen.name}</span>
                <button type="button" class="plain" aria-label="close the preview" onClick={() => set({ file: undefined })}>✕</button>
              </h2>
              {chosen.about && <p class="quiet">{chosen.about}</p>}
              {chosen.here ? <Preview key={chosen.key} uid={run.uid} entry={chosen} /> : <NotHere />}
              <dl>
                <dt>Size</dt>
                <dd>{bytes(chosen.size)}{chosen.size !== null && chosen.size >= 1024 && ` (${chosen.size.toLocaleString("en")} bytes)`}</dd>
                <dt>SHA-256</dt>
                <dd><code>{chosen.sha256 ?? "not computed"}</code></dd>
              </dl>
            </aside>
          )}
        </div>
      )}
    </>
  );
}

function Head() {
  return (
    <div class="file head" role="row">
      {["Name", "Kind", "Size", "SHA-256", "From"].map((name) => (
        <span key={name} role="columnheader">{name}</span>
      ))}
      <span role="columnheader"><span class="unseen">What can be done</span></span>
    </div>
  );
}

function Line({ entry, at, chosen }: { entry: Entry; at: number; chosen: boolean }) {
  const { name, about, part, size, sha256, time, here, path } = entry;
  return (
    <div class={chosen ? "file at" : "file"} role="row" aria-rowindex={at + 2}>
      <span role="cell">
        <button type="button" class="fold" aria-expanded={chosen} title={name} onClick={() => set({ file: chosen ? undefined : entry.key })}>
          {name} <small class="quiet">{about}</small>
        </button>
      </span>
      <span role="cell">{PARTS[part]}</span>
      <span role="cell">{here ? bytes(size) : <span class="tone-warn" title={NOT_HERE}>not here</span>}</span>
      <span role="cell"><code title={sha256 ?? undefined}>{sha256 ? `${sha256.slice(0, 12)}…` : "–"}</code></span>
      <span role="cell" title={time === null ? undefined : new Date(time * 1000).toLocaleString("en-GB")}>{time === null ? "–" : ago(new Date(time * 1000).toISOString())}</span>
      <span role="cell">{path && here && <a href={address(path)} download={entry.row ? fileName(`${name}-${about}`, ending(entry.row.mime)) : name.split("/").pop()} aria-label={`save ${name}`}>Save</a>}</span>
    </div>
  );
}

const NOT_HERE = "It was logged, but its file has not come, or was removed.";

function NotHere() {
  return <p class="missing" role="note">Not here. {NOT_HERE}</p>;
}

/** The printed lines lie in the journals: they are put together as a file when somebody wants it. */
function Console({ run }: { run: RunAnswer }) {
  const busy = useSignal(false);
  const answer = useAnswer(`lines ${run.uid} ${run.state === "running" ? news.value : 0}`, (signal) => get<LogsAnswer>(`runs/${run.uid}/logs?limit=1`, signal));
  const lines = answer.value.data?.n ?? 0;
  if (lines === 0) return null;
  const save = async () => {
    busy.value = true;
    try {
      download(new Blob(await consoleOf(run.uid), { type: "text/plain" }), fileName(`${run.name}-console`, "txt"));
    } catch (error) {
      say((error as Error).message);
    }
    busy.value = false;
  };
  return (
    <span class="end">
      <a href={href(["p", run.project, "r", run.uid, "logs"])}>{number(lines)} printed {lines === 1 ? "line" : "lines"}</a>{" "}
      <button type="button" disabled={busy.value} onClick={save}>Save the output</button>
    </span>
  );
}

async function consoleOf(uid: string): Promise<string[]> {
  const parts: string[] = [];
  for (let after: number | null = 0; after !== null; ) {
    const page: LogsAnswer = await get<LogsAnswer>(`runs/${uid}/logs?limit=${MOST_ROWS}&after=${after}`);
    parts.push(page.lines.map(({ time, rank, stream, line }) => `${time} rank ${rank} ${stream} ${line}\n`).join(""));
    after = page.after;
  }
  return parts;
}

function Artifacts({ uid, artifacts }: { uid: string; artifacts: Artifact[] }) {
  return (
    <section class="card spaced scroll" aria-label="artifacts">
      <h2 class="inside">Artifacts <small>that the run logged and used</small></h2>
      <table class="plain-table">
        <thead>
          <tr>
            {["", "Name", "Type", "Files", "Size", "Digest", "Aliases", "When"].map((name) => (
              <th key={name} scope="col">{name || <span class="unseen">Logged or used</span>}</th>
            ))}
          </tr>
        </thead>
        <tbody>
          {artifacts.map((artifact, i) => (
            <tr key={i}>
              <td>{artifact.action}</td>
              <th scope="row">
                {artifact.name}
                {artifact.contents && <Held uid={uid} name={artifact.name} contents={artifact.contents} />}
              </th>
              <td>{artifact.type}</td>
              <td>{number(artifact.files)}</td>
              <td>{bytes(artifact.bytes)}</td>
              <td><code title={artifact.digest}>{String(artifact.digest).slice(0, 12)}…</code></td>
              <td>{(artifact.aliases ?? []).map((alias) => <span class="chip" key={alias}>{alias}</span>)}</td>
              <td>{ago(artifact.time)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </section>
  );
}

/** The files of an artifact, to be saved; their list is asked for when somebody wants to see it. */
function Held({ uid, name, contents }: { uid: string; name: string; contents: string }) {
  const open = useSignal(false);
  return (
    <details onToggle={(event) => (open.value = event.currentTarget.open)}>
      <summary aria-label={`files of ${name}`}>Files</summary>
      {open.value && <HeldFiles uid={uid} contents={contents} />}
    </details>
  );
}

function HeldFiles({ uid, contents }: { uid: string; contents: string }) {
  const listed = useAnswer(`contents ${uid} ${contents}`, (signal) => get<Contents>(`runs/${uid}/media/${contents}`, signal));
  return (
    <Answered answer={listed.value}>
      {({ files, references }) => (
        <ul class="bare">
          {Object.entries(files).slice(0, MOST_ROWS).map(([path, { size }]) => (
            <li key={path}>
              <a href={address(`runs/${uid}/contents/${contents}/${path.split("/").map(encodeURIComponent).join("/")}`)} download={path.split("/").pop()} aria-label={`save ${path}`}>{path}</a>{" "}
              <span class="quiet">{bytes(size)}</span>
            </li>
          ))}
          {Object.entries(references).map(([path, uri]) => (
            <li key={path}>
              {path} <span class="quiet">{uri}</span>
            </li>
          ))}
        </ul>
      )}
    </Answered>
  );
}
