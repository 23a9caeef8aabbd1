import { describe, expect, test } from "vitest";
import { points } from "../src/pages/logged/plotly";
import { layout, order, shown } from "../src/pages/logged/table";

const table = {
  columns: ["loss", "kind", "a = b"],
  data: [
    [0.5, "cat", 1],
    [10, "Dog", null],
    [null, "cow and calf", true],
    [2, "cat", { nested: "cat" }],
  ],
};

describe("a table", () => {
  test("keeps its order and all its rows as long as nothing is asked for", () => {
    expect(order(table, " ", null)).toEqual([0, 1, 2, 3]);
  });

  test("is filtered by what any cell contains, upper or lower case", () => {
    expect(order(table, "CAT", null)).toEqual([0, 3]);
    expect(order(table, "dog", null)).toEqual([1]);
    expect(order(table, "cow and calf", null)).toEqual([2]);
    expect(order(table, "nothing", null)).toEqual([]);
  });

  test("is filtered by conditions on columns, numbers as numbers", () => {
    expect(order(table, "loss > 0.9", null)).toEqual([1, 3]);
    expect(order(table, "loss >= 2 and kind = cat", null)).toEqual([3]);
    expect(order(table, "kind != 'cat'", null)).toEqual([1, 2]);
  });

  test("takes for text what looks like a condition on a column that there is not", () => {
    expect(order({ columns: ["x"], data: [["y > 3"], ["y"]] }, "y > 3", null)).toEqual([0]);
  });

  test("is sorted by a column, numbers before words, and what is empty comes last either way", () => {
    expect(order(table, "", { column: 0, down: false })).toEqual([0, 3, 1, 2]);
    expect(order(table, "", { column: 0, down: true })).toEqual([1, 3, 0, 2]);
    expect(order(table, "", { column: 1, down: false })).toEqual([0, 3, 2, 1]);
  });

  test("has columns one beside the other, none too narrow and none too wide", () => {
    const places = layout({ columns: ["x", "y"], data: [[1, "long ".repeat(200)]] });
    expect(places.map(({ left }) => left)).toEqual([0, places[0]?.width]);
    expect(places[1]?.width).toBe(320);
    expect(places[0]?.width).toBeGreaterThanOrEqual(56);
  });

  test("shows numbers short and everything else as it is", () => {
    expect([1 / 3, null, "NaN", true, [1]].map(shown)).toEqual(["0.3333", "", "NaN", "true", "[1]"]);
  });
});

test("the points of a plotly trace are counted, also where it holds them packed", () => {
  expect(points({ type: "bar", x: ["a", "b"], y: [1, 2] })).toBe(2);
  expect(points({ y: { dtype: "f8", bdata: btoa("\0".repeat(24)) } })).toBe(3);
  expect(points({ type: "sankey" })).toBeNull();
});
