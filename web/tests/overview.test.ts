import { expect, test } from "vitest";
import { pinnedFirst } from "../src/pages/overview";

test("pinned keys come first, and none that is not there", () => {
  expect(Object.keys(pinnedFirst({ a: 1, b: 2, c: 3 }, ["c", "gone"]))).toEqual(["c", "a", "b"]);
});
