//! `run-help`: prints the help that the image's author wrote.

use crate::report::{self, Failure};
use std::ffi::OsStr;
use std::io::Write;

/// Prints the help of the image at `image`, or of its app.
pub fn run(app: Option<&str>, image: &OsStr, out: &mut dyn Write) -> Result<(), Failure> {
    let mut metadata = super::inspect::metadata(image).map_err(|error| report::failure(&error))?;
    let mut help = match app {
        Some(name) => metadata.apps.remove(name).unwrap_or_default().helpfile,
        None => metadata.helpfile,
    };
    if help.is_empty() {
        help = match app {
            Some(name) => format!("This image has no help for the app `{}`", report::printable(name)).into_bytes(),
            None => b"This image has no help".to_vec(),
        };
    }
    help.push(b'\n');
    super::inspect::print(&help, out)
}
