import { expect, test } from "vitest";
import type { LoggedFile } from "../src/model";
import { entriesOf, found } from "../src/pages/files/entries";

const uid = "ab".repeat(8);
const [seen, lost, alone] = ["1", "2", "3"].map((digit) => digit.repeat(64)) as [string, string, string];
const file = (sha256: string, more: object = {}) => ({ kind: "image" as LoggedFile["kind"], rank: 0, time: "2026-01-01T00:00:00Z", sha256, mime: "image/png", size: 9, caption: null, name: "samples", step: 1200, ...more });
const kept = (path: string, kind: "media" | "saved" | "left" | "journal", sha256: string | null = null) => ({ path, kind, size: 5, modified: 7, sha256 });
const files = [kept(`media/${seen}`, "media", seen), kept(`media/${alone}`, "media", alone), kept("files/a b/#c.py", "saved"), kept("nodes/x-0.ttb", "left"), kept("000/0-x.ttj", "journal")];

test("files are those that rows name, then the others, each once", () => {
  const entries = entriesOf(uid, [file(seen), file(seen, { step: 7, caption: "again" }), file(lost)], files, true);
  expect(entries.map(({ name, about, here }) => [name, about, here])).toEqual([
    ["a b/#c.py", "", true],
    ["x-0.ttb", "", true],
    ["samples", "step 1,200", true],
    ["samples", "step 7 · again", true],
    ["samples", "step 1,200", false],
    [alone, "named by no row", true],
    ["0-x.ttj", "", true],
  ]);
  expect(new Set(entries.map(({ key }) => key)).size).toBe(entries.length);
});

test("each is asked for where it is given out, and a journal nowhere", () => {
  const paths = entriesOf(uid, [], files, true).map(({ path }) => path);
  expect(paths).toEqual([`runs/${uid}/saved/a%20b/%23c.py`, `runs/${uid}/files/x-0.ttb`, `runs/${uid}/media/${seen}`, `runs/${uid}/media/${alone}`, null]);
});

test("where not all files are listed none is said to be missing", () => {
  expect(entriesOf(uid, [file(lost)], files, false).map(({ here }) => here)).not.toContain(false);
});

test("they are found by name, caption or digest, and by part", () => {
  const entries = entriesOf(uid, [file(seen, { caption: "A cat" })], files, true);
  expect(found(entries, "CAT", "").map(({ name }) => name)).toEqual(["samples"]);
  expect(found(entries, alone.slice(0, 8), "").map(({ name }) => name)).toEqual([alone]);
  expect(found(entries, "", "left").map(({ name }) => name)).toEqual(["x-0.ttb"]);
});

test("what a script saved on another machine is listed once, and asked for by the list it came with", () => {
  const list = "4".repeat(64);
  const sent = (path: string, contents = list) => ({ path, size: 3, sha256: alone, contents, time: "2026-01-01T00:00:00Z" });
  const saved = [sent("files/a b/#c.py"), sent("files/d e.txt"), sent("model.h5", lost)];
  const entries = entriesOf(uid, [], [...files, kept(`media/${list}`, "media", list)], true, false, saved);
  expect(entries.filter(({ part }) => part === "saved").map(({ name, here, path }) => [name, here, path])).toEqual([
    ["a b/#c.py", true, `runs/${uid}/saved/a%20b/%23c.py`],
    ["d e.txt", true, `runs/${uid}/contents/${list}/files/d%20e.txt`],
    ["model.h5", false, `runs/${uid}/contents/${lost}/model.h5`],
  ]);
  expect(entries.find(({ name }) => name === alone)?.about).toBe("of an artifact or a saved file");
});
