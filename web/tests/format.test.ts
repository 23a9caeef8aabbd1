import { expect, test } from "vitest";
import { ago, duration, number, power, short } from "../src/format";

test.each([
  [null, "–"],
  [0, "0"],
  [1234567, "1.23e6"],
  [12345, "12,345"],
  [0.123456, "0.1235"],
  [-0.5, "−0.5"],
  [0.00001234, "1.23e−5"],
  [Number.NaN, "NaN"],
  [Number.POSITIVE_INFINITY, "∞"],
])("%d is written %s", (value, text) => {
  expect(number(value)).toBe(text);
});

test("powers, short numbers and times are as people write them", () => {
  expect(power(-3)).toBe("10⁻³");
  expect(short(1_250_000)).toBe("1.25M");
  expect(duration(4521.3)).toBe("1 h 15 min");
  expect(duration(59.6)).toBe("60 s");
  expect(ago("2026-01-01T00:00:00+00:00", Date.UTC(2026, 0, 1, 0, 1, 30))).toBe("2 min ago");
});
