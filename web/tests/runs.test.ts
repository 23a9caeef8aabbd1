import { describe, expect, test, vi } from "vitest";

vi.mock("../src/state", () => ({ theme: { value: "light" } }));
const { aggregate, complete, csv, differs, grouped, shownFirst, spread } = await import("../src/pages/runs/table");

const columns = spread({
  uid: ["a", "b"],
  name: ["one", '=2"'],
  config: [{ lr: 0.1, model: { depth: 3 } }, { lr: 0.2, model: { depth: 3 } }],
  summary: [{ loss: 1, "system/cpu": 4 }, { loss: null }],
});

describe("the table of runs", () => {
  test("has a column for each key, nested ones by their path", () => {
    expect(columns["config.model.depth"]).toEqual([3, 3]);
    expect(columns["summary.system/cpu"]).toEqual([4, null]);
  });

  test("shows at first what tells runs apart and what people logged", () => {
    const first = shownFirst(columns);
    expect(first).toContain("config.lr");
    expect(first).toContain("summary.loss");
    expect(first).not.toContain("config.model.depth");
    expect(first).not.toContain("summary.system/cpu");
    expect(differs([1, 1, 1])).toBe(false);
  });

  test("is CSV that a spreadsheet does not run", () => {
    expect(csv(columns, ["config.lr"])).toBe('uid,name,tags,config.lr\r\na,one,,0.1\r\nb,"\'=2""",,0.2\r\n');
  });

  test("groups runs by a value, and says what their numbers are together", () => {
    expect(grouped(["x", null, "x"], 3)).toEqual([{ key: "x", members: [0, 2] }, { key: "–", members: [1] }]);
    expect(aggregate([1, "no", 3], [0, 1, 2])).toBe("2 ± 1.41");
  });
});

describe("a filter is completed", () => {
  test("by fields that begin so, then by those that contain it", () => {
    expect(complete("config.l", 8, ["config.lr", "summary.config.l"]).words).toEqual(["config.lr", "summary.config.l"]);
  });

  test("by states after the word state, and by odd names in backquotes", () => {
    expect(complete("state = ru", 10, []).words).toEqual(["running"]);
    expect(complete("name = x and val", 16, ["summary.val/loss"])).toEqual({ from: 13, words: ["`summary.val/loss`"] });
  });
});
