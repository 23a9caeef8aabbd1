/** The beginning of a file, as text or as a picture; nothing of it is ever taken for a part of the page. */

import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { raw, useAnswer } from "../../api";
import { bytes } from "../../format";
import { Row } from "../logged/row";
import type { Entry } from "./entries";

/** So much of a text is shown. */
const MOST_TEXT = 64 << 10;
const MOST_PICTURE = 20 << 20;
const PICTURES: Record<string, string> = { png: "image/png", jpg: "image/jpeg", jpeg: "image/jpeg", gif: "image/gif", webp: "image/webp" };
const HEIGHT = 320;

export function Preview({ uid, entry }: { uid: string; entry: Entry }) {
  if (entry.row) return <Row run={uid} name={entry.name} row={entry.row} height={HEIGHT} live={0} />;
  if (entry.part === "journal") return <p class="quiet">What the run recorded is in here. The server reads it; `torchtrack fsck` checks it.</p>;
  if (/\.ttb$/.test(entry.name)) return <p class="quiet">The last steps of a process: `torchtrack blackbox {uid}` shows them.</p>;
  if (entry.size === 0) return <p class="quiet">It is empty.</p>;
  const type = PICTURES[entry.name.split(".").pop()?.toLowerCase() ?? ""];
  if (entry.path === null) return null;
  return type && (entry.size ?? 0) <= MOST_PICTURE ? <Picture path={entry.path} type={type} name={entry.name} /> : <Text path={entry.path} size={entry.size ?? 0} />;
}

function Picture({ path, type, name }: { path: string; type: string; name: string }) {
  const answer = useAnswer(path, async (signal) => new Blob([await raw(path, undefined, { signal })], { type }));
  const source = useSignal<string | null>(null);
  const { data, error } = answer.value;
  useEffect(() => {
    if (!data) return;
    const made = URL.createObjectURL(data);
    source.value = made;
    return () => URL.revokeObjectURL(made);
  }, [data]);
  if (error) return <p class="tone-warn">{error.message}</p>;
  return <figure class="tile">{source.value && <img src={source.value} alt={name} style={{ height: `${HEIGHT}px` }} />}</figure>;
}

function Text({ path, size }: { path: string; size: number }) {
  const answer = useAnswer(path, async (signal) => textOf(await (await raw(path, undefined, { first: MOST_TEXT, signal })).arrayBuffer()));
  const { data, error } = answer.value;
  if (error) return <p class="tone-warn">{error.message}</p>;
  if (data === undefined) return <div class="waiting" aria-busy="true" />;
  if (data === null) return <p class="quiet">No text: save it to look into it.</p>;
  return (
    <>
      <pre class="text" tabIndex={0}>{data}</pre>
      {size > MOST_TEXT && <p class="quiet">The first {bytes(MOST_TEXT)} of {bytes(size)}.</p>}
    </>
  );
}

/** What the bytes say if they are text, null if they are not; the last character may be cut in two. */
function textOf(content: ArrayBuffer): string | null {
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(content, { stream: true });
    return text.includes("\0") ? null : text;
  } catch {
    return null;
  }
}
