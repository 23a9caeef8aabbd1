/** The reports of a project: what was found out, with the curves that show it. */

import { change, get, useAnswer } from "../../api";
import { ago } from "../../format";
import type { ReportAnswer } from "../../model";
import { go, href } from "../../router";
import { Answered, Empty } from "../../ui/notices";
import { say } from "../../ui/toast";
import { makeCurrent } from "./adding";
import { useMayWrite } from "./may";

export function Reports({ project }: { project: string }) {
  const answer = useAnswer(`reports ${project}`, (signal) => get<ReportAnswer[]>(`reports?project=${encodeURIComponent(project)}`, signal));
  const may = useMayWrite(project);
  const begin = async () => {
    try {
      const made = await change<ReportAnswer>("POST", "reports", { project, title: "New report" });
      if (!made) return;
      makeCurrent(project, made);
      go(["p", project, "reports", made.id], { edit: "1" });
    } catch (error) {
      say((error as Error).message);
    }
  };
  return (
    <div class="page">
      <div class="title">
        <h1>Reports</h1>
        {may && <button type="button" class="primary" onClick={() => void begin()}>New report</button>}
      </div>
      <Answered answer={answer.value}>{(reports) => (reports.length ? <Table project={project} reports={reports} /> : <None />)}</Answered>
    </div>
  );
}

function Table({ project, reports }: { project: string; reports: ReportAnswer[] }) {
  return (
    <div class="card">
      <table class="plain-table">
        <thead>
          <tr>
            <th scope="col">Report</th>
            <th scope="col" class="num">Versions</th>
            <th scope="col">Last saved by</th>
            <th scope="col" class="num">Saved</th>
          </tr>
        </thead>
        <tbody>
          {reports.map((report) => (
            <tr key={report.id}>
              <td>
                <a class="strong" href={href(["p", project, "reports", report.id])}>{report.title}</a>
              </td>
              <td class="num quiet">{report.version}</td>
              <td class="quiet">{report.by}</td>
              <td class="num quiet">{ago(report.at)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

function None() {
  return (
    <Empty title="No report yet">
      <p>
        A report is Markdown with panels that are pinned to runs and a range. Begin one here, or on a page with the panel that you want to show:
        <strong> ⋯ → Add to a new report</strong>.
      </p>
      <p class="quiet">
        <code>torchtrack report export REPORT -o report.html</code> makes one file of it that opens anywhere.
      </p>
    </Empty>
  );
}
