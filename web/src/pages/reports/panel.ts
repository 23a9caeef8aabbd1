/**
 * A panel of a report: a block of its Markdown, a field a line. The server reads the same blocks when it makes a file
 * (torchtrack/server/panels.py), and asks in advance what is asked here.
 */

import type { Range } from "../../charts/axes";
import { TAUS } from "../look";
import type { SeriesItem } from "../../model";

export type Fields = Record<string, string>;

export const LANGUAGE = "panel";
const MOST_RUNS = 200;

/** The fields of a block. */
export function parsePanel(text: string): Fields {
  const fields: Fields = {};
  for (const line of text.split("\n")) {
    const at = line.indexOf(":");
    if (at > 0) fields[line.slice(0, at).trim()] = line.slice(at + 1).trim();
  }
  return fields;
}

/** A block of these fields, to stand in Markdown. */
export function writePanel(fields: Fields): string {
  const lines = Object.entries(fields).map(([name, value]) => `${name}: ${value.replaceAll("\n", " ")}`);
  return ["```panel", ...lines, "```"].join("\n");
}

/** The uids of the runs that a panel is pinned to. */
export function runsOf(fields: Fields): string[] {
  const given = (fields["runs"] ?? "").split(",").map((uid) => uid.trim());
  return [...new Set(given)].filter((uid) => /^[0-9a-f]{16}$/.test(uid)).slice(0, MOST_RUNS);
}

/** What a panel shows of x: both ends, or all. */
export function rangeOf(fields: Fields): Range {
  const [low, high] = [amount(fields["from"]), amount(fields["to"])];
  return low === null || high === null || low >= high ? null : [low, high];
}

/** The same as parameters of a page, which name the smoothing by its place in a list. */
export function queryOf(fields: Fields): URLSearchParams {
  const tau = amount(fields["smooth"]) ?? 0;
  return new URLSearchParams({ ...fields, smooth: String(tau < 1 ? 0 : TAUS.findLastIndex((one) => one <= tau)) });
}

function amount(text: string | undefined): number | null {
  const value = text ? Number(text) : Number.NaN;
  return Number.isFinite(value) ? value : null;
}

/** The panel of curves that one looks at. */
export function curvesPanel(metric: string, sources: readonly { item: Omit<SeriesItem, "metric"> }[], query: URLSearchParams, range: Range, tau: number): Fields {
  const runs = [...new Set(sources.map(({ item }) => item.run))];
  return { metric, runs: runs.join(", "), ...kept(query, ["ranks", "group", "x", "y", "logx"]), ...(tau > 0 ? { smooth: String(tau) } : {}), ...ends(range) };
}

/** A panel of the Stability view. */
export function stabilityPanel(show: "layers" | "ranks" | "distribution", run: string, query: URLSearchParams, range: Range): Fields {
  const names = { layers: ["kind", "mode", "depth", "open", "tensor"], ranks: ["of"], distribution: ["kind", "tensor", "format"] }[show];
  return { show, runs: run, ...kept(query, names), ...ends(range) };
}

function kept(query: URLSearchParams, names: readonly string[]): Fields {
  return Object.fromEntries(names.flatMap((name) => (query.get(name) ? [[name, query.get(name) as string]] : [])));
}

/** As many digits as a pixel is wide, and no more. */
function ends(range: Range): Fields {
  if (range === null) return {};
  const digits = 10 ** (Math.floor(Math.log10(range[1] - range[0])) - 4);
  const [low, high] = range.map((end) => String(Number((Math.round(end / digits) * digits).toPrecision(12))));
  return { from: low ?? "", to: high ?? "" };
}
