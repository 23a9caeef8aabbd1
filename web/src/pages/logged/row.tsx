/** One thing that was logged, as its kind is shown. What somebody wrote as HTML is only ever in a frame that is cut off. */

import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { address, raw, ServerError, useAnswer } from "../../api";
import { fileName } from "../../charts/export";
import { answers, inFile, picture } from "../../embedded";
import { bytes } from "../../format";
import type { LoggedFile, LoggedRow } from "../../model";
import { PlotlyFigure } from "./figure";
import { LoggedTable } from "./grid";

/** Pictures smaller than this many pixels are enlarged as squares, since each of theirs was meant. */
const SMALL = 160;

interface Props<Row> {
  run: string;
  name: string;
  row: Row;
  height: number;
  /** Changes when a file that was not there may have come. */
  live: number;
}

/** Where a file of a run is asked for. */
export function mediaPath(run: string, sha256: string, parameters: Record<string, string> = {}): string {
  const query = new URLSearchParams(parameters).toString();
  return `runs/${run}/media/${sha256}${query ? `?${query}` : ""}`;
}

export function Row({ row, ...rest }: Props<LoggedRow>) {
  if (row.kind === "text") return <pre class="text">{row.text ?? <span class="quiet">None</span>}</pre>;
  return <File row={row} {...rest} />;
}

function File({ run, name, row, height, live }: Props<LoggedFile>) {
  const failed = useSignal(false);
  const scripts = useSignal(false);
  useEffect(() => { failed.value = false; }, [row.sha256, live]);
  const words = row.caption ?? name;
  return (
    <figure class={`tile ${row.kind}`}>
      {failed.value ? <Missing run={run} row={row} /> : <Content run={run} row={row} words={words} height={height} scripts={scripts.value} onError={() => { failed.value = true; }} />}
      <figcaption>
        <span title={words}>{row.caption}</span>
        {row.kind === "html" && !inFile && (
          <button type="button" class="chip" aria-pressed={scripts.value} title="In a frame of their own: they reach neither this page nor the network" onClick={() => { scripts.value = !scripts.value; }}>
            {scripts.value ? "scripts run" : "run its scripts"}
          </button>
        )}
        {!inFile && <a href={address(mediaPath(run, row.sha256))} download={fileName(words, ending(row.mime))} title={`save, ${bytes(row.size)}`} aria-label={`save ${words}`}>↓</a>}
      </figcaption>
    </figure>
  );
}

interface ContentProps {
  run: string;
  row: LoggedFile;
  words: string;
  height: number;
  scripts: boolean;
  onError: () => void;
}

/** HTML can load nothing, send nothing and see nothing of the page; its scripts run only when somebody says so. */
function Content({ run, row, words, height, scripts, onError }: ContentProps) {
  if (inFile && !held(run, row.sha256)) return <p class="missing" role="note">Not in this file: it holds small pictures and tables alone.</p>;
  const source = picture(row.sha256) ?? address(mediaPath(run, row.sha256, { type: row.mime ?? "", ...(scripts ? { scripts: "true" } : {}) }));
  switch (row.kind) {
    case "image":
      return <Picture source={source} words={words} height={height} onError={onError} />;
    case "audio":
      return <audio controls preload="metadata" src={source} aria-label={words} onError={onError} />;
    case "video":
      return <video controls preload="metadata" src={source} style={{ height: `${height}px` }} aria-label={words} onError={onError} />;
    case "html":
      return <iframe key={source} src={source} sandbox={scripts ? "allow-scripts" : ""} title={`HTML: ${words}`} style={{ height: `${height}px` }} />;
    case "table":
      return <LoggedTable path={mediaPath(run, row.sha256)} name={words} height={height - 36} />;
    case "figure":
      return <PlotlyFigure path={mediaPath(run, row.sha256)} size={row.size} height={height} />;
    default:
      return <p class="quiet">{row.mime ?? "a file"}</p>;
  }
}

/** Whether the file that this page is in has a logged file in it. */
function held(run: string, sha256: string): boolean {
  return picture(sha256) !== undefined || answers(mediaPath(run, sha256));
}

function Picture({ source, words, height, onError }: Pick<ContentProps, "words" | "height" | "onError"> & { source: string }) {
  const small = useSignal(false);
  return (
    <img
      src={source}
      alt={words}
      title={words}
      decoding="async"
      class={small.value ? "small" : ""}
      style={{ height: `${height}px` }}
      onError={onError}
      onLoad={(event) => { small.value = event.currentTarget.naturalHeight < SMALL; }}
    />
  );
}

/** Why there is nothing to see: the file is not there, or it is not what it was said to be. */
function Missing({ run, row }: { run: string; row: LoggedFile }) {
  const path = mediaPath(run, row.sha256);
  const answer = useAnswer(path, (signal) => raw(path, undefined, { first: 1, signal }));
  const { data, error } = answer.value;
  const away = error instanceof ServerError && error.status === 404;
  return (
    <p class="missing" role="note">
      {away ? "Not here: it was logged, but its file has not come, or was removed." : (error?.message ?? (data ? `This is no ${row.mime} that a browser can show.` : ""))}
    </p>
  );
}

const ENDINGS: Record<string, string> = { jpeg: "jpg", mpeg: "mp3", "svg+xml": "svg", "vnd.torchtrack.table+json": "json", "vnd.plotly+json": "json" };

/** What the name of a file of a type ends in. */
export function ending(mime: string | null): string {
  const own = (mime ?? "").split("/")[1] ?? "";
  return ENDINGS[own] ?? (/^[a-z0-9]{1,8}$/.test(own) ? own : "bin");
}
