//! Performs a launch plan that stands on an open descriptor: `starter PLAN [SERVER [SUPERVISOR]]`, descriptor numbers.
//!
//! PLAN is a file with the plan's text; SERVER is the socket to an image server, for plans that name images (see
//! [`starter::image_server`]); SUPERVISOR that to the supervisor of a root emulation.
#![forbid(unsafe_code)]

use starter::perform::{Launched, exec, launch};
use starter::plan::LaunchPlan;
use starter::supervise::end_alike;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

/// No plan is longer; a wrong descriptor is not read to its end.
const MAX_PLAN_BYTES: u64 = 16 << 20;
/// The exit code of failures that are not the command's.
const FAILURE: u8 = 255;

fn main() -> ExitCode {
    run().unwrap_or_else(|message| {
        eprintln!("FATAL:   {message}");
        ExitCode::from(FAILURE)
    })
}

fn run() -> Result<ExitCode, String> {
    let mut numbers = std::env::args().skip(1);
    let mut descriptor = || -> Result<Option<OwnedFd>, String> {
        let Some(word) = numbers.next() else { return Ok(None) };
        let number = word.parse().map_err(|_| format!("`{word}` is not the number of a descriptor"))?;
        starter::sys::inherited_fd(number).map(Some).ok_or(format!("descriptor {number} is not open"))
    };
    let plan = descriptor()?.ok_or("usage: starter PLAN [SERVER [SUPERVISOR]], numbers of open descriptors")?;
    let server = descriptor()?;
    let supervisor = descriptor()?;
    let mut text = Vec::new();
    File::from(plan)
        .take(MAX_PLAN_BYTES)
        .read_to_end(&mut text)
        .map_err(|error| format!("cannot read the launch plan: {error}"))?;
    let plan = LaunchPlan::from_text(&text).map_err(|error| error.to_string())?;
    let (to_server, to_supervisor) = (server.as_ref().map(AsFd::as_fd), supervisor.as_ref().map(AsFd::as_fd));
    match launch(&plan, to_server, to_supervisor).map_err(|error| error.to_string())? {
        Launched::Inside(entered) => {
            drop((server, supervisor));
            for warning in entered.warnings.iter().filter(|warning| !warning.is_harmless()) {
                eprintln!("WARNING: {warning}");
            }
            Err(exec(&plan, &entered.environment).to_string())
        }
        Launched::Ended(ended) => Ok(ExitCode::from(end_alike(ended))),
        Launched::Left(_) => Ok(ExitCode::SUCCESS),
    }
}
