import { describe, expect, test } from "vitest";
import { drawing, ticks } from "../src/pages/logged/chart";

const table = { columns: ["class", "x", "y"], data: [["a", 0, 1], ["a", 1, 2], ["b", 0, 5], ["b", "NaN", 6]] };

describe("a table that asks to be drawn", () => {
  test("as lines has one a group, without what is no number", () => {
    expect(drawing(table, { kind: "line", x: "x", y: "y", stroke: "class" })).toEqual({
      kind: "curves", joined: true, x: "x", y: "y",
      groups: [{ name: "a", points: [[0, 1], [1, 2]] }, { name: "b", points: [[0, 5]] }],
    });
  });

  test("as bars has one a row, in its order", () => {
    expect(drawing(table, { kind: "bar", label: "class", value: "y" })).toMatchObject({ bars: [{ label: "a", value: 1 }, { value: 2 }, { label: "b", value: 5 }, { value: 6 }], left: 0 });
  });

  test("as a histogram counts every number once", () => {
    const made = drawing(table, { kind: "histogram", value: "y" });
    expect(made?.kind === "columns" && made.counts.reduce((sum, count) => sum + count)).toBe(4);
    expect(made).toMatchObject({ edges: expect.arrayContaining([1, 6]) });
  });

  test("as a confusion matrix has a cell a pair", () => {
    const pairs = { columns: ["Actual", "Predicted", "n"], data: [["cat", "cat", 3], ["cat", "dog", 1], ["dog", "dog", 2]] };
    const made = drawing(pairs, { kind: "confusion matrix", actual: "Actual", predicted: "Predicted", value: "n" });
    expect(made).toEqual({ kind: "matrix", down: ["cat", "dog"], across: ["cat", "dog"], cells: [[3, 1], [null, 2]], most: 3 });
  });

  test("shows its rows where the kind is none, or a column is not there", () => {
    expect([drawing(table, undefined), drawing(table, { kind: "my/vega" }), drawing(table, { kind: "line", x: "x", y: "gone" })]).toEqual([null, null, null]);
  });

  test("has round numbers along its axes", () => {
    expect(ticks([0, 1], 5)).toEqual([0, 0.2, 0.4, 0.6000000000000001, 0.8, 1]);
    expect(ticks([-3, 12], 4)).toEqual([0, 5, 10]);
    expect(ticks([2, 2], 4)).toEqual([2]);
  });
});
