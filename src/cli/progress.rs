//! How far a build is: a bar on a terminal, a line every ten seconds elsewhere, nothing with `--quiet`.
//!
//! ```text
//! packing   [=======>            ]  412 of 1059 MiB  98 MiB/s  7 s left
//! INFO:    packing: 412 of 1059 MiB, 98 MiB/s, 7 s left
//! ```
//!
//! Above the bar of an image that is on its way here, each of its blobs that are under way has one of its own.

use crate::build::Transfer;
use crate::report;
use crate::squashfs::write::{Progress, Stage};
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// How often the bar moves: often enough to look alive, rarely enough to cost nothing.
const BAR_EVERY: Duration = Duration::from_millis(100);
/// How often a log gets a line.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// Nothing is said of the remaining time before there is something to judge it by.
const JUDGED_AFTER: Duration = Duration::from_secs(1);
const BAR_COLUMNS: usize = 20;

/// Shows progress on standard error.
pub struct Meter {
    form: Option<Form>,
    stage: Option<(Stage, Instant)>,
    shown: Instant,
    /// Of the bars that are there.
    lines: usize,
    transfers: Vec<Transfer>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Bar,
    Lines,
}

impl Meter {
    /// In the form that standard error and the level of messages ask for.
    pub fn on_stderr() -> Self {
        let form = match (report::level() >= 1, std::io::stderr().is_terminal()) {
            (false, _) => None,
            (true, true) => Some(Form::Bar),
            (true, false) => Some(Form::Lines),
        };
        Self { form, stage: None, shown: Instant::now(), lines: 0, transfers: Vec::new() }
    }

    /// Takes note of what is on its way, for the next time that something is shown.
    pub fn note(&mut self, transfers: &[Transfer]) {
        if self.form == Some(Form::Bar) {
            self.transfers = transfers.to_vec();
        }
    }

    /// Shows how far the work is, if enough time has passed.
    pub fn show(&mut self, progress: Progress) {
        let Some(form) = self.form else { return };
        let now = Instant::now();
        let started = match self.stage {
            Some((stage, started)) if stage == progress.stage => started,
            _ => {
                self.stage = Some((progress.stage, now));
                now
            }
        };
        let every = if form == Form::Bar { BAR_EVERY } else { LINE_EVERY };
        if now.duration_since(self.shown) < every {
            return;
        }
        self.shown = now;
        let elapsed = now.duration_since(started);
        match form {
            Form::Lines => report::info(line(progress, elapsed)),
            Form::Bar => {
                let mut bars: Vec<String> = self.transfers.iter().map(transfer_bar).collect();
                bars.push(bar(progress, elapsed));
                // A closed stderr is no reason to fail.
                let _ = std::io::stderr().lock().write_all(drawn(&bars, self.lines).as_bytes());
                self.lines = bars.len();
            }
        }
    }

    /// Lets `say` write lines where the bar was.
    pub fn aside(&mut self, say: impl FnOnce()) {
        self.clear();
        say();
    }

    /// Removes the bar.
    pub fn clear(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        if lines > 0 {
            let _ = std::io::stderr().lock().write_all(format!("{}\u{1b}[J", to_start(lines)).as_bytes());
        }
    }
}

/// Bars in the place of so many lines: each takes away what a longer one left, and the last all that is below.
fn drawn(bars: &[String], lines: usize) -> String {
    let below = if lines > bars.len() { "\u{1b}[J" } else { "" };
    let bars: Vec<String> = bars.iter().map(|bar| format!("{bar}\u{1b}[K")).collect();
    format!("{}{}{below}", to_start(lines), bars.join("\n"))
}

/// From the end of so many lines to their start.
fn to_start(lines: usize) -> String {
    if lines > 1 { format!("\r\u{1b}[{}A", lines - 1) } else { "\r".to_owned() }
}

fn line(progress: Progress, elapsed: Duration) -> String {
    let (amount, rest) = (amount(progress.done_bytes, progress.total_bytes), forecast(progress, elapsed));
    format!("{}: {amount}{}", verb(progress.stage), rest.iter().map(|text| format!(", {text}")).collect::<String>())
}

fn bar(progress: Progress, elapsed: Duration) -> String {
    let Progress { done_bytes, total_bytes, stage } = progress;
    let rest: String = forecast(progress, elapsed).iter().map(|text| format!("  {text}")).collect();
    format!("{:<9} [{}]  {}{rest}", verb(stage), filled(done_bytes, total_bytes), amount(done_bytes, total_bytes))
}

fn transfer_bar(transfer: &Transfer) -> String {
    let Transfer { name, done_bytes, total_bytes } = transfer;
    format!("{name} [{}]  {}", filled(*done_bytes, *total_bytes), amount(*done_bytes, *total_bytes))
}

/// What stands between the brackets.
fn filled(done_bytes: u64, total_bytes: u64) -> String {
    let filled = match total_bytes {
        0 => BAR_COLUMNS,
        total => (BAR_COLUMNS as u128 * u128::from(done_bytes.min(total)) / u128::from(total)) as usize,
    };
    let tip = if filled < BAR_COLUMNS { ">" } else { "" };
    format!("{}{tip}{}", "=".repeat(filled), " ".repeat(BAR_COLUMNS - filled - tip.len()))
}

fn verb(stage: Stage) -> &'static str {
    match stage {
        Stage::Hashing => "reading",
        Stage::Comparing => "comparing",
        Stage::Packing => "packing",
        Stage::Fetching => "fetching",
        Stage::Sending => "sending",
    }
}

fn amount(done: u64, total: u64) -> String {
    let (shift, unit) = [(30, "GiB"), (20, "MiB"), (10, "KiB")]
        .into_iter()
        .find(|(shift, _)| total >> shift >= 10)
        .unwrap_or((0, "bytes"));
    format!("{} of {} {unit}", done >> shift, total >> shift)
}

/// Rate and remaining time, once there is something to judge by.
fn forecast(progress: Progress, elapsed: Duration) -> Vec<String> {
    if elapsed < JUDGED_AFTER || progress.done_bytes == 0 {
        return Vec::new();
    }
    let seconds = elapsed.as_secs_f64();
    let rate = progress.done_bytes as f64 / seconds;
    let left_bytes = progress.total_bytes.saturating_sub(progress.done_bytes);
    vec![format!("{:.0} MiB/s", rate / f64::from(1 << 20)), format!("{} left", time(left_bytes as f64 / rate))]
}

fn time(seconds: f64) -> String {
    let seconds = seconds.ceil() as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s} s"),
        (h, m, _) => format!("{h} h {m} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packing(done_mib: u64, total_mib: u64) -> Progress {
        Progress { stage: Stage::Packing, done_bytes: done_mib << 20, total_bytes: total_mib << 20 }
    }

    #[test]
    fn a_line_has_bytes_rate_and_remaining_time() {
        let elapsed = Duration::from_secs(10);
        assert_eq!(line(packing(250, 1000), elapsed), "packing: 250 of 1000 MiB, 25 MiB/s, 30 s left");
        assert_eq!(line(packing(100, 100 << 10), elapsed), "packing: 0 of 100 GiB, 10 MiB/s, 2 h 50 min left");
        assert_eq!(line(packing(10, 1000), elapsed), "packing: 10 of 1000 MiB, 1 MiB/s, 16 min 30 s left");
    }

    #[test]
    fn nothing_is_foretold_at_the_beginning() {
        assert_eq!(line(packing(0, 1000), Duration::from_secs(20)), "packing: 0 of 1000 MiB");
        assert_eq!(line(packing(5, 1000), Duration::from_millis(10)), "packing: 5 of 1000 MiB");
    }

    #[test]
    fn bars_take_the_place_of_those_before() {
        let bars = |count: usize| ["a", "b", "c"][..count].iter().map(|&bar| bar.to_owned()).collect::<Vec<_>>();
        assert_eq!(drawn(&bars(1), 0), "\ra\u{1b}[K");
        assert_eq!(drawn(&bars(1), 1), "\ra\u{1b}[K");
        assert_eq!(drawn(&bars(3), 1), "\ra\u{1b}[K\nb\u{1b}[K\nc\u{1b}[K");
        assert_eq!(drawn(&bars(2), 3), "\r\u{1b}[2Aa\u{1b}[K\nb\u{1b}[K\u{1b}[J");
        let transfer = Transfer { name: "0123456789ab".to_owned(), done_bytes: 20 << 20, total_bytes: 40 << 20 };
        assert_eq!(transfer_bar(&transfer), "0123456789ab [==========>         ]  20 of 40 MiB");
    }

    #[test]
    fn a_bar_is_as_long_whatever_it_shows() {
        let elapsed = Duration::ZERO;
        let width = |progress| bar(progress, elapsed).find(']');
        let empty = Progress { stage: Stage::Comparing, done_bytes: 0, total_bytes: 0 };
        for progress in [packing(0, 100), packing(50, 100), packing(100, 100), packing(101, 100), empty] {
            assert_eq!(width(progress), Some(10 + 1 + BAR_COLUMNS), "{progress:?}");
        }
        assert!(bar(packing(50, 100), elapsed).starts_with("packing   [==========>"));
    }
}
