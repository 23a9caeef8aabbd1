/** From any panel of a project to a report: to the one that was opened last, or a new one. */

import { signal } from "@preact/signals";
import { useMemo, useRef } from "preact/hooks";
import { change, get, ServerError } from "../../api";
import { inFile } from "../../embedded";
import type { ReportAnswer } from "../../model";
import { useQuery } from "../../query";
import { href, place } from "../../router";
import { keep, kept } from "../../state";
import type { Action } from "../../ui/menu";
import { say } from "../../ui/toast";
import { type Fields, writePanel } from "./panel";

type Current = Record<string, { id: string; title: string }>;

/** By project: what panels are added to. */
const current = signal<Current>(JSON.parse(kept("reports") ?? "{}") as Current);

export function makeCurrent(project: string, report: { id: string; title: string } | null): void {
  const { [project]: _, ...others } = current.value;
  current.value = report ? { ...others, [project]: { id: report.id, title: report.title } } : others;
  keep("reports", JSON.stringify(current.value));
}

/** What can be done with a panel for reports; nothing where it stands in one. */
export function useReportActions(fields: () => Fields): Action[] {
  const { pinned } = useQuery();
  const latest = useRef(fields);
  latest.current = fields;
  const project = place.value.path[0] === "p" ? place.value.path[1] : undefined;
  const report = project === undefined ? undefined : current.value[project];
  return useMemo(() => {
    if (inFile || pinned || project === undefined) return [];
    const block = () => writePanel(latest.current());
    const copied = async () => {
      await navigator.clipboard.writeText(`${block()}\n`);
      say("Copied: paste it into a report");
    };
    return [
      ...(report ? [{ text: `Add to ${short(report.title)}`, act: () => void attempt(() => add(project, report.id, block())) }] : []),
      { text: "Add to a new report", act: () => void attempt(() => begin(project, block())) },
      { text: "Copy for a report", act: copied },
    ];
  }, [pinned, project, report]);
}

function short(title: string): string {
  return title.length > 32 ? `${title.slice(0, 31)}…` : title;
}

async function attempt(work: () => Promise<void>): Promise<void> {
  try {
    await work();
  } catch (error) {
    say((error as Error).message);
  }
}

async function begin(project: string, block: string): Promise<void> {
  const made = await change<ReportAnswer>("POST", "reports", { project, title: "New report", text: `${block}\n` });
  if (!made) return;
  makeCurrent(project, made);
  say("A new report has it", () => void attempt(() => undo(() => change("DELETE", `reports/${made.id}`))), open(project, made));
}

async function add(project: string, id: string, block: string): Promise<void> {
  let report: ReportAnswer;
  try {
    report = await get<ReportAnswer>(`reports/${id}`);
  } catch (error) {
    if (!(error instanceof ServerError) || error.status !== 404) throw error;
    makeCurrent(project, null);
    return begin(project, block);
  }
  const { title, text } = report;
  const longer = `${text.trimEnd()}${text.trim() ? "\n\n" : ""}${block}\n`;
  const added = await change<ReportAnswer>("PUT", `reports/${id}`, { title, text: longer }, { "if-match": String(report.version) });
  const before = () => change("PUT", `reports/${id}`, { title, text }, { "if-match": String(added?.version) });
  say(`Added to ${short(title)}`, () => void attempt(() => undo(before)), open(project, report));
}

async function undo(work: () => Promise<unknown>): Promise<void> {
  await work();
  say("Taken out again");
}

function open(project: string, { id }: { id: string }) {
  return { text: "Open", href: href(["p", project, "reports", id]) };
}
