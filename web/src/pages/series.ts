/** Lines as the server gives them: one question, or one for each part of a logarithmic axis. */

import { frame, frames } from "../api";
import { inFile } from "../embedded";
import type { Frame } from "../frame";
import type { Line } from "../charts/line";
import { colour, slots } from "../charts/colours";
import { together } from "../charts/groups";
import type { RunAnswer, SeriesHeader, SeriesItem } from "../model";

/** One line of every panel: what is asked of the server but for the metric, and how it looks. */
export interface Source {
  item: Omit<SeriesItem, "metric">;
  label: string;
  colour: string;
  /** Sources of one group are shown together: their mean, and a band round it. */
  group?: string | undefined;
}

/** More lines of ranks than these say nothing. */
const MOST_RANKS = 64;

/** The run as one line, or a line for each rank. */
export function sourcesOf(run: Pick<RunAnswer, "uid" | "name" | "world_size">, ranks: string): Source[] {
  const own = slots([run.uid]).get(run.uid) ?? 0;
  if (ranks !== "all" && ranks !== "band") return [{ item: { run: run.uid }, label: run.name, colour: colour(own) }];
  return Array.from({ length: Math.min(run.world_size, MOST_RANKS) }, (_, rank) => ({
    item: { run: run.uid, rank },
    label: `rank ${rank}`,
    colour: colour(ranks === "band" ? own : rank),
    ...(ranks === "band" ? { group: `${run.world_size} ranks` } : {}),
  }));
}

/** What `POST /series` takes. */
export interface SeriesBody {
  items: SeriesItem[];
  x: { mode?: "relative" | "time" | "metric"; metric?: string; from: number | null; to: number | null };
  px: number;
  smooth: { kind: "ema"; tau: number } | null;
}

export interface Curves {
  items: SeriesItem[];
  x: ArrayLike<number>;
  /** Width of the buckets, or of each. */
  bucket: number | ArrayLike<number>;
  columns: Map<string, ArrayLike<number>>;
}

interface Asked {
  body: SeriesBody;
  signal: AbortSignal;
  resolve: (curves: Curves) => void;
  reject: (error: Error) => void;
}

/** So many lines are one question: it is answered on one core, and the first charts need not wait for the last. */
const MOST_LINES = 250;
let asked: Asked[] = [];

/** The lines of a chart; charts that ask in the same moment are one question. */
export function curves(body: SeriesBody, signal: AbortSignal): Promise<Curves> {
  return new Promise((resolve, reject) => {
    if (asked.length === 0) setTimeout(askTogether);
    asked.push({ body, signal, resolve, reject });
  });
}

function askTogether(): void {
  const all = asked.filter(({ signal }) => !signal.aborted);
  asked = [];
  const most = inFile ? 0 : MOST_LINES; // a file holds the answer to each question by itself
  for (const some of packed(all, ({ body }) => body.items.length, most)) void ask(some);
}

/** Things in their order, in as few parts as hold at most so much together. */
export function packed<T>(things: readonly T[], size: (thing: T) => number, most: number): T[][] {
  const parts: T[][] = [];
  let room = 0;
  for (const thing of things) {
    const last = parts.at(-1);
    if (last && size(thing) <= room) last.push(thing);
    else {
      parts.push([thing]);
      room = most;
    }
    room -= size(thing);
  }
  return parts;
}

async function ask(some: Asked[]): Promise<void> {
  const [first] = some;
  if (!first) return;
  try {
    const answers = some.length === 1 ? [await frame<SeriesHeader>("series", first.body, first.signal)] : await frames<SeriesHeader>("series/batch", { charts: some.map(({ body }) => body) }, unwanted(some));
    some.forEach(({ resolve, reject }, i) => {
      const answer = answers[i];
      if (answer) resolve(curvesOf(answer));
      else reject(new Error("the answer is too short"));
    });
  } catch (error) {
    for (const { reject } of some) reject(error as Error);
  }
}

/** Aborted once nobody waits for any of them. */
function unwanted(some: readonly Asked[]): AbortSignal {
  const controller = new AbortController();
  for (const { signal } of some) {
    signal.addEventListener("abort", () => {
      if (some.every((one) => one.signal.aborted)) controller.abort(signal.reason);
    });
  }
  return controller.signal;
}

function curvesOf({ header, columns }: Frame<SeriesHeader>): Curves {
  return { items: header.items, x: columns.get("x") ?? [], bucket: header.raw ? 0 : header.bucket, columns };
}

/** Parts of a logarithmic axis are so many times as long as what lies before them. */
const GROWTH = 8;
const FIRST = 64;

/** Where the parts of a logarithmic axis begin and end: [from, to), each in buckets of its own. */
export function parts(from: number, to: number): [number, number][] {
  const cuts = [from];
  for (let cut = FIRST; cut < to; cut *= GROWTH) if (cut > from) cuts.push(cut);
  return cuts.map((low, i) => [low, cuts[i + 1] ?? to]);
}

/** The same for a logarithmic axis: buckets that are as wide as one equal in the first steps would hide all of them. */
export async function logarithmicCurves(body: SeriesBody, all: [number, number], signal: AbortSignal): Promise<Curves> {
  const spans = parts(body.x.from ?? all[0], body.x.to ?? all[1] + 1);
  const px = Math.max(50, Math.ceil(body.px / spans.length));
  const answers = await Promise.all(spans.map(([from, to]) => curves({ ...body, px, x: { ...body.x, from, to } }, signal)));
  const columns = new Map<string, ArrayLike<number>>();
  for (const name of answers[0]?.columns.keys() ?? []) {
    columns.set(name, answers.flatMap((answer) => Array.from(answer.columns.get(name) ?? [])));
  }
  const bucket = answers.flatMap((answer) => new Array<number>(answer.x.length).fill(answer.bucket as number));
  return { items: answers[0]?.items ?? [], x: columns.get("x") ?? [], bucket, columns };
}

/** The lines in an answer, those of a group put together. */
export function linesOf({ items, columns }: Curves, sources: readonly Source[], { smoothed = true } = {}): Line[] {
  const groups = new Map<string, [Line, Source][]>();
  const lines: Line[] = [];
  items.forEach((_, i) => {
    const source = sources[i];
    const line = source && lineOf(i, columns, source, smoothed);
    if (!line) return;
    if (source.group === undefined) lines.push(line);
    else groups.set(source.group, [...(groups.get(source.group) ?? []), [line, source]]);
  });
  for (const [label, members] of groups) {
    const colour = members[0]?.[1].colour ?? "";
    lines.push(together(label, colour, members.map(([line]) => line)));
  }
  return lines;
}

function lineOf(i: number, columns: Map<string, ArrayLike<number>>, source: Source, smoothed: boolean): Line | undefined {
  const mean = columns.get(`mean.${i}`);
  if (!mean) return undefined;
  const column = (name: string) => columns.get(`${name}.${i}`) ?? mean;
  return {
    label: source.label,
    colour: source.colour,
    of: source.item.run,
    first: column("first"),
    min: column("min"),
    max: column("max"),
    last: column("last"),
    mean,
    smooth: smoothed ? columns.get(`smooth.${i}`) : undefined,
    nonfinite: columns.get(`nonfinite.${i}`),
  };
}

/** The norm of a rank's own gradients, before they are averaged. */
export const OWN_NORM = "watch/local_grad_norm";

/** The metric that is the loss of the training, if one is named so. */
export function lossOf(names: string[]): string | undefined {
  return names.find((name) => name === "loss") ?? names.find((name) => /(^|[/_])loss$/.test(name));
}

/** What ranks are compared by unless something is chosen: their own gradients, or the loss where nobody saw these. */
export function comparedBy(names: string[]): string {
  return names.includes(OWN_NORM) ? OWN_NORM : (lossOf(names) ?? OWN_NORM);
}
