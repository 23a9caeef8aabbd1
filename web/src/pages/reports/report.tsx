/** A report as it is read, or as it is written: the text on the left, what it becomes on the right. */

import { type Signal, useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { address, change, get, useAnswer } from "../../api";
import { inFile } from "../../embedded";
import { ago } from "../../format";
import type { ReportAnswer } from "../../model";
import { go, href, place, set } from "../../router";
import { kept } from "../../state";
import { Answered } from "../../ui/notices";
import { useKeys } from "../../ui/shell";
import { say } from "../../ui/toast";
import { makeCurrent } from "./adding";
import { block } from "./blocks";
import { Editor } from "./editor";
import { Markdown } from "./markdown";
import { useMayWrite } from "./may";

export function Report({ project, id }: { project: string; id: string }) {
  const { query } = place.value;
  const version = query.get("version");
  const saved = useSignal(0);
  const path = `reports/${id}${version ? `?version=${encodeURIComponent(version)}` : ""}`;
  const answer = useAnswer(`${path} ${saved.value}`, (signal) => get<ReportAnswer>(path, signal));
  const may = useMayWrite(project);
  const report = answer.value.data;
  useEffect(() => {
    if (report && !inFile) makeCurrent(project, report);
  }, [report?.id, report?.title]);
  const editing = query.get("edit") === "1" && version === null && may;
  return (
    <Answered answer={answer.value}>
      {(data) => (editing ? <Editor key={data.id} report={data} onSaved={() => { saved.value += 1; }} /> : <Read report={data} may={may} saved={saved} />)}
    </Answered>
  );
}

function Read({ report, may, saved }: { report: ReportAnswer; may: boolean; saved: Signal<number> }) {
  const old = report.version < report.newest;
  useKeys(may && !old ? { e: () => set({ edit: "1" }) } : {});
  return (
    <article class="page report">
      <div class="title">
        <h1>{report.title}</h1>
      </div>
      <div class="saved">
        {inFile ? `Saved by ${report.by} on ${new Date(report.at).toLocaleDateString("en-GB", { dateStyle: "long" })}` : <Tools report={report} may={may} />}
      </div>
      {may && !old && kept(`draft ${report.id}`) !== null && (
        <div class="banner" role="note">
          You have changes of this report that are not saved yet. <button type="button" onClick={() => set({ edit: "1" })}>Go on with them</button>
        </div>
      )}
      {old && <Old report={report} may={may} saved={saved} />}
      {report.text.trim() ? <Markdown text={report.text} block={block} /> : <p class="quiet">There is nothing in it yet{may ? ": press e to write" : ""}.</p>}
    </article>
  );
}

function Tools({ report, may }: { report: ReportAnswer; may: boolean }) {
  const { project, id } = report;
  const versions = useAnswer(`versions ${id} ${report.newest}`, (signal) => get<ReportAnswer[]>(`reports/${id}/versions`, signal));
  const remove = async () => {
    try {
      await change("DELETE", `reports/${id}`);
      makeCurrent(project, null);
      go(["p", project, "reports"]);
      say(`${report.title} is removed`, () => void change("POST", `reports/${id}/restore`).then(() => go(["p", project, "reports", id])));
    } catch (error) {
      say((error as Error).message);
    }
  };
  return (
    <>
      <select aria-label="version" value={String(report.version)} onChange={(event) => set({ version: Number(event.currentTarget.value) === report.newest ? undefined : event.currentTarget.value }, { push: true })}>
        {(versions.value.data ?? [report]).map((one) => (
          <option key={one.version} value={String(one.version)}>{`Version ${one.version}${one.version === report.version ? "" : `, ${one.by}, ${ago(one.at)}`}`}</option>
        ))}
      </select>
      saved by {report.by} {ago(report.at)}
      <div class="tools">
        {may && report.version === report.newest && <button type="button" class="primary" onClick={() => set({ edit: "1" })}>Edit</button>}
        <a class="button" href={address(`reports/${id}/html`)} download title="one HTML file that needs no server">
          Save as HTML
        </a>
        <button type="button" onClick={() => print()}>Print</button>
        {may && <button type="button" onClick={() => void remove()}>Remove</button>}
      </div>
    </>
  );
}

/** What stands above an earlier version. */
function Old({ report, may, saved }: { report: ReportAnswer; may: boolean; saved: Signal<number> }) {
  const { id, title, text, newest, version } = report;
  const restore = async () => {
    try {
      await change("PUT", `reports/${id}`, { title, text }, { "if-match": String(newest) });
      saved.value += 1;
      set({ version: undefined });
      say(`It is as it was in version ${version}`);
    } catch (error) {
      say((error as Error).message);
    }
  };
  return (
    <div class="banner" role="note">
      This is version {version} of {newest}. <a href={href(["p", report.project, "reports", id])}>See the newest</a>
      {may && <button type="button" onClick={() => void restore()}>Make it the newest</button>}
    </div>
  );
}
