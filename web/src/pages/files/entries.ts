/** The files of a run in one list: what rows name beside what lies there. */

import type { KeptFile, LoggedFile, MediaAnswer, SavedFile } from "../../model";

export type Part = "media" | "saved" | "left" | "journal";

export interface Entry {
  /** What tells it from all others. */
  key: string;
  part: Part;
  name: string;
  /** What more there is to say: the step, the caption. */
  about: string;
  size: number | null;
  sha256: string | null;
  /** In seconds since 1970. */
  time: number | null;
  /** Whether its bytes are here. */
  here: boolean;
  /** Where they are asked for; null for what only the server itself reads. */
  path: string | null;
  row: LoggedFile | null;
}

/** In the order in which they are listed: what there is little of comes first. */
export const PARTS: Record<Part, string> = {
  saved: "saved",
  left: "left by processes",
  media: "logged",
  journal: "journal",
};

/**
 * One for each row that names a file and one for each file that no row names, by part. `whole` says that `files` are all
 * there are, so that one that is not among them is not here; `artifacts`, that files of such are among them; `saved` are
 * those that a script saved on another machine.
 */
export function entriesOf(uid: string, rows: MediaAnswer["rows"], files: readonly KeptFile[], whole: boolean, artifacts = false, saved: readonly SavedFile[] = []): Entry[] {
  const there = new Set(files.flatMap(({ kind, sha256 }) => (kind === "media" && sha256 ? [sha256] : [])));
  const named = new Set(rows.map((row) => row.sha256));
  const logged = rows.map((row, i): Entry => ({
    key: `row ${i}`,
    part: "media",
    name: row.name,
    about: [row.step === null ? "" : `step ${row.step.toLocaleString("en")}`, row.caption ?? ""].filter(Boolean).join(" · "),
    size: row.size,
    sha256: row.sha256,
    time: row.time === null ? null : Date.parse(row.time) / 1000,
    here: !whole || there.has(row.sha256),
    path: pathOf(uid, `media/${row.sha256}`),
    row,
  }));
  const others = files.filter(({ kind, sha256 }) => kind !== "media" || !named.has(sha256 ?? ""));
  const lying = new Set(files.map((file) => file.path));
  const sent = saved.filter(({ path }) => !lying.has(path));
  const order = Object.keys(PARTS);
  return [
    ...logged,
    ...others.map((file): Entry => ({
      key: file.path,
      part: file.kind,
      name: file.path.slice(file.path.indexOf("/") + 1),
      about: file.kind !== "media" ? "" : sent.length ? "of an artifact or a saved file" : artifacts ? "of an artifact" : "named by no row",
      size: file.size,
      sha256: file.sha256,
      time: file.modified,
      here: true,
      path: pathOf(uid, file.path),
      row: null,
    })),
    ...sent.map((file): Entry => ({
      key: file.path,
      part: "saved",
      name: file.path.replace(/^files\//, ""),
      about: "",
      size: file.size,
      sha256: file.sha256,
      time: Date.parse(file.time) / 1000,
      here: !whole || there.has(file.contents),
      path: `runs/${uid}/contents/${file.contents}/${file.path.split("/").map(encodeURIComponent).join("/")}`,
      row: null,
    })),
  ].sort((a, b) => order.indexOf(a.part) - order.indexOf(b.part));
}

const ROUTES: Record<string, string> = { media: "media", files: "saved", nodes: "files" };

function pathOf(uid: string, path: string): string | null {
  const [folder = "", ...rest] = path.split("/");
  const route = path.endsWith(".ttj") || path.endsWith(".ttg") ? undefined : ROUTES[folder];
  return route ? `runs/${uid}/${route}/${rest.map(encodeURIComponent).join("/")}` : null;
}

/** Those whose name, caption or digest contains a text, of one part or of all. */
export function found(entries: readonly Entry[], text: string, part: string): Entry[] {
  const wanted = text.toLowerCase();
  return entries.filter(
    (entry) => (part === "" || entry.part === part) && [entry.name, entry.about, entry.sha256 ?? ""].some((each) => each.toLowerCase().includes(wanted)),
  );
}
