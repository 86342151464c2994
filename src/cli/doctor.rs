//! `sifu doctor`: what this machine allows, what it does not, and the one command that cures each.
//!
//! ```text
//! ok       user namespaces   works
//! missing  /dev/fuse         there is no `/dev/fuse`
//!
//! /dev/fuse: the image is served through it; without it each start unpacks the image first
//!     An administrator can load the driver with `sudo modprobe fuse`.
//!
//! A SIF starts here, but has to be unpacked first.
//! ```
//!
//! The exit code is 0 where a SIF starts at full speed, 1 where it has to be unpacked, 2 where none can be started.

use std::fmt::Write as _;
use std::io::Write as _;

use serde_json::{Value, json};

use crate::host;
use crate::host::facts::{Outcome, ProbeResults};
use crate::launch::diagnosis::{CuredBy, Finding, State, Verdict, diagnose, verdict};
use crate::report::{self, Failure};

/// Tries out what a start needs, prints the findings, and returns the exit code: 0, 1 or 2.
pub fn run(json: bool) -> Result<u8, Failure> {
    let results = host::probe::observe();
    let findings = diagnose(&results);
    let verdict = verdict(&findings);
    let page = if json { to_json(&results, &findings, verdict) } else { to_text(&findings, verdict) };
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(page.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(verdict.exit_code()),
        // `sifu doctor | head` has what it wanted.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(verdict.exit_code()),
        Err(error) => Err(Failure::new(format!("cannot write to standard output: {error}"))),
    }
}

fn to_text(findings: &[Finding], verdict: Verdict) -> String {
    let width = findings.iter().map(|finding| finding.subject.len()).max().unwrap_or(0);
    let mut page = String::new();
    for finding in findings {
        let detail = report::printable(&finding.detail);
        // Writing to a string can't fail.
        let _ = writeln!(page, "{:<8} {:<width$}  {detail}", finding.state.word(), finding.subject);
    }
    for finding in findings.iter().filter(|finding| finding.state != State::Ok) {
        let _ = write!(page, "\n{}: {}\n", finding.subject, finding.why);
        if let Some(cure) = &finding.cure {
            let _ = writeln!(page, "    {}", report::printable(&cure.to_string()));
        }
    }
    let end = match verdict {
        Verdict::FullSpeed => "A SIF starts at full speed here.",
        Verdict::Restricted => "A SIF starts here, but has to be unpacked first.",
        Verdict::Impossible => {
            "No container can be started here. Looking into images (`sifu inspect`, `sifu sif`) needs none of this."
        }
    };
    let _ = write!(page, "\n{end}\n");
    page
}

fn to_json(results: &ProbeResults, findings: &[Finding], verdict: Verdict) -> String {
    let findings: Vec<Value> = findings
        .iter()
        .map(|finding| {
            let cure = finding.cure.as_ref().map(|cure| {
                let by = match cure.by {
                    CuredBy::Administrator => "administrator",
                    CuredBy::Caller => "caller",
                    CuredBy::ContainerStarter => "container-starter",
                };
                json!({ "by": by, "advice": cure.advice, "command": cure.command })
            });
            json!({
                "subject": finding.subject,
                "state": finding.state.word(),
                "detail": finding.detail,
                "why": finding.why,
                "cure": cure,
            })
        })
        .collect();
    let attempts: serde_json::Map<String, Value> = results
        .outcomes
        .iter()
        .map(|(attempt, outcome)| {
            let outcome = match outcome {
                Outcome::NotTried => json!("not tried"),
                Outcome::Done => json!("done"),
                Outcome::Failed { errno } => json!({ "errno": errno }),
                Outcome::TimedOut => json!("timed out"),
            };
            (attempt.name().to_owned(), outcome)
        })
        .collect();
    let page = json!({
        "verdict": verdict.word(),
        "kernel": results.kernel.release,
        "machine": results.kernel.machine,
        "findings": findings,
        "attempts": attempts,
    });
    format!("{page:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::facts::{Attempt, FuseDevice, probed_laptop};

    fn without_fuse() -> ProbeResults {
        let mut results = probed_laptop();
        results.fuse = FuseDevice::Missing;
        for (attempt, outcome) in &mut results.outcomes {
            match attempt {
                Attempt::OpenFuse => *outcome = Outcome::Failed { errno: 2 },
                Attempt::MountFuse => *outcome = Outcome::NotTried,
                _ => {}
            }
        }
        results
    }

    #[test]
    fn the_page_lists_first_then_cures_then_judges() {
        let results = without_fuse();
        let findings = diagnose(&results);
        let page = to_text(&findings, verdict(&findings));
        let lines: Vec<&str> = page.lines().collect();
        assert_eq!(lines[1], "ok       user namespaces   works");
        assert_eq!(lines[3], "missing  /dev/fuse         there is no `/dev/fuse`");
        let cures = lines.iter().position(|line| line.starts_with("/dev/fuse: ")).unwrap();
        assert_eq!(lines[cures + 1], "    An administrator can load the driver with `sudo modprobe fuse`.");
        assert_eq!(*lines.last().unwrap(), "A SIF starts here, but has to be unpacked first.");
    }

    #[test]
    fn the_json_says_the_same() {
        let results = without_fuse();
        let findings = diagnose(&results);
        let page: Value = serde_json::from_str(&to_json(&results, &findings, verdict(&findings))).unwrap();
        assert_eq!(page["verdict"], "restricted");
        assert_eq!(page["attempts"]["open-fuse"]["errno"], 2);
        let fuse = page["findings"].as_array().unwrap().iter().find(|one| one["subject"] == "/dev/fuse").unwrap();
        assert_eq!(fuse["state"], "missing");
        assert_eq!(fuse["cure"]["command"], "sudo modprobe fuse");
        assert_eq!(fuse["cure"]["by"], "administrator");
    }
}
